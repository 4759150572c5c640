"""A pod's sandbox: its net, ipc and uts namespaces, held by bind mounts of their nsfs files (namespaces(7)).

Standard library only; called from one thread, since it forks.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from shoal.agent.runtime import syscalls

KINDS = {"net": syscalls.CLONE_NEWNET, "ipc": syscalls.CLONE_NEWIPC, "uts": syscalls.CLONE_NEWUTS}
MAX_HOSTNAME = 64  # bytes, __NEW_UTS_LEN
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 1
# Without CAP_NET_RAW ping needs this, and without root no low port could be bound: the namespace is the pod's own.
SYSCTLS = {"net/ipv4/ping_group_range": "0 2147483647", "net/ipv4/ip_unprivileged_port_start": "0"}


class SandboxError(Exception):
    """The sandbox could not be made; the message says what failed."""


def make_sandbox(folder: str, hostname: str) -> None:
    """Makes the namespaces and binds them as `net`, `ipc` and `uts` in `folder`. Idempotent. Raises SandboxError."""
    name = os.fsencode(hostname)
    if not name or len(name) > MAX_HOSTNAME:
        raise SandboxError(f"the host name {hostname!r} must have 1 to {MAX_HOSTNAME} bytes")
    if is_sandbox(folder):
        return
    free_sandbox(folder)  # what an interrupted call left
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for kind in KINDS:
        os.close(os.open(f"{folder}/{kind}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o400))
    report, answer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _child(os.fsencode(folder), name, answer)
    os.close(answer)
    with os.fdopen(report, "rb") as reader:
        problem = reader.read()
    _, status = os.waitpid(pid, 0)
    if status or problem:
        free_sandbox(folder)
        raise SandboxError(f"cannot make the pod's namespaces in {folder}: {problem.decode(errors='replace')}")


def is_sandbox(folder: str) -> bool:
    """Whether all three namespaces are bound in `folder`."""
    return all(_is_namespace(f"{folder}/{kind}") for kind in KINDS)


def free_sandbox(folder: str) -> None:
    """Unbinds the namespaces (they end with their last process) and removes `folder`. Tolerates a half-made one."""
    for kind in KINDS:
        path = os.fsencode(f"{folder}/{kind}")
        while _is_namespace(os.fsdecode(path)):
            syscalls.umount2(path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError:
        pass  # holds other things: theirs to remove


def _child(folder: bytes, hostname: bytes, answer: int) -> None:
    """Unshares, sets up and binds; the result leaves as text on `answer` (no container's mounts are entered here)."""
    code = 1
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
        syscalls.sethostname(hostname)
        _raise_loopback()
        for name, value in SYSCTLS.items():
            _sysctl(name, value)
        for kind in KINDS:
            source = b"/proc/self/ns/" + kind.encode()
            syscalls.mount(source, folder + b"/" + kind.encode(), None, syscalls.MS_BIND)
        code = 0
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


def _is_namespace(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return syscalls.filesystem_type(fd) == syscalls.NSFS_MAGIC
    finally:
        os.close(fd)
