"""The default seccomp profile: our own list of allowed calls, compiled once to BPF. See docs/adr/0006-seccomp-list.md.

Runs in the agent (it needs libseccomp through pyseccomp); the spawner gets the finished bytes. What is not listed fails
with EPERM. Other instruction sets of the same kernel (i386, x32) are refused whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyseccomp

FORMAT = 1  # raised when the compilation below changes

ALLOWED = {
    "files": """
        access chdir chmod chown close close_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fallocate fchdir
        fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync flock fstat fstatfs fsync ftruncate getcwd getdents
        getdents64 ioctl lchown link linkat lseek lstat mkdir mkdirat mknod mknodat newfstatat open openat openat2
        pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename renameat
        renameat2 rmdir stat statfs statx symlink symlinkat sync sync_file_range syncfs truncate umask unlink unlinkat
        utime utimensat utimes write writev cachestat""",
    "extended attributes": """
        fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
        lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat""",
    "copying and notification": """
        copy_file_range sendfile splice tee vmsplice inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
        io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit""",
    "memory": """
        brk madvise membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap mseal msync munlock
        munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages map_shadow_stack""",
    "processes and threads": """
        arch_prctl capget capset execve execveat exit exit_group fork vfork futex futex_requeue futex_wait futex_waitv
        futex_wake get_robust_list get_thread_area getegid geteuid getgid getgroups getpgid getpgrp getpid getppid
        getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid pidfd_open pidfd_send_signal prctl
        prlimit64 rseq set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setpgid
        setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid wait4 waitid ioprio_get ioprio_set
        seccomp landlock_add_rule landlock_create_ruleset landlock_restrict_self chroot""",
    "debugging the own processes": "ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd",
    "scheduling": """
        sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
        sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
        sched_yield getcpu""",
    "signals": """
        kill pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
        rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sigaltstack signalfd signalfd4 tgkill tkill""",
    "time": """
        alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time timer_create
        timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times
        adjtimex clock_adjtime""",
    "waiting": """
        epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 poll ppoll pselect6
        select pipe pipe2""",
    "sockets": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg
        sendmsg sendto setsockopt shutdown socketpair""",
    "System V and POSIX messages": """
        mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl
        semget semop semtimedop shmat shmctl shmdt shmget""",
    "the machine, read only": "getrandom sysinfo uname",
}
# clone() with any of these would make a namespace: CLONE_NEW{TIME,NS,CGROUP,UTS,IPC,USER,PID,NET}.
NAMESPACE_FLAGS = 0x7E020080
# clone() keeps the low byte for the exit signal, where CLONE_NEWTIME's bit lies; the kernel ignores it there.
CLONE_REFUSED = NAMESPACE_FLAGS & ~0xFF
LOW_32 = 0xFFFFFFFF  # the kernel looks at an int; the filter must not look at more
FAMILIES = {"unix": 1, "inet": 2, "inet6": 10, "netlink": 16, "packet": 17}
# Linux, Linux32, both with no randomisation of addresses, and the question which it is.
PERSONALITIES = (0x0, 0x0008, 0x40000, 0x40008, 0x20000, 0x20008, LOW_32)
# libc asks clone3 first and falls back to clone (whose flags can be seen) only on ENOSYS.
NOT_THERE = ("clone3",)
ATTRIBUTE_BAD_ARCHITECTURE = 2  # SCMP_FLTATR_ACT_BADARCH
ATTRIBUTE_OPTIMIZE = 8  # SCMP_FLTATR_CTL_OPTIMIZE
BINARY_TREE = 2


class ProfileError(Exception):
    """The profile could not be compiled or kept; the message says why."""


def allowed() -> Iterator[str]:
    """The names of all calls that are allowed whatever their arguments are."""
    for names in ALLOWED.values():
        yield from names.split()


def compile_profile() -> bytes:
    """The profile as an array of struct sock_filter for this machine. Takes 30 to 100 ms. Raises ProfileError."""
    refuse = pyseccomp.ERRNO(errno.EPERM)
    try:
        profile = pyseccomp.SyscallFilter(refuse)
        profile.set_attr(ATTRIBUTE_BAD_ARCHITECTURE, refuse)
        profile.set_attr(ATTRIBUTE_OPTIMIZE, BINARY_TREE)
        for name in allowed():
            _add(profile, pyseccomp.ALLOW, name)
        for name in NOT_THERE:
            _add(profile, pyseccomp.ERRNO(errno.ENOSYS), name)
        _add(profile, pyseccomp.ALLOW, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, CLONE_REFUSED, 0))
        for family in FAMILIES.values():
            _add(profile, pyseccomp.ALLOW, "socket", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, LOW_32, family))
        for value in PERSONALITIES:
            _add(profile, pyseccomp.ALLOW, "personality", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, LOW_32, value))
        with tempfile.TemporaryFile() as file:
            profile.export_bpf(file)
            file.seek(0)
            return file.read()
    except OSError as error:
        raise ProfileError(f"libseccomp cannot compile the profile: {error}") from error


def _add(profile: pyseccomp.SyscallFilter, action: int, name: str, *arguments: pyseccomp.Arg) -> None:
    """Adds a rule; a call that this libseccomp or machine does not know stays refused."""
    number = _resolve(name)
    if number >= 0:
        profile.add_rule(action, number, *arguments)


def _resolve(name: str) -> int:
    """The call's number, negative when libseccomp or the machine does not have it."""
    return int(pyseccomp.resolve_syscall(pyseccomp.system_arch(), name))


def fingerprint() -> str:
    """Changes with the list, the rules, the machine and libseccomp."""
    parts = (FORMAT, ALLOWED, CLONE_REFUSED, FAMILIES, PERSONALITIES, NOT_THERE, os.uname().machine)
    numbers = [_resolve(name) for name in allowed()]
    return hashlib.sha256(repr((parts, numbers)).encode()).hexdigest()[:32]


def cached_profile(folder: str | Path) -> bytes:
    """compile_profile(), kept in `folder` by its fingerprint. A damaged file is replaced. Raises ProfileError."""
    path = Path(folder) / f"seccomp-{fingerprint()}.bpf"
    try:
        data = path.read_bytes()
        body, digest = data[:-32], data[-32:]
        if body and hashlib.sha256(body).digest() == digest:
            return body
    except OSError:
        pass  # none yet; if the folder is at fault, writing says so
    program = compile_profile()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(program + hashlib.sha256(program).digest())
        fresh.rename(path)
    except OSError as error:
        raise ProfileError(f"cannot keep the seccomp profile in {folder}: {error.strerror}") from error
    return program
