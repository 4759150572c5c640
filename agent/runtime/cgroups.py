"""Cgroups of both kinds behind one small interface: v1 (alone or hybrid, beside a v2 tree without controllers) and v2.

Paths are relative to each hierarchy's root, such as `shoal-dev/n1/pods/<uid>/<name>-<attempt>`. Kernel documentation:
admin-guide/cgroup-v1 and admin-guide/cgroup-v2. Standard library only.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

from shoal.agent.runtime import devices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CPU_PERIOD_US = 100_000  # quotas are per 100 ms
MIN_CPU_QUOTA_US = 1000  # the kernel refuses less
SHARES_MIN, SHARES_MAX = 2, 262_144
WEIGHT_MAX = 10_000
MERGE_ROUNDS = 3
KILL_ROUNDS = 100  # of the fallback for kernels without cgroup.kill; a fork bomb needs several
EMPTY_POLL_S = 0.005  # where cgroup.events cannot be polled
NO_BPF = (errno.ENOSYS, errno.EINVAL, errno.EPERM)  # no bpf(2), no cgroup programs, or locked down
V1_CONTROLLERS = ("cpu", "cpuacct", "memory", "pids", "devices")
V2_CONTROLLERS = ("cpu", "memory", "pids")
PRESSURES = ("cpu", "memory", "io")
NO_LIMIT = 1 << 60  # v1 writes the largest number of whole pages for none


class CgroupError(Exception):
    """A cgroup could not be made or limited; the message says which file refused and what to do."""


class Entry:
    """The open doors of one cgroup: `born_in` is for clone3 (or -1), into `doors` the child writes itself."""

    __slots__ = ("born_in", "doors")

    def __init__(self, born_in: int, doors: list[int]) -> None:
        self.born_in = born_in
        self.doors = doors

    def join(self) -> None:
        """Moves the caller in, all hierarchies back to back. It has one thread and writes 0 to `tasks`: a move by
        `cgroup.procs` waits for an RCU grace period, with every fork on the machine held up meanwhile."""
        for door in self.doors:
            os.write(door, b"0")

    def close(self) -> None:
        """Closes all descriptors."""
        for fd in (self.born_in, *self.doors):
            if fd >= 0:
                os.close(fd)
        self.born_in, self.doors = -1, []


@dataclass(frozen=True)
class Room:
    """Limits of a cgroup (0: none) and what of them is in use; memory without what the kernel can take back at once."""

    memory_limit: int
    memory_used: int
    pids_limit: int
    pids_used: int


class Cgroups:
    """What both kinds share. `roots` are the hierarchies' mount points, `base` the node's own folder in each."""

    def __init__(self, roots: Mapping[str, str], base: str) -> None:
        self.roots = dict(roots)  # name below /sys/fs/cgroup ("" for pure v2) -> mount point
        self.base = base.strip("/")

    def pod_path(self, pod_uid: str) -> str:
        return f"{self.base}/pods/{pod_uid}"

    def container_path(self, pod_uid: str, name: str, attempt: int) -> str:
        return f"{self.pod_path(pod_uid)}/{name}-{attempt}"

    def folders(self, path: str) -> list[str]:
        """The cgroup's folder in every hierarchy, each once."""
        return list(dict.fromkeys(f"{root}/{path}" for root in self.roots.values()))

    def views(self, path: str) -> list[tuple[str, str]]:
        """(name below /sys/fs/cgroup, folder on the host) of what a container sees of its own cgroup."""
        return [(name, f"{root}/{path}") for name, root in self.roots.items()]

    def create(self, path: str) -> None:
        """Makes the cgroup and its parents in every hierarchy. Idempotent."""
        for folder in self.folders(path):
            try:
                os.makedirs(folder, exist_ok=True)
            except OSError as error:
                raise CgroupError(f"cannot make the cgroup {folder}: {error.strerror}") from error

    def limit(self, path: str, limits: Mapping[str, int | None], *, group_oom: bool = False) -> None:
        """Writes port.Limits' fields (None is no limit); `group_oom`: v2 kills the whole cgroup at once."""
        raise NotImplementedError

    def allow_devices(self, path: str) -> None:
        """Restricts devices to devices.ALLOWED. A second wall: containers lack CAP_MKNOD and their roots are nodev."""
        raise NotImplementedError

    def entry(self, path: str, branch: str = "") -> Entry:
        """Opens the doors, before the fork; with a branch of `path`, into that where it exists."""
        raise NotImplementedError

    def branch(self, path: str, name: str) -> str:
        """Makes a cgroup below `path`, in the one hierarchy that kills and tells who belongs to it: its limits are
        those of `path`. Raises CgroupError."""
        branch = f"{path}/{name}"
        try:
            os.makedirs(f"{self._members_root()}/{branch}", exist_ok=True)
        except OSError as error:
            raise CgroupError(f"cannot make the cgroup {branch}: {error.strerror}") from error
        return branch

    def branches(self, path: str, prefix: str) -> list[str]:
        """Those that exist, by the beginning of their names."""
        try:
            names = os.listdir(f"{self._members_root()}/{path}")
        except FileNotFoundError:
            return []
        return [f"{path}/{name}" for name in sorted(names) if name.startswith(prefix)]

    def merge(self, branch: str, path: str) -> None:
        """Moves what lives in a branch to its cgroup; what has just ended, or cannot be moved, stays."""
        for _ in range(MERGE_ROUNDS):  # a process that forks meanwhile leaves its child behind
            pids = self.pids(branch)
            for pid in pids:
                try:
                    _write(f"{self._members_root()}/{path}/cgroup.procs", str(pid))
                except OSError:
                    continue
            if not pids:
                return

    def _members_root(self) -> str:
        return self.events_root() or next(iter(self.roots.values()))

    def enter(self, path: str) -> None:
        """Moves the calling process in."""
        for folder in self.folders(path):
            _write(f"{folder}/cgroup.procs", "0")

    def events_root(self) -> str | None:
        """The mount point of a v2 tree, which has cgroup.kill and cgroup.events; None without one."""
        raise NotImplementedError

    def oom_kills(self, path: str) -> int:
        """How many of its processes the kernel killed for memory; 0 for a cgroup that is gone."""
        raise NotImplementedError

    def usage(self, path: str) -> tuple[float, int, int]:
        """(CPU seconds, working set in bytes, processes); zeros for a cgroup that is gone."""
        raise NotImplementedError

    def room(self, path: str) -> Room:
        """What its limits leave; zeros for a cgroup that is gone."""
        raise NotImplementedError

    def resources(self, path: str) -> dict[str, Any]:
        """port.Resources' fields, of a cgroup that is about to go; 0 where the kernel does not say."""
        raise NotImplementedError

    def pressure(self, path: str) -> dict[str, list[float]]:
        """Resource -> seconds that some and all processes stood still for it (PSI); {} where nobody counts them."""
        root, found = self.events_root(), {}
        for name in PRESSURES:
            lines = _read(f"{root}/{path}/{name}.pressure").splitlines() if root else []
            totals = {line.split()[0]: int(line.rpartition("total=")[2]) for line in lines if "total=" in line}
            if totals:
                found[name] = [totals.get("some", 0) / 1e6, totals.get("full", 0) / 1e6]
        return found

    def pids(self, path: str) -> set[int]:
        """Processes of the cgroup and all below, in the caller's pid namespace."""
        root = self._members_root()
        found: set[int] = set()
        for folder, _, _ in os.walk(f"{root}/{path}"):
            found.update(int(line) for line in _read(f"{folder}/cgroup.procs").split())
        found.discard(0)
        return found

    def kill(self, path: str) -> None:
        """SIGKILL for the whole cgroup, children that are being forked included. Gone is fine."""
        root = self.events_root()
        if root is not None and os.path.exists(f"{root}/{path}/cgroup.kill"):
            try:
                _write(f"{root}/{path}/cgroup.kill", "1")
            except FileNotFoundError:
                pass
            return
        for _ in range(KILL_ROUNDS):
            if not self._kill_each(path):
                return

    def _kill_each(self, path: str) -> bool:
        """One round for kernels without cgroup.kill. The second look keeps a reused pid from being hit."""
        handles = {pid: fd for pid in self.pids(path) if (fd := _pidfd(pid)) >= 0}
        members = self.pids(path)
        for pid, fd in handles.items():
            try:
                if pid in members:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                os.close(fd)
        return bool(members)

    def populated(self, path: str) -> bool:
        """Whether a process lives in the cgroup or below."""
        root = self.events_root()
        if root is None:
            return bool(self.pids(path))
        return _flat(_read(f"{root}/{path}/cgroup.events")).get("populated", 0) == 1

    def wait_empty(self, path: str, timeout: float) -> bool:
        """Waits at most `timeout` seconds until no process is left; says whether that is so."""
        deadline = time.monotonic() + timeout
        root = self.events_root()
        try:
            events = os.open(f"{root}/{path}/cgroup.events", os.O_RDONLY) if root else -1
        except FileNotFoundError:
            return True
        try:
            while self.populated(path):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                _wait_change(events, left)
        finally:
            if events >= 0:
                os.close(events)
        return True

    def remove(self, path: str) -> bool:
        """Removes the cgroup and all below, deepest first. False: something still lives there, call again."""
        done = True
        for folder in self.folders(path):
            for inner, _, _ in os.walk(folder, topdown=False):
                try:
                    os.rmdir(inner)
                except FileNotFoundError:
                    pass
                except OSError:
                    done = False
        return done


