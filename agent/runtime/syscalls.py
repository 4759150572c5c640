"""Linux system calls that Python 3.11 does not offer, each once, typed, with errno as OSError.

How the runtime's modules import each other: always by full name (`from shoal.agent.runtime import syscalls`). In the
agent and in tests that is the installed package; the spawner is started through `boot.py`, which provides the same
name for this folder without site-packages. They use the standard library only and are called from one thread only.
All paths are bytes. Numbers: the kernel's syscall tables for x86_64 and the generic one (aarch64).
"""

from __future__ import annotations

import ctypes
import os
import struct

_X86_64 = {
    "getcwd": 79,
    "capget": 125,
    "capset": 126,
    "fstatfs": 138,
    "pivot_root": 155,
    "prctl": 157,
    "mount": 165,
    "umount2": 166,
    "sethostname": 170,
    "rt_sigaction": 13,
    "keyctl": 250,
    "unshare": 272,
    "setns": 308,
    "seccomp": 317,
    "memfd_create": 319,
    "bpf": 321,
}
_GENERIC = {
    "getcwd": 17,
    "umount2": 39,
    "mount": 40,
    "pivot_root": 41,
    "fstatfs": 44,
    "capget": 90,
    "capset": 91,
    "unshare": 97,
    "rt_sigaction": 134,
    "sethostname": 161,
    "prctl": 167,
    "keyctl": 219,
    "setns": 268,
    "seccomp": 277,
    "memfd_create": 279,
    "bpf": 280,
}
_COMMON = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
}
KERNEL_SIGSET_BYTES = 8
_DEFAULT_ACTION = b"\0" * 32  # struct kernel_sigaction: handler, flags, restorer, mask
MACHINE = os.uname().machine
_NUMBERS = {**(_X86_64 if MACHINE == "x86_64" else _GENERIC), **_COMMON}

CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

AT_FDCWD = -100
AT_RECURSIVE = 0x8000
AT_EMPTY_PATH = 0x1000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08

O_PATH = os.O_PATH
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

PROC_SUPER_MAGIC = 0x9FA0
NSFS_MAGIC = 0x6E736673
TMPFS_MAGIC = 0x01021994
DEVPTS_SUPER_MAGIC = 0x1CD1

MFD_CLOEXEC = 1
MFD_ALLOW_SEALING = 2
F_ADD_SEALS = 1033
SEALS_ALL = 0x0F  # seal, shrink, grow, write

_SECCOMP_SET_MODE_FILTER = 1
_KEYCTL_JOIN_SESSION_KEYRING = 1
_CAPABILITY_VERSION_3 = 0x20080522
_BPF_INSTRUCTION = 8  # bytes of struct sock_filter
_PATH_MAX = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
# Calls that return twice keep the interpreter's lock: the child must not have to take it again.
_fork_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_fork_syscall.restype = ctypes.c_long

Argument = int | bytes | None | ctypes.Array[ctypes.c_char]


def _argument(value: Argument) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value


