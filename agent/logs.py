"""Reads container logs: CRI lines ("2026-01-02T03:04:05.678Z stdout F text"), tail, since, follow across rotation.

A run's log is `<attempt>.log` with older pieces beside it as `.log.1`, `.log.2`, ... (1 is the newest of them).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

CHUNK = 64 * 1024
MAX_LINE = 256 * 1024  # a longer line is passed on in pieces
POLL_S = 0.1
MAX_GENERATIONS = 100
TAIL_WINDOW = 256 * 1024
HEAD_BYTES = 48  # a stamp and some text


class LogFile(Protocol):
    """An open log file; it stays readable when it is renamed or deleted."""

    @property
    def identity(self) -> str:
        """Tells one file from another at the same path."""
        ...

    async def size(self) -> int: ...
    async def read(self, offset: int, size: int) -> bytes: ...
    def close(self) -> None: ...


class LogFiles(Protocol):
    """Where the log files are. Two adapters: the disk and a dictionary."""

    async def open(self, path: str) -> LogFile | None:
        """None when there is no such file."""
        ...

    async def remove(self, path: str) -> None:
        """Deletes a file with its rotated pieces, or a folder; one that is gone is no error."""
        ...


@dataclass(frozen=True, slots=True)
class LogOptions:
    follow: bool = False
    tail_lines: int | None = None
    since_ns: int | None = None  # nanoseconds since 1970
    timestamps: bool = False
    resume: Position | None = None  # instead of tail_lines


@dataclass(frozen=True, slots=True)
class Position:
    """Where a reader is: at a line's begin in one of the log's files, and `skip` bytes of text further. The file is
    known by its identity and its first bytes, since identities are used again. "": there was no file yet."""

    file: str = ""
    head: bytes = b""
    offset: int = 0
    skip: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of at most 64 KiB, and where the reader is after it (None: in the midst of what came at once)."""

    data: bytes
    position: Position | None = None


class PositionLost(Exception):
    """The file to go on from is not there any more: lines may be missing."""


async def read_logs(files: LogFiles, path: str, options: LogOptions, ended: Callable[[], bool]) -> AsyncIterator[Piece]:
    """The log's text. With `follow` it goes on until `ended()` and nothing is left. The first piece is empty and says
    where it begins. Raises PositionLost."""
    generations = await _open_all(files, path)
    walk = _Walk(files, path, generations)
    text = _Text(options, walk)
    try:
        start = await _start(generations, options)
        walk.begin(start)
        yield Piece(b"", await text.position())
        for file, offset in start:
            async for data in walk.drain(file, offset):
                for piece in await text.pieces(data):
                    yield piece
        if options.follow:
            async for data in walk.follow(ended):
                for piece in await text.pieces(data):
                    yield piece
        for piece in await text.rest():
            yield piece
    finally:
        walk.close()


async def _start(generations: list[LogFile], options: LogOptions) -> list[tuple[LogFile, int]]:
    """The files to read, each from an offset. Raises PositionLost."""
    resume = options.resume
    if resume is None:
        return await _tail_start(generations, options.tail_lines)
    if not resume.file:
        return [(file, 0) for file in generations]
    for index, file in enumerate(generations):
        if file.identity == resume.file and resume.head in (b"", await _head(file)):
            return [(file, resume.offset), *((later, 0) for later in generations[index + 1 :])]
    raise PositionLost


async def _head(file: LogFile) -> bytes:
    """The begin of the first line, which never changes once it is whole; b"" until then."""
    data = await file.read(0, HEAD_BYTES)
    begun, newline, _ = data.partition(b"\n")
    return begun if newline or len(data) == HEAD_BYTES else b""


class _Text:
    """The log's bytes as pieces of text, each chunk's last one with its position."""

    def __init__(self, options: LogOptions, walk: _Walk) -> None:
        self._walk = walk
        self._lines = _Lines(options)
        self._base = Position()
        self._given = 0  # bytes of text since `_base`
        self._left = options.resume.skip if options.resume else 0  # bytes that the reader has already

    async def position(self) -> Position:
        if not self._lines.amid:
            self._base, self._given = await self._walk.position(self._lines.unread), 0
        return replace(self._base, skip=self._given + self._left)

    async def pieces(self, data: bytes) -> list[Piece]:
        return await self._cut(self._lines.feed(data))

    async def rest(self) -> list[Piece]:
        """What a container wrote without ending its line."""
        return await self._cut(self._lines.rest())

    async def _cut(self, text: bytes) -> list[Piece]:
        known = min(self._left, len(text))
        self._left -= known
        self._given += len(text)
        if known == len(text):
            return []
        position = await self.position()
        parts = [text[at : at + CHUNK] for at in range(known, len(text), CHUNK)]
        return [*(Piece(part) for part in parts[:-1]), Piece(parts[-1], position)]


