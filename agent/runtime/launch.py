"""Starts a container, or a command inside a running one: prepares everything, clones, waits until execve has succeeded.

Called by a single-threaded process (a supervisor), which becomes the parent. Standard library only.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from shoal.agent.runtime import caps, init, mounts, namespaces, syscalls, users
from shoal.agent.runtime.cgroups import CgroupError, Cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = Mapping[str, Any]  # the JSON form of port.ContainerSpec

START_TIMEOUT_S = 60.0  # until execve; a slow disk may take its time, a hung one must not hang the supervisor
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_TICKS_FIELD = 22  # of /proc/<pid>/stat, counted from 1
STAT_FIELDS_BEFORE_COMM_END = 2
COMMAND_NOT_FOUND, COMMAND_NOT_EXECUTABLE, NOT_STARTED = 127, 126, 128
REMOVE_WAIT_S = 5.0


class LaunchError(Exception):
    """Nothing runs. `reason` is one of port.StartError's; the message says what, where and what to do."""

    def __init__(self, reason: str, message: str, exit_code: int = NOT_STARTED) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.exit_code = exit_code


class Launched:
    """A process whose execve has succeeded. `pid` is the caller's view; the caller owns `pidfd` and reaps."""

    __slots__ = ("pid", "pidfd", "start_ticks")

    def __init__(self, pid: int, pidfd: int, start_ticks: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.start_ticks = start_ticks


def launch(
    spec: Spec,
    *,
    sandbox: str,
    cgroups: Cgroups,
    work: str,
    stdin: int,
    stdout: int,
    stderr: int,
    seccomp_bpf: bytes,
    terminal: bool = False,
) -> Launched:
    """Starts a container as PID 1 of its own pid namespace, in `sandbox` and in a cgroup of its own, and returns after
    execve. `work` is this run's folder. Raises LaunchError; then nothing of the run is left."""
    harden_caller()
    path = container_cgroup(spec, cgroups)
    job = _job(spec, spec["argv"], (stdin, stdout, stderr), seccomp_bpf, terminal)
    try:
        files = prepare_work(spec, work)
        job.plan = mounts.container_plan(
            work=os.path.abspath(work),
            layers=len(spec["layers"]),
            files=files,
            cwd=_clean(spec["cwd"]),
            read_only_root=bool(spec["read_only_root"]),
            cgroup_views=cgroups.views(path),
        )
        cgroups.create(path)
        cgroups.limit(path, _limits(spec), group_oom=True)
        cgroups.allow_devices(path)
        with _doors(job, cgroups, path), _sandbox(job, sandbox):
            return _start(job, syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNS, cgroups, path)
    except BaseException as error:
        _undo(cgroups, path, work)
        raise _as_launch_error(error) from error


def launch_exec(
    spec: Spec,
    *,
    argv: Sequence[str],
    pid: int,
    pidfd: int,
    cgroups: Cgroups,
    stdin: int,
    stdout: int,
    stderr: int,
    seccomp_bpf: bytes,
    terminal: bool = False,
) -> Launched:
    """Starts `argv` inside the running container whose PID 1 is `pid`: its namespaces, cgroup, user, capabilities,
    profile, environment and working folder. Raises LaunchError."""
    harden_caller()
    job = _job(spec, argv, (stdin, stdout, stderr), seccomp_bpf, terminal)
    path = container_cgroup(spec, cgroups)
    try:
        job.target = pidfd
        job.cwd_step = mounts.WorkingFolder(_clean(spec["cwd"]).strip("/"))
        with _container_root(job, pid, pidfd), _doors(job, cgroups, path), _children_in(pidfd):
            return _start(job, 0, cgroups, path)
    except BaseException as error:
        raise _as_launch_error(error) from error


def cleanup(work: str) -> None:
    """Deletes a run's folders. Its mounts lived in the container's mount namespace and ended with it. Tolerant."""
    shutil.rmtree(work, ignore_errors=True)


def container_cgroup(spec: Spec, cgroups: Cgroups) -> str:
    """The path of the run's cgroup."""
    identity = spec["id"]
    return cgroups.container_path(identity["pod_uid"], identity["name"], int(identity["attempt"]))


def harden_caller() -> None:
    """Shields the interpreter: what is cloned from here cannot be traced, nor its /proc/<pid>/exe be opened, and when
    it runs from a memfd that copy cannot be executed again (an entrypoint `#!/proc/self/exe`, CVE-2019-5736)."""
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    status = os.stat("/proc/self/exe")
    if status.st_nlink == 0 and status.st_mode & 0o111 and os.readlink("/proc/self/exe").startswith("/memfd:"):
        os.chmod("/proc/self/exe", 0)


def prepare_work(spec: Spec, work: str) -> list[tuple[str, str]]:
    """Makes `work` with links to the layers, a fresh upper and the managed files: (file below `work`, target)."""
    layers = [os.path.abspath(layer) for layer in spec["layers"]]
    if not 1 <= len(layers) <= mounts.MAX_LAYERS:
        text = f"the image has {len(layers)} layers; overlayfs takes 1 to {mounts.MAX_LAYERS}: rebuild the image"
        raise LaunchError("CreateContainerError", text)
    for layer in layers:
        if not os.path.isdir(layer):
            raise LaunchError("CreateContainerError", f"the image's layer {layer} is missing; load the image again")
    cleanup(work)  # an upper folder is never used twice
    for folder in ("l", "upper", "work", "merged", "files"):
        os.makedirs(f"{work}/{folder}", mode=0o711 if folder == "merged" else 0o700)
    os.chmod(f"{work}/upper", 0o755)  # the upper's own mode is the root folder's
    _copy_root_mode(layers[-1], f"{work}/upper")
    for number, layer in enumerate(layers):
        os.symlink(layer, f"{work}/l/{number}")
    return [_write_file(work, number, *item) for number, item in enumerate(sorted(spec["files"].items()))]


def _copy_root_mode(top: str, upper: str) -> None:
    """The root folder a container sees is the upper's: it gets the image's owner and mode."""
    status = os.stat(top)
    os.chown(upper, status.st_uid, status.st_gid)
    os.chmod(upper, status.st_mode & 0o7777)


def _write_file(work: str, number: int, target: str, content: str) -> tuple[str, str]:
    name = f"files/{number}"
    fd = os.open(f"{work}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(content.encode())
        os.fchmod(fd, 0o644)
    return name, _clean(target)


def _job(
    spec: Spec, argv: Sequence[str], streams: tuple[int, int, int], seccomp_bpf: bytes, terminal: bool
) -> init.Job:
    """The spec as the plain bytes and numbers that the child needs. Raises LaunchError for what cannot be passed."""
    env = dict(spec["env"])
    _check(argv, env, spec["user"], seccomp_bpf)
    folders = env.get("PATH", DEFAULT_PATH).split(":")
    job = init.Job(
        argv=[os.fsencode(word) for word in argv],
        env={os.fsencode(key): os.fsencode(value) for key, value in env.items()},
        path=[os.fsencode(folder) for folder in folders if folder],
    )
    job.user = os.fsencode(spec["user"])
    job.run_as_user, job.run_as_group = spec["run_as_user"], spec["run_as_group"]
    job.non_root, job.no_new_privs = bool(spec["run_as_non_root"]), bool(spec["no_new_privs"])
    try:
        job.capabilities = caps.after_drop(spec["drop_capabilities"])
    except caps.UnknownCapability as error:
        raise LaunchError("CreateContainerConfigError", f"capabilities.drop: {error}") from error
    job.oom_score_adj = int(_limits(spec).get("oom_score_adj") or 0)
    job.seccomp, job.streams, job.terminal = seccomp_bpf, streams, terminal
    return job


def _check(argv: Sequence[str], env: Mapping[str, str], user: str, seccomp_bpf: bytes) -> None:
    if not argv or not argv[0]:
        raise LaunchError("CreateContainerConfigError", "no command: set command, or use an image with an entrypoint")
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            text = f"the environment variable {name!r} cannot be passed: names have no '=', nothing has a NUL byte"
            raise LaunchError("CreateContainerConfigError", text)
    if any("\0" in word for word in (*argv, user)):
        raise LaunchError("CreateContainerConfigError", "command, args and user must not contain a NUL byte")
    if not seccomp_bpf or len(seccomp_bpf) % 8:
        raise LaunchError("CreateContainerError", "the seccomp profile is empty or damaged; compile it again")


def _clean(path: str) -> str:
    """An absolute, normalised path; "" is the root."""
    if (path and not path.startswith("/")) or "\0" in path:
        raise LaunchError("CreateContainerConfigError", f"the path {path!r} in the container must be absolute")
    return "/" + os.path.normpath("/" + path).lstrip("/")


def _limits(spec: Spec) -> Mapping[str, int | None]:
    limits: Mapping[str, int | None] = spec["limits"]
    return limits


@contextmanager
def _doors(job: init.Job, cgroups: Cgroups, path: str) -> Iterator[None]:
    job.entry = cgroups.entry(path)
    try:
        yield
    finally:
        job.entry.close()


@contextmanager
def _sandbox(job: init.Job, folder: str) -> Iterator[None]:
    """The pod's namespaces, open."""
    try:
        for name, kind in namespaces.KINDS.items():
            fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            job.sandbox[kind] = fd
            if syscalls.filesystem_type(fd) != syscalls.NSFS_MAGIC:
                raise LaunchError("CreateContainerError", f"the pod's sandbox {folder} is gone; it must be made again")
        yield
    finally:
        for fd in job.sandbox.values():
            os.close(fd)


@contextmanager
def _container_root(job: init.Job, pid: int, pidfd: int) -> Iterator[None]:
    """The running container's root; the look at the pidfd afterwards proves that `pid` was still this process."""
    try:
        job.context.root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        signal.pidfd_send_signal(pidfd, 0)
        yield
    except ProcessLookupError as error:
        raise LaunchError("StartError", "the container has ended: nothing can be run in it any more") from error
    finally:
        if job.context.root >= 0:
            os.close(job.context.root)


@contextmanager
def _children_in(pidfd: int) -> Iterator[None]:
    """Children of this process are born in the container's pid namespace."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(pidfd, syscalls.CLONE_NEWPID)
        try:
            yield
        finally:
            syscalls.setns(own, syscalls.CLONE_NEWPID)
    finally:
        os.close(own)


def _start(job: init.Job, flags: int, cgroups: Cgroups, path: str) -> Launched:
    """Clones, and waits for the child's report."""
    reader, job.report = os.pipe2(os.O_CLOEXEC)
    try:
        pid, pidfd = _clone(job, flags)
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(job.report)
    try:
        report = _read_report(reader)
        if report != init.READY:
            raise _explain(job, report, cgroups, path)
        return Launched(pid, pidfd, start_ticks(pid))
    except BaseException:
        _end(pidfd)
        raise
    finally:
        os.close(reader)


def _clone(job: init.Job, flags: int) -> tuple[int, int]:
    """Signals stay blocked over the clone: none of the caller's handlers may run in the child."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid, pidfd = syscalls.clone3(flags, cgroup=job.entry.born_in, exit_signal=signal.SIGCHLD)
        if pid == 0:
            init.run(job)
        return pid, pidfd
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _read_report(reader: int) -> bytes:
    """All that the child says until it executes or ends. Raises LaunchError after START_TIMEOUT_S."""
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    report = b""
    while poller.poll(START_TIMEOUT_S * 1000):
        part = os.read(reader, 64)
        if not part:
            return report
        report += part
    text = f"the start did not finish within {START_TIMEOUT_S:.0f} s; is the node's disk overloaded?"
    raise LaunchError("CreateContainerError", text)


def _end(pidfd: int) -> None:
    """Kills and reaps a child that did not make it."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        pass  # reaped already: the caller ignores SIGCHLD
    os.close(pidfd)


def start_ticks(pid: int) -> int:
    """Field 22 of /proc/<pid>/stat (proc(5)): the start in clock ticks since boot. The name in it may hold anything."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        after_name = file.read().rpartition(b")")[2].split()
    return int(after_name[START_TICKS_FIELD - STAT_FIELDS_BEFORE_COMM_END - 1])


def _undo(cgroups: Cgroups, path: str, work: str) -> None:
    cgroups.kill(path)
    cgroups.wait_empty(path, REMOVE_WAIT_S)
    cgroups.remove(path)
    cleanup(work)


def _as_launch_error(error: BaseException) -> BaseException:
    if isinstance(error, CgroupError):
        return LaunchError("CreateContainerError", str(error))
    if isinstance(error, OSError):
        place = f" {error.filename}" if error.filename else ""
        return LaunchError("CreateContainerError", f"cannot prepare the container:{place}: {error.strerror}")
    return error


def _explain(job: init.Job, report: bytes, cgroups: Cgroups, path: str) -> LaunchError:
    """The child's numbers as an error for people."""
    record = report.removeprefix(init.READY)
    if len(record) != init.RECORD.size:
        if cgroups.oom_kills(path):
            text = "the memory limit is too small even to start the command (OOM); raise resources.limits.memory"
            return LaunchError("StartError", text)
        return LaunchError("StartError", "the process was killed before it could run the command")
    stage, detail, number = init.RECORD.unpack(record)
    if stage == init.EXECUTE:
        return _explain_execute(job, detail, number)
    if stage == init.USER and detail:
        return LaunchError("CreateContainerConfigError", _explain_user(job, detail))
    what = init.STAGE_NAMES.get(stage, f"stage {stage}")
    if stage == init.MOUNTS and detail < len(job.plan):
        what = job.plan[detail].describe()
    elif stage == init.USER and job.cwd_step is not None:
        what = job.cwd_step.describe()
    why = os.strerror(number) if number else "internal error"
    return LaunchError("CreateContainerError", f"cannot {what}: {why}")


def _explain_user(job: init.Job, code: int) -> str:
    user = os.fsdecode(job.user)
    return {
        users.NO_USER: f"the image's /etc/passwd has no user {user!r}; use a number in runAsUser",
        users.NO_GROUP: f"the image's /etc/group has no group for {user!r}; use a number in runAsGroup",
        users.BAD_ID: f"the id of user {user!r} is not a number from 0 to {users.MAX_ID}",
        users.IS_ROOT: "runAsNonRoot is set, but the container would run as root (uid 0); set runAsUser",
    }.get(code, f"the user {user!r} cannot be used")


def _explain_execute(job: init.Job, detail: int, number: int) -> LaunchError:
    command = os.fsdecode(job.argv[0])
    if number == errno.E2BIG:
        text = "command, args and environment together are too long for the kernel; shorten them"
        return LaunchError("ContainerCannotRun", text, COMMAND_NOT_EXECUTABLE)
    if number == errno.ENOENT and detail == init.NO_INTERPRETER:
        text = f"{command}: the program is in the image, but its interpreter or loader is not (see its first line)"
        return LaunchError("ContainerCannotRun", text, COMMAND_NOT_FOUND)
    if number == errno.ENOENT:
        where = "" if "/" in command else " in any folder of PATH (" + os.fsdecode(b":".join(job.path)) + ")"
        text = f"{command}: command not found in the image{where}; check command and args"
        return LaunchError("ContainerCannotRun", text, COMMAND_NOT_FOUND)
    why = "no known program format (a script needs a #! line)" if number == errno.ENOEXEC else os.strerror(number)
    return LaunchError("ContainerCannotRun", f"{command}: cannot be executed: {why}", COMMAND_NOT_EXECUTABLE)