def _call(name: str, *args: Argument, path: bytes | None = None) -> int:
    """The system call's result. Raises OSError(errno, text, path)."""
    result = int(_syscall(ctypes.c_long(_NUMBERS[name]), *map(_argument, args)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def unshare(flags: int) -> None:
    """unshare(2)."""
    _call("unshare", flags)


def setns(fd: int, kinds: int) -> None:
    """setns(2): `fd` is an nsfs file, or a pidfd with CLONE_NEW* flags of several namespaces."""
    _call("setns", fd, kinds)


def sethostname(name: bytes) -> None:
    """sethostname(2), in the current uts namespace."""
    _call("sethostname", name, len(name), path=name)


def mount(source: bytes | None, target: bytes, fstype: bytes | None, flags: int, options: bytes | None = None) -> None:
    """mount(2); the options are limited to one page (4 KiB)."""
    _call("mount", source, target, fstype, flags, options, path=target)


def umount2(target: bytes, flags: int = 0) -> None:
    """umount2(2)."""
    _call("umount2", target, flags, path=target)


def pivot_root(new: bytes, old: bytes) -> None:
    """pivot_root(2)."""
    _call("pivot_root", new, old, path=new)


def open_tree(fd: int, path: bytes, flags: int) -> int:
    """open_tree(2): a descriptor of a mount, with OPEN_TREE_CLONE of a detached copy of it."""
    return _call("open_tree", fd, path, flags | OPEN_TREE_CLOEXEC, path=path)


def move_mount(mount_fd: int, target_fd: int) -> None:
    """move_mount(2) of the mount behind one descriptor onto the place behind another."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _call("move_mount", mount_fd, b"", target_fd, b"", flags)


def mount_setattr(fd: int, attributes: int, *, recursive: bool = False, propagation: int = 0) -> None:
    """mount_setattr(2): sets MOUNT_ATTR_* on the mount behind `fd`, and MS_{PRIVATE,SLAVE,SHARED} if given."""
    value = struct.pack("=QQQQ", attributes, 0, propagation, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _call("mount_setattr", fd, b"", flags, value, len(value))


def new_mount(fstype: bytes, options: dict[bytes, bytes], attributes: int) -> int:
    """fsopen, fsconfig, fsmount: a detached mount of a new file system. Strings are limited to 256 bytes."""
    context = _call("fsopen", fstype, FSOPEN_CLOEXEC, path=fstype)
    try:
        for key, value in options.items():
            kind = FSCONFIG_SET_STRING if value else FSCONFIG_SET_FLAG
            _call("fsconfig", context, kind, key, value or None, 0, path=key)
        _call("fsconfig", context, FSCONFIG_CMD_CREATE, None, None, 0, path=fstype)
        return _call("fsmount", context, FSMOUNT_CLOEXEC, attributes, path=fstype)
    finally:
        os.close(context)


def openat2(fd: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2) with RESOLVE_* limits; the descriptor is close-on-exec."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _call("openat2", fd, path, how, len(how), path=path)


def clone3(flags: int, *, cgroup: int = -1, exit_signal: int = 17) -> tuple[int, int]:
    """clone3(2) without shared memory, so a fork: (0, -1) in the child, (pid, pidfd) in the parent.

    `cgroup` is the descriptor of a v2 cgroup folder to be born in, or -1.
    """
    pidfd = ctypes.c_int(-1)
    into = CLONE_INTO_CGROUP if cgroup >= 0 else 0
    fields = (flags | CLONE_PIDFD | into, ctypes.addressof(pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, max(cgroup, 0))
    arguments = struct.pack("=11Q", *fields)
    size = ctypes.c_long(len(arguments))
    pid = int(_fork_syscall(ctypes.c_long(_NUMBERS["clone3"]), arguments, size))
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "clone3")
    return pid, -1 if pid == 0 else pidfd.value


def default_signal(number: int) -> None:
    """rt_sigaction(2) to SIG_DFL, past libc: it hides its own two signals, and leaves them ignored in what
    posix_spawn(3) starts."""
    _call("rt_sigaction", number, _DEFAULT_ACTION, None, KERNEL_SIGSET_BYTES)


def close_range(first: int, last: int = 0x7FFFFFFF) -> None:
    """close_range(2), both ends included."""
    _call("close_range", first, last, 0)


def prctl(option: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    """prctl(2)."""
    return _call("prctl", option, a, b, c, d)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of the calling process; each set is a bit mask of 64 bits."""
    sets = (effective, permitted, inheritable)
    low, high = (tuple(mask >> shift & 0xFFFFFFFF for mask in sets) for shift in (0, 32))
    _call("capset", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), struct.pack("=6I", *low, *high))


def load_seccomp(program: bytes) -> None:
    """seccomp(2) SET_MODE_FILTER: `program` is an array of struct sock_filter."""
    buffer = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _BPF_INSTRUCTION
    fprog = struct.pack("@HP", count, ctypes.addressof(buffer))
    _call("seccomp", _SECCOMP_SET_MODE_FILTER, 0, fprog)


def bpf(command: int, attribute: bytes) -> int:
    """bpf(2); `attribute` is the packed union bpf_attr."""
    return _call("bpf", command, attribute, len(attribute))


def join_session_keyring() -> None:
    """keyctl(2): an anonymous, fresh session keyring."""
    _call("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None)


def memfd_create(name: bytes, flags: int) -> int:
    """memfd_create(2)."""
    return _call("memfd_create", name, flags, path=name)


def filesystem_type(fd: int) -> int:
    """fstatfs(2): the magic number of the file system behind `fd`."""
    buffer = ctypes.create_string_buffer(256)
    _call("fstatfs", fd, buffer)
    return int(struct.unpack_from("@l", buffer.raw)[0])


def getcwd() -> bytes:
    """getcwd(2) itself: libc's would search parent folders when the kernel answers "(unreachable)"."""
    buffer = ctypes.create_string_buffer(_PATH_MAX)
    length = _call("getcwd", buffer, _PATH_MAX)
    return buffer.raw[: length - 1]
