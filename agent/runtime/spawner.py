"""The spawner: one per node, forks a supervisor per pod and keeps what must not die with a supervisor.

Started as `python -S -E -I .../boot.py spawner --config FILE`. It runs from a sealed copy of the interpreter: no
container can reach the host's (CVE-2019-5736), is the reaper of orphaned containers (PR_SET_CHILD_SUBREAPER), and holds
duplicates of all pipes and pidfds. SIGHUP replaces it by a new version of itself (execve: children and descriptors
stay); SIGTERM ends it and leaves the pods alone. wire.py draws what it says. Standard library only, single-threaded.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass, field

from shoal.agent.runtime import cgroups as cgroup_kinds
from shoal.agent.runtime import executions, exits, explain, records, supervisor, syscalls, wire
from shoal.agent.runtime.settings import Settings, SettingsError, load
from shoal.agent.runtime.wire import Kept

ATTACH_SECONDS = 0.05  # first pause before a supervisor is looked for again; doubles
ATTACH_LONGEST = 1.0
STEADY_SECONDS = 10.0  # after which a supervisor counts as healthy
READY_SECONDS = 10.0  # how long "ready" waits for supervisors
SWEEP_SECONDS = 60.0  # before what could not be deleted is tried again
MAX_ORPHANS = 1024  # wait statuses of processes that nobody has named yet
OOM_SCORE = "-998"  # of spawner and supervisors; needs CAP_SYS_RESOURCE
LOG_BYTES = 1024 * 1024
SIGNALS = (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
HEAP_KEPT = 4 * 1024 * 1024  # bytes of free heap that a supervisor keeps: a flood of output needs them for each read
MEMFD = "/memfd:shoal-python"


@dataclass(slots=True)
class Pod:
    """A pod's supervisor as the spawner sees it."""

    uid: str
    pid: int = 0
    link: wire.Channel | None = None
    ready: bool = False
    kept: dict[str, Kept] = field(default_factory=dict)
    failures: int = 0


