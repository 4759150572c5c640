"""A pod's sandbox: its net, ipc and uts namespaces, held by bind mounts of their nsfs files (namespaces(7)), and its
/dev/shm. A kind that the pod shares with the node is the node's own namespace, bound in the same way; `pid` is there
when the containers share one (holder.py) or have the node's.

Standard library only; called from one thread, since it forks.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Collection, Mapping

from shoal.agent.runtime import mounts, syscalls, sysctls
from shoal.agent.runtime.sysctls import SysctlError

KINDS = {"net": syscalls.CLONE_NEWNET, "ipc": syscalls.CLONE_NEWIPC, "uts": syscalls.CLONE_NEWUTS}
HELD = (*KINDS, "pid")
EMPTY_SECONDS = 10.0  # how long killed processes may take to go
MAX_HOSTNAME = 64  # bytes, __NEW_UTS_LEN
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 1
BAD_SYSCTL = 3  # exit code of the child
# Without CAP_NET_RAW ping needs this, and without root no low port could be bound: the namespace is the pod's own.
SYSCTLS = {"net/ipv4/ping_group_range": "0 2147483647", "net/ipv4/ip_unprivileged_port_start": "0"}


class SandboxError(Exception):
    """The sandbox could not be made; the message says what failed."""


def make_sandbox(
    folder: str, hostname: str, *, wanted: Mapping[str, str] | None = None, shared: Collection[str] = ()
) -> None:
    """Makes the namespaces and binds them as `net`, `ipc` and `uts` in `folder`; `wanted` are sysctls, `shared` kinds
    (and "pid") that are the node's own. Idempotent. Raises SandboxError, SysctlError."""
    name = os.fsencode(hostname)
    settings = sysctls.checked(wanted or {}, shared)
    if not name or len(name) > MAX_HOSTNAME:
        raise SandboxError(f"the host name {hostname!r} must have 1 to {MAX_HOSTNAME} bytes")
    if is_sandbox(folder):
        return
    free_sandbox(folder)  # what an interrupted call left
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for kind in KINDS:
        os.close(os.open(f"{folder}/{kind}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o400))
    _make_shm(f"{folder}/shm", host="ipc" in shared)
    if "pid" in shared:
        bind("/proc/self/ns/pid", f"{folder}/pid")
    report, answer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _child(os.fsencode(folder), name, answer, settings, shared)
    os.close(answer)
    with os.fdopen(report, "rb") as reader:
        problem = reader.read()
    _, status = os.waitpid(pid, 0)
    if status or problem:
        free_sandbox(folder)
        if status and os.waitstatus_to_exitcode(status) == BAD_SYSCTL:
            raise SysctlError(problem.decode(errors="replace"))
        raise SandboxError(f"cannot make the pod's namespaces in {folder}: {problem.decode(errors='replace')}")


def is_sandbox(folder: str) -> bool:
    """Whether all three namespaces are bound in `folder`."""
    return all(is_namespace(f"{folder}/{kind}") for kind in KINDS)


def free_sandbox(folder: str) -> None:
    """Unbinds the namespaces (they end with their last process) and removes `folder`. Tolerates a half-made one."""
    for kind in HELD:
        unbind(f"{folder}/{kind}")
    while os.path.ismount(f"{folder}/shm"):
        syscalls.umount2(os.fsencode(f"{folder}/shm"), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
    for remove, name in ((os.rmdir, "shm"), (os.unlink, "holder")):
        try:
            remove(f"{folder}/{name}")
        except FileNotFoundError:
            pass
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError:
        pass  # holds other things: theirs to remove


def bind(source: str, path: str) -> None:
    """Binds a namespace's file onto `path`, which is made."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o400))
    syscalls.mount(os.fsencode(source), os.fsencode(path), None, syscalls.MS_BIND)


def unbind(path: str) -> None:
    """Ends such binds and removes the file. Nothing there is fine."""
    while is_namespace(path):
        syscalls.umount2(os.fsencode(path), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _make_shm(path: str, *, host: bool) -> None:
    """The pod's /dev/shm: its containers' pages are charged to them, what stays to the pod."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    if host:
        syscalls.mount(b"/dev/shm", os.fsencode(path), None, syscalls.MS_BIND)
        return
    options = {b"mode": b"1777", b"size": str(mounts.SHM_BYTES).encode()}
    target = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mount = syscalls.new_mount(b"tmpfs", options, mounts.LOCKED)
    try:
        syscalls.move_mount(mount, target)
    finally:
        os.close(mount)
        os.close(target)


def _child(folder: bytes, hostname: bytes, answer: int, settings: Mapping[str, str], shared: Collection[str]) -> None:
    """Unshares, sets up and binds; the result leaves as text on `answer` (no container's mounts are entered here)."""
    code = 1
    try:
        syscalls.unshare(sum(flag for kind, flag in KINDS.items() if kind not in shared))
        if "uts" not in shared:
            syscalls.sethostname(hostname)
        if "net" not in shared:
            _raise_loopback()
            for name, value in SYSCTLS.items():
                _sysctl(name, value)
        for name, value in settings.items():
            sysctls.write(name, value)
        for kind in KINDS:
            source = b"/proc/self/ns/" + kind.encode()
            syscalls.mount(source, folder + b"/" + kind.encode(), None, syscalls.MS_BIND)
        code = 0
    except SysctlError as error:
        code = BAD_SYSCTL
        os.write(answer, str(error).encode(errors="replace")[:2000])
    except BaseException as error:
        os.write(answer, str(error).encode(errors="replace")[:2000])
    finally:
        os._exit(code)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack_from("h", fcntl.ioctl(probe, _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def _sysctl(name: str, value: str) -> None:
    """Kernels may be built without one of them; then programs do without, too."""
    try:
        fd = os.open(f"/proc/sys/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def is_namespace(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return syscalls.filesystem_type(fd) == syscalls.NSFS_MAGIC
    finally:
        os.close(fd)
