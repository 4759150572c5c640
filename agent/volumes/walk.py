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


class _Base:
    """A folder that paths start from, closed with the last of them."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Entry:
    """`fd` is the folder that it lies in, open until the next entry is asked for."""

    fd: int
    name: str
    status: os.stat_result


def walk(top: str) -> Iterator[Entry]:
    """Every entry below `top`, but none of other file systems. What vanishes meanwhile is left out. Raises OSError when
    `top` cannot be opened."""
    waiting = [(_Base(os.open(top, FOLDER | os.O_CLOEXEC)), b".")]
    while waiting:
        base, path = waiting.pop()
        try:
            fd = syscalls.openat2(base.fd, path, FOLDER, INSIDE)
        except OSError:
            continue
        try:
            for entry in _entries(fd):
                yield entry
                if stat.S_ISDIR(entry.status.st_mode):
                    waiting.append(_below(base, path, fd, os.fsencode(entry.name)))
        finally:
            os.close(fd)


def _below(base: _Base, path: bytes, fd: int, name: bytes) -> tuple[_Base, bytes]:
    if len(path) + len(name) < MAX_PATH:
        return base, path + b"/" + name
    return _Base(os.dup(fd)), name


def _entries(fd: int) -> Iterator[Entry]:
    with os.scandir(fd) as found:
        for entry in found:
            try:
                yield Entry(fd, entry.name, entry.stat(follow_symlinks=False))
            except OSError:
                continue