async def tail_of(files: LogFiles, path: str, lines: int, most: int) -> str:
    """The last lines of a log, at most `most` bytes of them."""
    kept = b""
    async for piece in read_logs(files, path, LogOptions(tail_lines=lines), lambda: True):
        kept = (kept + piece.data)[-most:]
    return kept.decode("utf-8", "replace")


async def _open_all(files: LogFiles, path: str) -> list[LogFile]:
    """Every piece, oldest first. A rotation meanwhile shows one file at two names: it is taken once."""
    found: list[LogFile] = []
    for name in _names(path):
        file = await files.open(name)
        if file is None:
            if name == path:
                continue  # between two renames of a rotation
            break
        if any(file.identity == other.identity for other in found):
            file.close()
        else:
            found.append(file)
    return found[::-1]


def _names(path: str) -> list[str]:
    """Where the pieces of a log are, newest first."""
    return [path, *(f"{path}.{number}" for number in range(1, MAX_GENERATIONS))]


class _Walk:
    """Reads on from one piece of a log to the next."""

    def __init__(self, files: LogFiles, path: str, opened: list[LogFile]) -> None:
        self._files = files
        self._path = path
        self._opened = opened
        self._current = opened[-1] if opened else None
        self._offset = 0

    def begin(self, start: list[tuple[LogFile, int]]) -> None:
        if start:
            self._current, self._offset = start[0]

    async def position(self, unread: int) -> Position:
        """Where the next line begins; `unread` bytes before the present offset."""
        if self._current is None:
            return Position()
        return Position(self._current.identity, await _head(self._current), max(self._offset - unread, 0))

    async def drain(self, file: LogFile, offset: int) -> AsyncIterator[bytes]:
        """From `offset` to the present end of a file, which becomes the current one."""
        self._current, self._offset = file, offset
        while data := await file.read(self._offset, CHUNK):
            self._offset += len(data)
            yield data

    async def follow(self, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
        while True:
            over = ended()  # asked before the read: what was written before the end is read after it
            following = await self._next()  # likewise: once there is a next file, this one does not grow
            if self._current is not None:
                async for data in self.drain(self._current, self._offset):
                    yield data
            if following is not None:
                if self._current is not None:
                    self._current.close()
                self._opened.append(following)
                self._current, self._offset = following, 0
            elif over:
                return
            else:
                await asyncio.sleep(POLL_S)

    async def _next(self) -> LogFile | None:
        """The piece that follows the current one; None while that is the newest. Deleted pieces are skipped."""
        newer: LogFile | None = None
        for name in _names(self._path):
            file = await self._files.open(name)
            if file is None and name == self._path:
                return None  # between two renames of a rotation
            if file is None:
                break
            if self._current is not None and file.identity == self._current.identity:
                file.close()
                return newer
            if newer is not None:
                newer.close()
            newer = file
        return newer

    def close(self) -> None:
        for file in self._opened:
            file.close()


# ---- tail ----
async def _tail_start(generations: list[LogFile], wanted: int | None) -> list[tuple[LogFile, int]]:
    """Which files to read from which offset, so that the last `wanted` whole lines are read."""
    if wanted is None:
        return [(file, 0) for file in generations]
    start: list[tuple[LogFile, int]] = []
    for file in reversed(generations):
        offset, wanted = await _tail_offset(file, wanted)
        start.insert(0, (file, offset))
        if wanted < 0:
            break
    return start


async def _tail_offset(file: LogFile, wanted: int) -> tuple[int, int]:
    """Where the last `wanted` lines of a file begin, and how many are left for the piece before it (-1: it is not
    needed)."""
    size = await file.size()
    for window in (TAIL_WINDOW, size):  # most tails are short
        begin = max(size - window, 0)
        data = await file.read(begin, size - begin)
        offset, left = _tail_in(data, wanted)
        if left < 0 or begin == 0:
            return begin + offset, left
    return 0, wanted


def _tail_in(data: bytes, wanted: int) -> tuple[int, int]:
    end = data.rfind(b"\n") + 1
    while end > 0:
        begin = data.rfind(b"\n", 0, end - 1) + 1
        parts = data[begin:end].split(b" ", 3)
        if len(parts) < 4 or parts[2] == b"F":
            if wanted == 0:
                return end, -1
            wanted -= 1
        end = begin
    return 0, wanted


# ---- lines ----
class _Lines:
    """From CRI lines to text: partial lines joined per stream, filtered by time, with timestamps when asked for."""

    def __init__(self, options: LogOptions) -> None:
        self._options = options
        self._rest = b""
        self._partial: dict[bytes, bytes] = {}

    @property
    def amid(self) -> bool:
        """Some line has begun and not ended."""
        return bool(self._partial)

    @property
    def unread(self) -> int:
        """Bytes of a CRI line that has not come whole."""
        return len(self._rest)

    def feed(self, data: bytes) -> bytes:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return b"".join(self._text(line) for line in lines)

    def rest(self) -> bytes:
        return b"".join(self._partial.values())

    def _text(self, line: bytes) -> bytes:
        parts = line.split(b" ", 3)
        if len(parts) < 4:
            return line + b"\n" if line else b""
        stamp, stream, tag, text = parts
        if self._options.since_ns is not None and parse_stamp(stamp) < self._options.since_ns:
            return b""
        begun = self._partial.pop(stream, None)
        if begun is None:
            begun = stamp + b" " if self._options.timestamps else b""
        text = begun + text
        if tag == b"F":
            return text + b"\n"
        if len(text) > MAX_LINE:
            self._partial[stream] = b""
            return text
        self._partial[stream] = text
        return b""


def parse_stamp(stamp: bytes) -> int:
    """RFC 3339 with up to nine decimals as nanoseconds since 1970; 0 when it is not one."""
    try:
        text = stamp.decode("ascii")
        whole, _, fraction = text.removesuffix("Z").partition(".")
        seconds = datetime.fromisoformat(whole + "+00:00").timestamp()
        return int(seconds) * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)
    except ValueError:
        return 0


