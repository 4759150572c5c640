"""The first process of a pod's shared pid namespace: it reaps, and does nothing else (shareProcessNamespace).

It is a fork of the supervisor, in a cgroup of its own below the pod's, and outlives the supervisor. Its namespace is
bound as `pid` in the sandbox's folder. When it ends, the kernel ends all that is in the namespace; then the next start
makes another. Standard library only; called from one thread, since it forks.
"""

from __future__ import annotations

import gc
import os
import signal

from shoal.agent.runtime import namespaces, records, syscalls
from shoal.agent.runtime.cgroups import Cgroups

GROUP = "_holder"  # no container's name has an underscore
FLAGS = syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWCGROUP
OOM_SCORE = b"-998"  # as a pause container's
READY, MAX_REPORT = b"R", 1000
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def ensure(folder: str, cgroups: Cgroups, pod_path: str) -> None:
    """Makes the holder of the sandbox `folder` unless it lives. Raises OSError, CgroupError, SandboxError."""
    if alive(folder):
        return
    reap(folder)
    namespaces.unbind(f"{folder}/pid")
    path = f"{pod_path}/{GROUP}"
    cgroups.kill(path)  # one that an interrupted call left
    cgroups.wait_empty(path, namespaces.EMPTY_SECONDS)
    cgroups.remove(path)  # the kernel kills at once what is born in a cgroup that has been killed before
    cgroups.create(path)
    entry = cgroups.entry(path)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid, pidfd = syscalls.clone3(FLAGS, cgroup=entry.born_in, exit_signal=signal.SIGCHLD)
        if pid == 0:
            _hold(folder, entry.doors, writer)
        os.close(pidfd)
        os.close(writer)
        writer = -1
        report = os.read(reader, MAX_REPORT)
        if report != READY:
            os.waitpid(pid, 0)
            why = report.decode(errors="replace") or "it was killed"
            raise namespaces.SandboxError(f"the first process of the pod's pid namespace could not start: {why}")
        namespaces.bind(f"/proc/{pid}/ns/pid", f"{folder}/pid")
        with open(f"{folder}/holder", "w") as file:
            file.write(f"{pid} {records.start_ticks(pid)}\n")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        entry.close()
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def alive(folder: str) -> bool:
    """Whether the sandbox has a living holder, and its namespace is bound."""
    pid, ticks = of(folder)
    return pid > 0 and records.start_ticks(pid) == ticks and namespaces.is_namespace(f"{folder}/pid")


def reap(folder: str) -> None:
    """Takes the status of a holder that has ended, if it was our child."""
    pid, _ = of(folder)
    try:
        if pid:
            os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def of(folder: str) -> tuple[int, int]:
    """(pid, start ticks) as they were written down; (0, 0) without a holder."""
    try:
        with open(f"{folder}/holder") as file:
            pid, ticks = file.read().split()
        return int(pid), int(ticks)
    except (OSError, ValueError):
        return 0, 0


def _hold(folder: str, doors: list[int], ready: int) -> NoReturn:
    """The holder's life. Signals of the pod's own processes do not reach the first process unless it handles them."""
    try:
        for door in doors:
            os.write(door, b"0")
        gc.disable()
        os.setsid()
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        _protect()
        _leave_node(folder)
        os.write(ready, READY)
        syscalls.close_range(0)
        _drop_privileges()
        while True:
            number = signal.sigwait({signal.SIGCHLD})
            while number:
                try:
                    number = os.waitpid(-1, os.WNOHANG)[0]
                except ChildProcessError:
                    number = 0
    except BaseException as error:
        os.write(ready, str(error).encode(errors="replace")[:MAX_REPORT])
    finally:
        os._exit(1)


def _leave_node(folder: str) -> None:
    """Into the pod's namespaces and an empty root: a container that may trace (CAP_SYS_PTRACE) sees nothing here."""
    for kind, flag in namespaces.KINDS.items():
        fd = os.open(f"{folder}/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(fd, flag)
        os.close(fd)
    syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    empty = syscalls.new_mount(b"tmpfs", {b"size": b"0", b"mode": b"555"}, syscalls.MOUNT_ATTR_RDONLY)
    place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    syscalls.move_mount(empty, place)
    os.fchdir(empty)
    syscalls.pivot_root(b".", b".")
    syscalls.umount2(b".", syscalls.MNT_DETACH)
    os.chdir("/")


def _protect() -> None:
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, OOM_SCORE)
    except PermissionError:
        pass  # needs CAP_SYS_RESOURCE; the inherited score is as low
    finally:
        os.close(fd)


def _drop_privileges() -> None:
    """It needs none."""
    syscalls.capset(0, 0, 0)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