class CgroupsV1(Cgroups):
    """v1 controllers; `unified` names the v2 tree of a hybrid system, if there is one."""

    def __init__(self, roots: Mapping[str, str], base: str, unified: str | None = None) -> None:
        super().__init__({**roots, **({"unified": unified} if unified else {})}, base)
        self.unified = unified

    def events_root(self) -> str | None:
        return self.unified

    def _file(self, controller: str, path: str, name: str) -> str:
        return f"{self.roots.get(controller, '/nonexistent')}/{path}/{name}"

    def limit(self, path: str, limits: Mapping[str, int | None], *, group_oom: bool = False) -> None:
        del group_oom  # v1 has no such switch
        self._set("cpu", path, "cpu.shares", limits.get("cpu_shares"), SHARES_MIN)
        self._set("cpu", path, "cpu.cfs_period_us", limits.get("cpu_quota_us") and CPU_PERIOD_US, None)
        quota = limits.get("cpu_quota_us")
        self._set("cpu", path, "cpu.cfs_quota_us", quota and max(quota, MIN_CPU_QUOTA_US), -1)
        self._limit_memory(path, limits.get("memory_bytes"))
        self._set("pids", path, "pids.max", limits.get("pids"), "max")

    def _limit_memory(self, path: str, memory: int | None) -> None:
        """Memory and swap together get the same limit. The kernel wants memory <= memory+swap at every moment."""
        files = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        if not os.path.exists(self._file("memory", path, files[1])):
            files.pop()
        current = _number(_read(self._file("memory", path, files[0])))
        if memory is None or memory > current:
            files.reverse()
        for name in files:
            self._set("memory", path, name, memory, -1)

    def _set(self, controller: str, path: str, name: str, value: int | None, default: int | str | None) -> None:
        """Writes a limit; None writes the default, and needs no controller."""
        wanted = default if value is None else value
        if wanted is None or (value is None and controller not in self.roots):
            return
        if controller not in self.roots:
            raise CgroupError(f"no limit for {name}: the cgroup controller {controller} is not mounted on this node")
        _set(self._file(controller, path, name), wanted)

    def allow_devices(self, path: str) -> None:
        if "devices" not in self.roots:
            return
        _set(self._file("devices", path, "devices.deny"), "a")
        for rule in devices.v1_rules():
            _set(self._file("devices", path, "devices.allow"), rule)

    def entry(self, path: str, branch: str = "") -> Entry:
        """A hybrid's child is born in the v2 cgroup and then joins the v1 ones."""
        entry = Entry(-1, [])
        members = self._members_root()
        try:
            for root in dict.fromkeys(self.roots.values()):
                folder = f"{root}/{branch if branch and root == members else path}"
                if root == self.unified:
                    entry.born_in = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                else:
                    entry.doors += [os.open(f"{folder}/tasks", os.O_WRONLY | os.O_CLOEXEC)]
        except OSError as error:
            entry.close()
            raise CgroupError(f"cannot open the cgroup {path}: {error.strerror}") from error
        return entry

    def oom_kills(self, path: str) -> int:
        return _flat(_read(self._file("memory", path, "memory.oom_control"))).get("oom_kill", 0)

    def usage(self, path: str) -> tuple[float, int, int]:
        nanoseconds = _number(_read(self._file("cpuacct", path, "cpuacct.usage")))
        inactive = _flat(_read(self._file("memory", path, "memory.stat"))).get("total_inactive_file", 0)
        memory = _number(_read(self._file("memory", path, "memory.usage_in_bytes")))
        pids = _number(_read(self._file("pids", path, "pids.current")))
        return nanoseconds / 1e9, max(memory - inactive, 0), pids

    def room(self, path: str) -> Room:
        limit = _number(_read(self._file("memory", path, "memory.limit_in_bytes")))
        memory = _number(_read(self._file("memory", path, "memory.usage_in_bytes")))
        stat = _flat(_read(self._file("memory", path, "memory.stat")))
        cache = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
        return Room(
            limit if limit < NO_LIMIT else 0,
            max(memory - cache, 0),
            _number(_read(self._file("pids", path, "pids.max"))),
            _number(_read(self._file("pids", path, "pids.current"))),
        )

    def resources(self, path: str) -> dict[str, Any]:
        cpu = _flat(_read(self._file("cpu", path, "cpu.stat")))
        limit = _number(_read(self._file("memory", path, "memory.limit_in_bytes")))
        return {
            "peak_memory_bytes": _number(_read(self._file("memory", path, "memory.max_usage_in_bytes"))),
            "memory_limit_bytes": limit if limit < NO_LIMIT else 0,
            "cpu_seconds": _number(_read(self._file("cpuacct", path, "cpuacct.usage"))) / 1e9,
            "periods": cpu.get("nr_periods", 0),
            "throttled_periods": cpu.get("nr_throttled", 0),
            "throttled_seconds": cpu.get("throttled_time", 0) / 1e9,
            "oom_kills": self.oom_kills(path),
            "refused_forks": _flat(_read(self._file("pids", path, "pids.events"))).get("max", 0),
            "pressure": self.pressure(path),
        }