class Spawner:
    """The state and the loop."""

    def __init__(self, settings: Settings, listener: socket.socket, lock: int) -> None:
        self.settings, self.listener, self.lock = settings, listener, lock
        self.cgroups = cgroup_kinds.open_cgroups(settings.cgroup_root)
        self.node = supervisor.Node(settings, self.cgroups, settings.current_boot())
        self.poller = wire.Poller()
        self.pods: dict[str, Pod] = {}
        self.clients: set[wire.Channel] = set()
        self.subscribers: set[wire.Channel] = set()
        self.pending: dict[int, tuple[wire.Channel, int, str, str]] = {}  # relayed: asker, its id, pod, operation
        self.waiting: list[tuple[wire.Channel, int]] = []  # for "ready"
        self.orphans: dict[int, int] = {}  # pid -> wait status
        self.retiring: set[int] = set()  # supervisors whose pods are removed, until they have ended
        self.relayed = 0
        self.sweeper, self.trash = 0, True
        self.upgrade = False
        self.wakeup: tuple[socket.socket, socket.socket] | None = None

    # -- the loop

    def run(self) -> None:
        """Serves until SIGTERM."""
        self._watch_signals()
        self.poller.watch(self.listener.fileno(), self._accept)
        for uid in sorted({*records.pods(self.settings.data), *self.pods}):
            self._attach(self.pods.setdefault(uid, Pod(uid)))
        self._sweep()
        gc.collect()
        gc.freeze()
        while self.poller.running:
            try:
                self.poller.step()
            except Exception:  # one pod's trouble is not the others'
                log(traceback.format_exc())
                time.sleep(ATTACH_SECONDS)

    def _watch_signals(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.wakeup = ours, theirs
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        signal.siginterrupt(signal.SIGCHLD, False)
        self.poller.watch(ours.fileno(), lambda: self._on_signals(ours))

    def _on_signals(self, sock: socket.socket) -> None:
        numbers = sock.recv(4096)
        if signal.SIGCHLD in numbers:
            self._reap()
        if signal.SIGTERM in numbers:
            self.poller.running = False
        elif signal.SIGHUP in numbers:
            replace_image(self)

    def _accept(self) -> None:
        sock = wire.accept(self.listener)
        if sock is not None:
            self.clients.add(wire.Channel(self.poller, sock, self._on_request, self._on_client_gone))

    def _on_client_gone(self, channel: wire.Channel) -> None:
        self.clients.discard(channel)
        self.subscribers.discard(channel)
        self.waiting = [entry for entry in self.waiting if entry[0] is not channel]

    # -- requests of agents

    def _on_request(self, channel: wire.Channel, message: wire.Message, fds: list[int]) -> None:
        wire.close_all(fds)
        number, op = message.get("id"), str(message.get("op"))
        if not isinstance(number, int):
            channel.close()
            return
        try:
            answer = self._handle(channel, number, op, message)
        except (wire.WireError, OSError) as fault:
            answer = {"error": {"kind": "fault", "message": explain.in_words(fault)}}
        if answer is not None:
            channel.send({"id": number, **answer})

    def _handle(self, channel: wire.Channel, number: int, op: str, message: wire.Message) -> wire.Message | None:
        """The answer, or None when it comes later."""
        if op == "ping":
            return {"ok": {"settings": json.loads(self.settings.to_json()), "pid": os.getpid()}}
        if op == "subscribe":
            self.subscribers.add(channel)
            return {"ok": {}}
        if op == "pods":
            return {"ok": {"pods": {pod.uid: pod.pid for pod in self.pods.values()}}}
        if op == "ready":
            self.waiting.append((channel, number))
            self.poller.after(READY_SECONDS, "ready", lambda: self._tell_ready(late=True))
            self._tell_ready()
            return None
        uid = wire.checked_name(message.get("pod"), "pod uid")
        pod = self.pods.get(uid)
        if pod is None:
            if op in ("remove_sandbox", "remove", "signal"):
                return {"ok": {}}
            if op != "ensure_sandbox":
                return {"error": {"kind": "fault", "message": f"pod {uid} has no sandbox: call ensure_sandbox first"}}
            os.makedirs(records.pod_folder(self.settings.data, uid), mode=0o700, exist_ok=True)
            pod = self.pods[uid] = Pod(uid)
            self._attach(pod)
        if pod.link is None:
            return gone(uid)
        self.relayed += 1
        self.pending[self.relayed] = channel, number, uid, op
        pod.link.send({**message, "id": self.relayed})
        return None

    def _tell_ready(self, *, late: bool = False) -> None:
        unready = [pod.uid for pod in self.pods.values() if not pod.ready]
        if unready and not late:
            return
        for channel, number in self.waiting:
            channel.send({"id": number, "ok": {"unready": unready}})
        self.waiting = []
        self.poller.cancel("ready")

    # -- supervisors

    def _attach(self, pod: Pod) -> None:
        """Connects to the pod's supervisor; forks one when none is alive (its lock is free)."""
        if self.pods.get(pod.uid) is not pod or pod.link is not None:
            return
        self._reap()
        try:
            if is_free(self.settings.lock(pod.uid)):
                if not os.path.isdir(records.pod_folder(self.settings.data, pod.uid)):
                    self._drop_pod(pod)
                    return
                self._fork_supervisor(pod)
            sock = wire.connect(self.settings.socket(pod.uid))
        except OSError as fault:
            log(f"no supervisor for pod {pod.uid} yet: {fault}")
            self._attach_later(pod)
            return
        pod.link = wire.Channel(self.poller, sock, lambda _, m, fds: self._on_event(pod, m, fds), self._on_link_gone)
        pod.link.send({"op": "adopt"})
        self.poller.after(STEADY_SECONDS, ("steady", pod.uid), lambda: setattr(pod, "failures", 0))

    def _attach_later(self, pod: Pod) -> None:
        wait = min(ATTACH_SECONDS * 2**pod.failures, ATTACH_LONGEST) if pod.failures else 0.0
        pod.failures += 1
        self.poller.cancel(("steady", pod.uid))
        self.poller.after(wait, ("attach", pod.uid), lambda: self._attach(pod))

    def _fork_supervisor(self, pod: Pod) -> None:
        """The replacement inherits the duplicates; of all else in this process it keeps nothing."""
        listener = wire.listen(self.settings.socket(pod.uid))
        try:
            gc.freeze()
            pid = os.fork()
            if pid == 0:
                run_child(self, listener, pod)
        finally:
            listener.close()
        pod.pid = pid

    def abandon(self, keep: set[int]) -> None:
        """In a forked child: leaves every descriptor that is not in `keep` to the spawner."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.poller.close()
        for channel in [*self.clients, *(pod.link for pod in self.pods.values() if pod.link)]:
            channel.abandon()
        for sock in (self.listener, *(self.wakeup or ())):
            if sock.fileno() not in keep:
                sock.detach()
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in keep:
                wire.close_all([int(name)])

    def _on_link_gone(self, channel: wire.Channel) -> None:
        for pod in list(self.pods.values()):
            if pod.link is channel:
                pod.link, pod.ready = None, False
                self._fail_pending(pod.uid)
                self._attach_later(pod)

    def _fail_pending(self, uid: str) -> None:
        for number, (channel, theirs, pod, _) in list(self.pending.items()):
            if pod == uid:
                del self.pending[number]
                channel.send({"id": theirs, **gone(uid)})

    def _drop_pod(self, pod: Pod) -> None:
        """The pod's sandbox has been removed."""
        self.pods.pop(pod.uid, None)
        if pod.pid:
            self.retiring.add(pod.pid)
        self.poller.cancel(("attach", pod.uid))
        self.poller.cancel(("steady", pod.uid))
        for kept in pod.kept.values():
            kept.close()
        if pod.link is not None:
            pod.link.close()
        self._fail_pending(pod.uid)
        self._tell_ready()

    def _on_event(self, pod: Pod, message: wire.Message, fds: list[int]) -> None:
        event = message.get("event")
        if event == "keep" and len(fds) == len(message["fds"]):
            self._keep(pod, message, fds)
            return
        if event is None:
            self._on_answer(pod, message, fds)
        elif event == "drop":
            kept = pod.kept.pop(message["key"], None)
            if kept is not None:
                kept.close()
        elif event == "ready":
            pod.ready = True
            self._tell_ready()
        elif event == "trash":
            self.trash = True
            self._sweep()
        elif event in ("started", "exited"):
            for channel in list(self.subscribers):
                channel.send(message)
        wire.close_all(fds)

    def _on_answer(self, pod: Pod, message: wire.Message, fds: list[int]) -> None:
        entry = self.pending.pop(message.get("id", 0), None)
        if entry is None:
            return
        channel, number, _, op = entry
        channel.send({**message, "id": number}, fds)
        if op == "remove_sandbox" and "ok" in message:
            self._drop_pod(pod)

    def _keep(self, pod: Pod, message: wire.Message, fds: list[int]) -> None:
        """Takes duplicates, in place of earlier ones of the same key."""
        key = message["key"]
        old = pod.kept.pop(key, None)
        if old is not None:
            old.close()
        kept = pod.kept[key] = Kept(key, dict(zip(message["fds"], fds, strict=True)), message["facts"])
        pid = kept.facts.get("pid", 0)
        status = self.orphans.pop(pid, None)
        # Pids are used again: only the pidfd tells whether it was this process that ended.
        if status is not None and "pidfd" in kept.fds and executions.ends_within(kept.fds["pidfd"], 0):
            self._on_orphan(pod, kept, pid, status)

    # -- children that ended

    def _reap(self) -> None:
        """Waits for everything that has ended: supervisors, the sweeper, orphaned containers."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._on_child(pid, status)

    def _on_child(self, pid: int, status: int) -> None:
        if pid == self.sweeper:
            self.sweeper = 0
            if self.trash or status:
                self.poller.after(0 if self.trash else SWEEP_SECONDS, "sweep", self._sweep)
                self.trash = True
            return
        if pid in self.retiring:
            self.retiring.remove(pid)
            return
        for pod in self.pods.values():
            if pod.pid == pid:
                pod.pid = 0  # another process may get this pid
                if status:
                    log(f"the supervisor of pod {pod.uid} ended with status {status}")
                return
            for kept in pod.kept.values():
                if kept.facts.get("pid") == pid:
                    self._on_orphan(pod, kept, pid, status)
                    return
        self.orphans[pid] = status
        while len(self.orphans) > MAX_ORPHANS:
            del self.orphans[next(iter(self.orphans))]

    def _on_orphan(self, pod: Pod, kept: Kept, pid: int, status: int) -> None:
        """A container (or exec) whose supervisor had died: its code is known here alone."""
        if kept.key.startswith("run/"):
            name, attempt = kept.facts["run"]
            path = self.cgroups.container_path(pod.uid, name, attempt)
            work = records.work_folder(self.settings.data, pod.uid, name, attempt)
            folder = records.run_folder(self.settings.data, pod.uid, name, attempt)
            try:
                records.write_exit(folder, exits.of_status(status, self.cgroups, path, work))
            except OSError as fault:
                log(f"cannot record the end of {pod.uid}/{name}/{attempt}: {fault}")
        elif pod.link is None:
            executions.write_code(kept.fds["status"], status)
        if pod.link is not None:
            pod.link.send({"op": "reaped", "pid": pid, "status": status})

    # -- deleting out of line

    def _sweep(self) -> None:
        """One low-priority child at a time deletes the trash."""
        if self.sweeper or not self.trash or not os.path.isdir(f"{self.settings.data}/trash"):
            return
        self.trash = False
        pid = os.fork()
        if pid == 0:
            run_sweeper(self)
        self.sweeper = pid


def gone(uid: str) -> wire.Message:
    return {"error": {"kind": "gone", "message": f"the supervisor of pod {uid} is being replaced; try again"}}


def run_child(spawner: Spawner, listener: socket.socket, pod: Pod) -> None:
    """A supervisor's life; never returns into the spawner's frames."""
    code = 1
    try:
        kept = pod.kept
        held = {fd for entry in kept.values() for fd in entry.fds.values()}
        spawner.abandon({listener.fileno(), *held})
        code = supervisor.main(spawner.node, pod.uid, listener, kept)
    except BaseException:
        log(f"supervisor of pod {pod.uid}: {traceback.format_exc()}")
    finally:
        os._exit(code)


def run_sweeper(spawner: Spawner) -> None:
    """Deletes, as a forked child."""
    code = 1
    try:
        spawner.abandon(set())
        os.nice(19)
        code = 1 if records.sweep(spawner.settings.data) else 0
    finally:
        os._exit(code)


def is_free(path: str) -> bool:
    """Whether nobody holds the lock, so that no supervisor of that pod is alive."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)  # which gives the lock back
    return True


def log(text: str) -> None:
    """One entry in the log on stderr, which never grows over its limit; a failing log is no reason to fail."""
    try:
        if os.fstat(2).st_size > LOG_BYTES:
            os.ftruncate(2, 0)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        os.write(2, f"{stamp} {os.getpid()} {text.rstrip()}\n".encode(errors="replace"))
    except OSError:
        pass


# -- becoming a spawner


def seal_interpreter() -> None:
    """Continues in a sealed copy of the interpreter (memfd_create(2)); returns when that has been done."""
    if os.readlink("/proc/self/exe").startswith(MEMFD):
        return
    flags = os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC
    memfd = os.memfd_create(MEMFD.removeprefix("/memfd:"), flags)
    with open("/proc/self/exe", "rb") as source:
        size = os.fstat(source.fileno()).st_size
        done = 0
        while done < size:
            done += os.sendfile(memfd, source.fileno(), done, size - done)
    fcntl.fcntl(memfd, syscalls.F_ADD_SEALS, syscalls.SEALS_ALL)
    # argv[0] names the real one: from there Python finds its standard library.
    os.execve(memfd, [sys.executable, *sys.orig_argv[1:]], os.environ)


def replace_image(spawner: Spawner) -> None:
    """execve of the same command line: lock, listener and duplicates go over by number, children stay ours."""
    state: wire.Message = {"listener": spawner.listener.fileno(), "lock": spawner.lock, "pods": {}}
    for pod in spawner.pods.values():
        kept = [[entry.key, entry.fds, entry.facts] for entry in pod.kept.values()]
        state["pods"][pod.uid] = {"pid": pod.pid, "kept": kept}
        for entry in pod.kept.values():
            for fd in entry.fds.values():
                os.set_inheritable(fd, True)
    memfd = os.memfd_create("shoal-spawner-state", 0)
    os.write(memfd, json.dumps(state).encode())
    for fd in (spawner.lock, spawner.listener.fileno()):
        os.set_inheritable(fd, True)
    argv = [word for word in sys.orig_argv[1:] if not word.startswith("--state=")]
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the new version handles them
    log("continues as a new version of itself")
    os.execv(sys.executable, [sys.executable, *argv, f"--state={memfd}"])


def restore(settings: Settings, memfd: int) -> Spawner:
    """The other half of replace_image."""
    with os.fdopen(memfd, "rb") as file:
        file.seek(0)
        state = json.load(file)
    listener = socket.socket(fileno=state["listener"])
    for fd in (state["listener"], state["lock"]):
        os.set_inheritable(fd, False)
    spawner = Spawner(settings, listener, state["lock"])
    for uid, held in state["pods"].items():
        pod = spawner.pods[uid] = Pod(uid, held["pid"])
        for key, fds, facts in held["kept"]:
            pod.kept[key] = Kept(key, fds, facts)
            for fd in fds.values():
                os.set_inheritable(fd, False)
    return spawner


def take_over(settings: Settings) -> Spawner | None:
    """A fresh spawner with the node's lock, or None when another one is alive."""
    lock = os.open(f"{settings.run}/spawner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    os.truncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return Spawner(settings, wire.listen(f"{settings.run}/spawner.sock"), lock)


def harden(settings: Settings) -> None:
    """Own session and cgroup, reaper of orphans, closed to /proc's readers, the last one to be killed for memory."""
    if os.getsid(0) != os.getpid() and os.getpgid(0) != os.getpid():
        os.setsid()
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    groups = cgroup_kinds.open_cgroups(settings.cgroup_root)
    system = f"{settings.cgroup_root.strip('/')}/system"
    groups.create(system)
    groups.enter(system)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(OOM_SCORE)
    except OSError:
        pass  # without CAP_SYS_RESOURCE
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt"):  # glibc; else each read maps and unmaps its buffers, at three times the cost
        allocator.mallopt(M_TRIM_THRESHOLD, HEAP_KEPT)
        allocator.mallopt(M_MMAP_THRESHOLD, HEAP_KEPT)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0o077)
    os.chdir("/")


def main() -> int:
    """The program. Exit codes: 0 ended or another one is alive, 1 cannot run, 2 wrong arguments."""
    if len(sys.argv) < 3 or sys.argv[1] != "--config":
        sys.stderr.write("usage: python -S -E -I boot.py spawner --config FILE\n")
        return 2
    seal_interpreter()
    try:
        settings = load(sys.argv[2])
        settings.make_folders()
        harden(settings)
        state = sys.argv[3].removeprefix("--state=") if len(sys.argv) > 3 else ""
        spawner = restore(settings, int(state)) if state else take_over(settings)
    except (SettingsError, cgroup_kinds.CgroupError, OSError) as fault:
        log(f"cannot run: {fault}")
        return 1
    if spawner is None:
        return 0
    spawner.run()
    return 0
