"""What runs in a new process between clone3(2) and execve(2). It becomes the user's command; no Python stays.

    parent                                 child
    clone3 ------------------------------> joins its cgroups, before anything else
    (closes its copy of the report)        namespaces, mounts, user, standard streams, root, limits, privileges
    reads the report <---- b"R" ---------- ready: all that is left is execve
                     <---- record -------- or: (stage, detail, errno), three 32-bit numbers, and the child ends
                     <---- end of file --- after b"R": execve succeeded; without it: the child was killed

From the moment the container's mounts are entered the child opens nothing by path, imports nothing and formats nothing:
all of that could run the image's code or the host's with the wrong rights. Standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import resource
import signal
import socket
import stat
import struct
import sys
import termios
from collections.abc import Callable, Sequence

from shoal.agent.runtime import caps, mounts, syscalls, users
from shoal.agent.runtime.cgroups import Entry

READY = b"R"
RECORD = struct.Struct("=iii")
# Stages, in the order in which they run.
JOIN, ISOLATE, NAMESPACES, MOUNTS, USER, STREAMS, ENTER, PRIVILEGES, EXECUTE = range(1, 10)
STAGE_NAMES = {
    JOIN: "join the cgroups",
    ISOLATE: "isolate the process",
    NAMESPACES: "enter the namespaces",
    MOUNTS: "build the file system",
    USER: "look the user up",
    STREAMS: "set the standard streams up",
    ENTER: "enter the root",
    PRIVILEGES: "give the privileges up",
    EXECUTE: "run the command",
}
# Details of EXECUTE.
NOT_FOUND, NOT_EXECUTABLE, NO_INTERPRETER = 0, 1, 2
REPORT_FD = 3
SAFE_FD = 10  # copies of the streams are kept from here on while 0, 1 and 2 are replaced
NOFILE_SOFT = 65_536
NOFILE_HARD = 1 << 20
TIOCSPTLCK, TIOCGPTPEER = 0x40045431, 0x5441  # ioctl_tty(2)
PTS_MAJORS = range(136, 144)
FILE_MODE_MASK = 0o022
NS_ALL = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWCGROUP
)


class Job:
    """All that the child needs, prepared by the parent: plain values and open descriptors."""

    def __init__(self, *, argv: Sequence[bytes], env: dict[bytes, bytes], path: Sequence[bytes]) -> None:
        self.argv = list(argv)
        self.env = env
        self.path = list(path)  # folders for a command without a slash
        self.entry = Entry(-1, [])
        self.sandbox: dict[int, int] = {}  # kind of namespace -> nsfs descriptor
        self.target = -1  # exec: pidfd of the container
        self.plan: list[mounts.Step] = []
        self.cwd_step: mounts.WorkingFolder | None = None  # exec: looked up in the running container
        self.user = b""
        self.run_as_user: int | None = None
        self.run_as_group: int | None = None
        self.non_root = False
        self.groups: list[int] = []  # besides those of the image
        self.capabilities = 0
        self.no_new_privs = False
        self.seccomp = b""
        self.oom_score_adj = 0
        self.streams = (0, 1, 2)
        self.terminal = False
        self.console: socket.socket | None = None  # takes the master of the terminal that the child makes
        self.report = -1
        # What the child finds out.
        self.context = mounts.Context()
        self.identity = users.Identity(0, 0, [])
        self.stage = JOIN
        self.detail = 0


def run(job: Job) -> None:
    """The child's life. Never returns and never raises."""
    try:
        for stage, action in STAGES:
            job.stage = stage
            action(job)
    except users.UserError as error:
        _report(job, error.code, 0)
    except OSError as error:
        _report(job, job.detail, error.errno or 0)
    except BaseException:
        _report(job, job.detail, 0)
    finally:
        os._exit(1)


def _report(job: Job, detail: int, number: int) -> None:
    try:
        os.write(job.report, RECORD.pack(job.stage, detail, number))
    except OSError:
        pass  # the parent is gone: nobody to tell


def _join(job: Job) -> None:
    job.entry.join()


def _isolate(job: Job) -> None:
    """Nothing of the parent's interpreter may act here: no imports, no collector, no handlers, no session."""
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    gc.disable()
    signal.set_wakeup_fd(-1)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    os.setsid()
    os.umask(0)
    _set_oom_score(job.oom_score_adj)
    try:
        syscalls.join_session_keyring()
    except OSError as error:
        if error.errno != errno.ENOSYS:  # a kernel without keys needs no keyring
            raise


def _set_oom_score(value: int) -> None:
    """A value below our own minimum needs CAP_SYS_RESOURCE; without it the lowest that is allowed stays."""
    fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    try:
        if syscalls.filesystem_type(fd) != syscalls.PROC_SUPER_MAGIC:
            raise OSError(errno.EXDEV, "/proc is not a proc file system")
        os.write(fd, b"%d" % value)
    except PermissionError:
        pass
    finally:
        os.close(fd)


def _namespaces(job: Job) -> None:
    """A new cgroup namespace shows what was joined as the root; the others are the sandbox's, or the container's."""
    if job.target >= 0:
        return  # all at once, after the look-ups
    syscalls.unshare(syscalls.CLONE_NEWCGROUP)
    for kind, fd in job.sandbox.items():
        syscalls.setns(fd, kind)


def _mounts(job: Job) -> None:
    for number, step in enumerate(job.plan):
        job.detail = number
        step.run(job.context)
    job.detail = 0


def _user(job: Job) -> None:
    root = job.context.root
    job.identity = users.find(root, job.user, job.run_as_user, job.run_as_group, job.non_root)
    if job.cwd_step is not None:
        job.cwd_step.run(job.context)


