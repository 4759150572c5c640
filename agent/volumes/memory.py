"""File systems in memory, one for each volume that must not reach a disk, and what is mounted below a folder."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence

from shoal.agent.runtime import syscalls
from shoal.agent.runtime.syscalls import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID

MS_REMOUNT = 32
MOUNTS = "/proc/self/mountinfo"
_OCTAL = re.compile(rb"\\([0-7]{3})")
MAX_ROUNDS = 8  # mounts on top of each other at one place


def ensure_memory(path: str, size_bytes: int, mode: int, gid: int = 0) -> None:
    """Mounts a tmpfs on the folder `path`, made when missing; one that is there is kept. 0 bytes: the kernel's default,
    half of the memory. Raises OSError."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    if os.path.ismount(path):
        return
    options = {b"mode": b"%o" % mode, b"gid": b"%d" % gid}
    if size_bytes:
        options[b"size"] = b"%d" % size_bytes
    target = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mount = _new_tmpfs(options)
        try:
            syscalls.move_mount(mount, target)
        finally:
            os.close(mount)
    finally:
        os.close(target)


def _new_tmpfs(options: dict[bytes, bytes]) -> int:
    """Never swapped out where the kernel can promise it (from 6.4 on)."""
    attributes = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID
    try:
        return syscalls.new_mount(b"tmpfs", {**options, b"noswap": b""}, attributes)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return syscalls.new_mount(b"tmpfs", options, attributes)


def grow_memory(path: str, size_bytes: int) -> None:
    """Lets the tmpfs at `path` hold at least so much. Raises OSError."""
    there = os.statvfs(path)
    if there.f_blocks * there.f_frsize < size_bytes:
        flags = MS_REMOUNT | syscalls.MS_NODEV | syscalls.MS_NOSUID
        syscalls.mount(b"tmpfs", os.fsencode(path), b"tmpfs", flags, b"size=%d" % size_bytes)


def mounted_below(path: str) -> Sequence[str]:
    """The places at and below `path` where something is mounted, the deepest first."""
    own = os.fsencode(os.path.realpath(path))
    found = []
    with open(MOUNTS, "rb") as file:
        for line in file:
            place = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), line.split(b" ")[4])
            if place == own or place.startswith(own + b"/"):
                found.append(place)
    return [os.fsdecode(place) for place in sorted(found, key=lambda place: -place.count(b"/"))]


def unmount_below(path: str) -> None:
    """Unmounts everything at and below `path`, also what a container has mounted there. Raises OSError."""
    for _ in range(MAX_ROUNDS):
        places = mounted_below(path)
        if not places:
            return
        for place in places:
            try:
                syscalls.umount2(os.fsencode(place), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno != errno.EINVAL:  # no mount any more: it went with one above it
                    raise
    raise OSError(errno.EBUSY, "something is mounted there again and again", path)
