"""Starts a container, or a command inside a running one: prepares everything, clones, waits until execve has succeeded.

Called by a single-threaded process (a supervisor), which becomes the parent. Standard library only.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from shoal.agent.runtime import init, mounts, namespaces, syscalls
from shoal.agent.runtime.cgroups import Cgroups
from shoal.agent.runtime.explain import LaunchError as LaunchError
from shoal.agent.runtime.explain import as_launch_error, explain
from shoal.agent.runtime.prepare import clean, limits, make_job, make_plan
from shoal.agent.runtime.trees import delete_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = Mapping[str, Any]  # the JSON form of port.ContainerSpec

START_TIMEOUT_S = 60.0  # until execve; a slow disk may take its time, a hung one must not hang the supervisor
START_TICKS_FIELD = 22  # of /proc/<pid>/stat, counted from 1
STAT_FIELDS_BEFORE_COMM_END = 2
REMOVE_WAIT_S = 5.0


class Launched:
    """A process whose execve has succeeded. `pid` is the caller's view; the caller owns `pidfd` and reaps. `terminal`
    is the master of its own terminal, the caller's too, or -1: then it has the streams that it was given."""

    __slots__ = ("pid", "pidfd", "start_ticks", "terminal")

    def __init__(self, pid: int, pidfd: int, start_ticks: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.start_ticks = start_ticks
        self.terminal = -1


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
    if cgroups.populated(path):
        raise LaunchError("CreateContainerError", f"this run has been started already: processes live in {path}")
    try:
        job = make_job(spec, spec["argv"], (stdin, stdout, stderr), seccomp_bpf, terminal)
        job.plan = make_plan(spec, work, sandbox, cgroups.views(path))
        cgroups.create(path)
        cgroups.limit(path, limits(spec), group_oom=True)
        if not spec.get("privileged"):
            cgroups.allow_devices(path)
        with _doors(job, cgroups, path), _sandbox(job, sandbox), _processes(sandbox) as flags:
            return _start(job, syscalls.CLONE_NEWNS | flags, cgroups, path)
    except BaseException as error:
        _undo(cgroups, path, work)
        raise as_launch_error(error) from error


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
    branch: str = "",
    timeout_s: float = START_TIMEOUT_S,
) -> Launched:
    """Starts `argv` inside the running container whose PID 1 is `pid`: its namespaces, cgroup (or the branch of it),
    user, capabilities, profile, environment and working folder. Raises LaunchError."""
    harden_caller()
    path = container_cgroup(spec, cgroups)
    try:
        job = make_job(spec, argv, (stdin, stdout, stderr), seccomp_bpf, terminal)
        job.target = pidfd
        job.cwd_step = mounts.WorkingFolder(clean(spec["cwd"]).strip("/"))
        with _container_root(job, pid, pidfd), _doors(job, cgroups, path, branch), _children_in(pidfd):
            return _start(job, 0, cgroups, path, min(timeout_s, START_TIMEOUT_S))
    except BaseException as error:
        raise as_launch_error(error) from error


def cleanup(work: str) -> None:
    """Deletes a run's folders. Its mounts lived in the container's mount namespace and ended with it. Tolerant."""
    delete_tree(work)


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


@contextmanager
def _doors(job: init.Job, cgroups: Cgroups, path: str, branch: str = "") -> Iterator[None]:
    job.entry = cgroups.entry(path, branch)
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
def _processes(folder: str) -> Iterator[int]:
    """The clone's flag: a pid namespace of its own; none while children are born in the one that the sandbox has."""
    if not namespaces.is_namespace(f"{folder}/pid"):
        yield syscalls.CLONE_NEWPID
        return
    shared = os.open(f"{folder}/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _children_in(shared):
            yield 0
    finally:
        os.close(shared)


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
def _children_in(namespace: int) -> Iterator[None]:
    """Children of this process are born in the pid namespace of an nsfs file, or of a container's pidfd."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(namespace, syscalls.CLONE_NEWPID)
        try:
            yield
        finally:
            syscalls.setns(own, syscalls.CLONE_NEWPID)
    finally:
        os.close(own)


def _start(job: init.Job, flags: int, cgroups: Cgroups, path: str, timeout_s: float = START_TIMEOUT_S) -> Launched:
    """Clones, and waits for the child's report."""
    reader, job.report = os.pipe2(os.O_CLOEXEC)
    ours: socket.socket | None = None
    if job.terminal:
        ours, job.console = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        pid, pidfd = _clone(job, flags)
    except BaseException:
        os.close(reader)
        if ours is not None:
            ours.close()
        raise
    finally:
        os.close(job.report)
        if job.console is not None:
            job.console.close()
    try:
        report = _read_report(reader, timeout_s)
        if report != init.READY:
            raise explain(job, report, cgroups, path)
        launched = Launched(pid, pidfd, start_ticks(pid))
        if ours is not None:
            launched.terminal = _master(ours)
        return launched
    except BaseException:
        _end(pidfd)
        raise
    finally:
        os.close(reader)
        if ours is not None:
            ours.close()


def _master(console: socket.socket) -> int:
    """The master that the child has sent, or -1."""
    try:
        _, fds, _, _ = socket.recv_fds(console, 1, 1)
    except BlockingIOError:
        return -1
    for fd in fds:
        os.set_inheritable(fd, False)
    return fds[0] if fds else -1


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


def _read_report(reader: int, timeout_s: float) -> bytes:
    """All that the child says until it executes or ends. Raises LaunchError after a silence of `timeout_s`."""
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    report = b""
    while poller.poll(timeout_s * 1000):
        part = os.read(reader, 64)
        if not part:
            return report
        report += part
    text = f"the start did not finish within {timeout_s:.0f} s; is the node's disk overloaded?"
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