def _streams(job: Job) -> None:
    """Pipes and terminals become the user's, or /dev/stdout could not be opened; the host's null device is replaced."""
    if job.console is not None:
        job.streams = _own_terminal(job, job.console)
    own_null = -1
    if any(mounts.is_null(fd) for fd in job.streams):
        dev = job.context.mounts.get("dev", -1)  # also when a volume lies over it
        own_null = mounts.open_null(dev if dev >= 0 else mounts.make_folder(job.context.root, b"dev", mounts.STRICT))
    copies = []
    for fd in job.streams:
        source = own_null if mounts.is_null(fd) else fd
        copies.append(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, SAFE_FD))
        if _is_own_stream(os.fstat(source)):
            os.fchown(source, job.identity.uid, job.identity.gid)
    keep = fcntl.fcntl(job.report, fcntl.F_DUPFD_CLOEXEC, SAFE_FD)
    cwd = fcntl.fcntl(job.context.cwd, fcntl.F_DUPFD_CLOEXEC, SAFE_FD)
    root = fcntl.fcntl(job.context.root, fcntl.F_DUPFD_CLOEXEC, SAFE_FD)
    target = fcntl.fcntl(job.target, fcntl.F_DUPFD_CLOEXEC, SAFE_FD) if job.target >= 0 else -1
    for number, fd in enumerate(copies):
        os.dup2(fd, number, inheritable=True)
    os.dup2(keep, REPORT_FD, inheritable=False)
    job.report, job.context.cwd, job.context.root, job.target = REPORT_FD, cwd, root, target
    if job.terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _own_terminal(job: Job, console: socket.socket) -> tuple[int, int, int]:
    """A terminal of the container's own devpts, so that it has a name there; its master goes to our parent. Without
    one (a volume may lie over /dev) the streams stay what they are."""
    try:
        pts = job.context.mounts.get("pts", -1)
        if pts < 0:
            pts = syscalls.openat2(job.context.root, b"dev/pts", os.O_PATH | os.O_DIRECTORY, mounts.STRICT)
        master = syscalls.openat2(pts, b"ptmx", os.O_RDWR | os.O_NOCTTY, mounts.STRICT)
    except OSError:
        return job.streams
    if syscalls.filesystem_type(master) != syscalls.DEVPTS_SUPER_MAGIC:
        os.close(master)
        return job.streams
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    console.sendmsg([b"T"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", master))])
    os.close(master)
    return slave, slave, slave


def _is_own_stream(status: os.stat_result) -> bool:
    terminal = stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) in PTS_MAJORS
    return stat.S_ISFIFO(status.st_mode) or terminal


def _enter(job: Job) -> None:
    """From here on the container's tree is ours. Every other descriptor is closed before the change of folder, and the
    folder must lie inside the root (CVE-2024-21626)."""
    if job.target >= 0:
        syscalls.setns(job.target, NS_ALL)
    else:
        mounts.Enter().run(job.context)
    cwd = REPORT_FD + 1
    os.dup2(job.context.cwd, cwd, inheritable=False)
    syscalls.close_range(cwd + 1)
    os.fchdir(cwd)
    os.close(cwd)
    if not syscalls.getcwd().startswith(b"/"):
        raise OSError(errno.EXDEV, "outside")
    os.umask(FILE_MODE_MASK)
    _limit(resource.RLIMIT_NOFILE, NOFILE_SOFT, NOFILE_HARD)
    _limit(resource.RLIMIT_CORE, 0, resource.RLIM_INFINITY)


def _limit(kind: int, soft: int, hard: int) -> None:
    """Never above the own hard limit: raising it needs CAP_SYS_RESOURCE."""
    _, ceiling = resource.getrlimit(kind)
    if ceiling != resource.RLIM_INFINITY:
        hard = ceiling if hard == resource.RLIM_INFINITY else min(hard, ceiling)
        soft = min(soft, hard)
    resource.setrlimit(kind, (soft, hard))


def _privileges(job: Job) -> None:
    """Without no_new_privs the filter needs CAP_SYS_ADMIN, so it comes first; with it, last."""
    caps.bound(job.capabilities)
    if job.seccomp and not job.no_new_privs:
        syscalls.load_seccomp(job.seccomp)
    identity = job.identity
    os.setgroups(sorted({*identity.groups, *job.groups}))
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    own = job.capabilities if identity.uid == 0 else 0
    syscalls.capset(own, own, 0)
    if job.no_new_privs:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        if job.seccomp:
            syscalls.load_seccomp(job.seccomp)


def _execute(job: Job) -> None:
    """Tries the command, or each folder of PATH; only execve itself looks for the file."""
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            syscalls.default_signal(number)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.write(job.report, READY)
    command = job.argv[0]
    candidates = [command] if b"/" in command else [folder + b"/" + command for folder in job.path]
    job.env.setdefault(b"HOME", job.identity.home)
    worst = errno.ENOENT
    for candidate in candidates:
        try:
            os.execve(candidate, job.argv, job.env)
        except (FileNotFoundError, NotADirectoryError):
            if os.access(candidate, os.F_OK):
                job.detail = NO_INTERPRETER
        except PermissionError as error:
            worst = error.errno or errno.EACCES
    if worst != errno.ENOENT:
        job.detail = NOT_EXECUTABLE
    raise OSError(worst, "execve")


STAGES: Sequence[tuple[int, Callable[[Job], None]]] = (
    (JOIN, _join),
    (ISOLATE, _isolate),
    (NAMESPACES, _namespaces),
    (MOUNTS, _mounts),
    (USER, _user),
    (STREAMS, _streams),
    (ENTER, _enter),
    (PRIVILEGES, _privileges),
    (EXECUTE, _execute),
)
