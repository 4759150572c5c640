"""Goes through folders whose contents a container chose: by descriptors, following nothing, however deep they are."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from shoal.agent.runtime import syscalls
from shoal.agent.runtime.syscalls import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV

INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
MAX_PATH = 3000  # bytes below one base: the kernel takes 4,095
MAX_BASES = 64  # within each other; each is an open descriptor


class _Base:
    """A folder that paths start from, closed with the last of them. `depth`: how many others lie above it."""

    __slots__ = ("depth", "fd")

    def __init__(self, fd: int, depth: int = 0) -> None:
        self.fd, self.depth = fd, depth

    def __del__(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder to be visited. Many wait at once: each holds its own name only. `length`: bytes of its path."""

    base: _Base
    above: _Place | None
    name: bytes
    length: int

    def path(self) -> bytes:
        parts, place = list[bytes](), self
        while place.above is not None:
            parts.append(place.name)
            place = place.above
        return b"/".join([place.name, *reversed(parts)])


@dataclass(frozen=True, slots=True)
class Entry:
    """`fd` is the folder that it lies in, open until the next entry is asked for."""

    fd: int
    name: str
    status: os.stat_result


def walk(top: str) -> Iterator[Entry]:
    """Every entry below `top`, but none of other file systems, nor of paths over MAX_BASES * MAX_PATH bytes long. What
    vanishes meanwhile is left out. Raises OSError when `top` cannot be opened."""
    waiting = [_Place(_Base(os.open(top, FOLDER | os.O_CLOEXEC)), None, b".", 1)]
    while waiting:
        place = waiting.pop()
        try:
            fd = syscalls.openat2(place.base.fd, place.path(), FOLDER, INSIDE)
        except OSError:
            continue
        own: _Base | None = None
        try:
            for entry in _entries(fd):
                yield entry
                if not stat.S_ISDIR(entry.status.st_mode):
                    continue
                name = os.fsencode(entry.name)
                if place.length + len(name) < MAX_PATH:
                    waiting.append(_Place(place.base, place, name, place.length + 1 + len(name)))
                elif place.base.depth < MAX_BASES:
                    own = own or _Base(os.dup(fd), place.base.depth + 1)  # one for all of a folder: they are many
                    waiting.append(_Place(own, None, name, len(name)))
        finally:
            os.close(fd)


def _entries(fd: int) -> Iterator[Entry]:
    with os.scandir(fd) as found:
        for entry in found:
            try:
                yield Entry(fd, entry.name, entry.stat(follow_symlinks=False))
            except OSError:
                continue