class CgroupsV2(Cgroups):
    """The v2 tree with its controllers."""

    def __init__(self, root: str, base: str) -> None:
        super().__init__({"": root}, base)
        self.root = root

    def events_root(self) -> str | None:
        return self.root

    def create(self, path: str) -> None:
        """Also enables the controllers in every ancestor that lacks them (a delegated parent may refuse: fine)."""
        super().create(path)
        parents = ["", *_prefixes(path)][:-1]
        for parent in parents:
            control = f"{self.root}/{parent}/cgroup.subtree_control".replace("//", "/")
            missing = set(V2_CONTROLLERS) - set(_read(control).split())
            for controller in sorted(missing):
                try:
                    _write(control, f"+{controller}")
                except OSError:
                    continue  # limit() says which file is missing

    def limit(self, path: str, limits: Mapping[str, int | None], *, group_oom: bool = False) -> None:
        folder = f"{self.root}/{path}"
        quota, memory, pids = limits.get("cpu_quota_us"), limits.get("memory_bytes"), limits.get("pids")
        shares = limits.get("cpu_shares")
        wanted: dict[str, int | str | None] = {
            "cpu.weight": None if shares is None else shares_to_weight(shares),
            "cpu.max": None if quota is None else f"{max(quota, MIN_CPU_QUOTA_US)} {CPU_PERIOD_US}",
            "memory.max": memory,
            "memory.swap.max": None if memory is None else 0,
            "memory.oom.group": 1 if group_oom else None,
            "pids.max": pids,
        }
        defaults: dict[str, int | str] = {"cpu.weight": 100, "cpu.max": f"max {CPU_PERIOD_US}", "memory.oom.group": 0}
        for name, value in wanted.items():
            absent = not os.path.exists(f"{folder}/{name}")
            if absent and (value is None or name == "memory.swap.max"):  # a kernel without swap accounting
                continue
            if absent:
                raise CgroupError(f"no limit for {name}: {folder} lacks it; enable its controller for the parent")
            _set(f"{folder}/{name}", defaults.get(name, "max") if value is None else value)

    def allow_devices(self, path: str) -> None:
        """By a BPF program; a kernel built without them has only the other walls."""
        try:
            devices.attach(f"{self.root}/{path}")
        except OSError as error:
            if error.errno not in NO_BPF:
                raise CgroupError(f"cannot restrict the devices of {path}: {error.strerror}") from error

    def entry(self, path: str, branch: str = "") -> Entry:
        try:
            return Entry(os.open(f"{self.root}/{branch or path}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), [])
        except OSError as error:
            raise CgroupError(f"cannot open the cgroup {path}: {error.strerror}") from error

    def oom_kills(self, path: str) -> int:
        return _flat(_read(f"{self.root}/{path}/memory.events")).get("oom_kill", 0)

    def usage(self, path: str) -> tuple[float, int, int]:
        folder = f"{self.root}/{path}"
        microseconds = _flat(_read(f"{folder}/cpu.stat")).get("usage_usec", 0)
        inactive = _flat(_read(f"{folder}/memory.stat")).get("inactive_file", 0)
        memory = _number(_read(f"{folder}/memory.current"))
        return microseconds / 1e6, max(memory - inactive, 0), _number(_read(f"{folder}/pids.current"))

    def room(self, path: str) -> Room:
        folder = f"{self.root}/{path}"
        stat = _flat(_read(f"{folder}/memory.stat"))
        cache = stat.get("inactive_file", 0) + stat.get("active_file", 0)
        return Room(
            _number(_read(f"{folder}/memory.max")),  # "max" is 0
            max(_number(_read(f"{folder}/memory.current")) - cache, 0),
            _number(_read(f"{folder}/pids.max")),
            _number(_read(f"{folder}/pids.current")),
        )

    def resources(self, path: str) -> dict[str, Any]:
        folder = f"{self.root}/{path}"
        cpu = _flat(_read(f"{folder}/cpu.stat"))
        return {
            "peak_memory_bytes": _number(_read(f"{folder}/memory.peak")),
            "memory_limit_bytes": _number(_read(f"{folder}/memory.max")),  # "max" is 0
            "cpu_seconds": cpu.get("usage_usec", 0) / 1e6,
            "periods": cpu.get("nr_periods", 0),
            "throttled_periods": cpu.get("nr_throttled", 0),
            "throttled_seconds": cpu.get("throttled_usec", 0) / 1e6,
            "oom_kills": self.oom_kills(path),
            "refused_forks": _flat(_read(f"{folder}/pids.events")).get("max", 0),
            "pressure": self.pressure(path),
        }


def hierarchies(mountinfo: str) -> dict[str, str]:
    """Controller -> mount point from the text of /proc/self/mountinfo (proc(5)); the v2 tree has the name ""."""
    found: dict[str, str] = {}
    whole: set[str] = set()  # mounted with its root: better than a part of the tree
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if len(fields) < 5 or len(tail) < 3 or tail[0] not in ("cgroup", "cgroup2"):
            continue
        names = [""] if tail[0] == "cgroup2" else sorted(set(tail[2].split(",")) - {"rw", "ro"})
        for name in names:
            if name not in found or (fields[3] == "/" and name not in whole):
                found[name] = _unescape(fields[4])
            if fields[3] == "/":
                whole.add(name)
    return found


def detect(mountinfo: str, base: str) -> Cgroups:
    """The kind of cgroups that a mountinfo text tells of. Raises CgroupError when there is none."""
    found = hierarchies(mountinfo)
    v1 = {name: found[name] for name in V1_CONTROLLERS if name in found}
    if v1:
        return CgroupsV1(v1, base, found.get(""))
    if "" in found:
        return CgroupsV2(found[""], base)
    raise CgroupError("no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup")


def open_cgroups(base: str) -> Cgroups:
    """detect() on this machine."""
    return detect(_read("/proc/self/mountinfo"), base)


def shares_to_weight(shares: int) -> int:
    """cpu.shares 2..262144 as cpu.weight 1..10000, the mapping that Kubernetes uses too."""
    bounded = min(max(shares, SHARES_MIN), SHARES_MAX)
    return 1 + (bounded - SHARES_MIN) * (WEIGHT_MAX - 1) // (SHARES_MAX - SHARES_MIN)


def _prefixes(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash as octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _wait_change(events: int, seconds: float) -> None:
    """Until cgroup.events changes or the time is over."""
    if events < 0:
        time.sleep(min(EMPTY_POLL_S, seconds))
        return
    poller = select.poll()
    poller.register(events, select.POLLPRI)
    os.pread(events, 4096, 0)
    # A change between the caller's look and this read would go unseen: hence short waits.
    poller.poll(min(seconds, 10 * EMPTY_POLL_S) * 1000)


def _read(path: str) -> str:
    """The file's text, "" when it is gone."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _number(text: str) -> int:
    word = text.strip()
    return int(word) if word.lstrip("-").isdigit() else 0


def _flat(text: str) -> dict[str, int]:
    """The kernel's "key value" lines."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _set(path: str, value: int | str) -> None:
    try:
        _write(path, str(value))
    except OSError as error:
        raise CgroupError(f"{path} refused {value!r}: {error.strerror}") from error