# ---- adapters ----
class DiskLogFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        self._identity = f"{status.st_dev}:{status.st_ino}"

    @property
    def identity(self) -> str:
        return self._identity

    async def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    async def read(self, offset: int, size: int) -> bytes:
        return await asyncio.to_thread(os.pread, self._descriptor, size, offset)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class DiskLogFiles:
    async def open(self, path: str) -> LogFile | None:
        try:
            return DiskLogFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        except FileNotFoundError:
            return None

    async def remove(self, path: str) -> None:
        await asyncio.to_thread(self._remove, path)

    def _remove(self, path: str) -> None:
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
            return
        for name in _names(path):
            try:
                os.unlink(name)
            except FileNotFoundError:
                if name != path:
                    return


class MemoryLogFile:
    def __init__(self, identity: str, data: bytearray) -> None:
        self._identity = identity
        self._data = data

    @property
    def identity(self) -> str:
        return self._identity

    async def size(self) -> int:
        return len(self._data)

    async def read(self, offset: int, size: int) -> bytes:
        return bytes(self._data[offset : offset + size])

    def close(self) -> None:
        pass


class MemoryLogFiles:
    """For unit tests and simulation: `append` and `rotate` are what a supervisor does."""

    def __init__(self) -> None:
        self._files: dict[str, MemoryLogFile] = {}
        self._data: dict[str, bytearray] = {}
        self._made = 0

    def append(self, path: str, data: bytes) -> None:
        if path not in self._files:
            self._made += 1
            self._data[path] = bytearray()
            self._files[path] = MemoryLogFile(str(self._made), self._data[path])
        self._data[path] += data

    def rotate(self, path: str, keep: int = 5) -> None:
        names = _names(path)[:keep]
        for old, new in zip(reversed(names[:-1]), reversed(names[1:]), strict=True):
            if old in self._files:
                self._files[new], self._data[new] = self._files.pop(old), self._data.pop(old)

    async def open(self, path: str) -> LogFile | None:
        return self._files.get(path)

    async def remove(self, path: str) -> None:
        for name in [name for name in self._files if name == path or name.startswith((path + ".", path + "/"))]:
            del self._files[name], self._data[name]
