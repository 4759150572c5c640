"""A container's log: stamped lines in CRI's format, rotated by size, dropped and counted while the disk is full.

Format: `<RFC3339Nano> stdout|stderr F|P <text>`, one line each; P marks a piece whose line goes on in the next one
(Kubernetes' container runtime interface). Work is done per chunk, not per line: throughput matters.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

MAX_PIECE = 16 * 1024  # bytes of a line's text before it is cut
RETRY_SECONDS = 1.0  # after the disk refused a write
TAIL_WINDOW = 4 * MAX_PIECE  # bytes that are searched for the last whole line
NS = 1_000_000_000


def rfc3339_nano(ns: int) -> bytes:
    """CLOCK_REALTIME nanoseconds as UTC text."""
    seconds, rest = divmod(ns, NS)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z".encode()


class Stamper:
    """Turns one stream's bytes into stamped lines. Pure: the time is an argument."""

    def __init__(self, stream: str) -> None:
        self.name, self._name = stream, stream.encode()
        self.pending = b""  # the begin of a line whose end has not come

    def feed(self, data: bytes, stamp: bytes) -> bytes:
        """The stamped form of all that is complete now."""
        if self.pending:
            data, self.pending = self.pending + data, b""
        end = data.rfind(b"\n") + 1
        parts = self._lines(data, end, stamp)
        while len(data) - end > MAX_PIECE:
            parts += [self._mark(stamp, b"P"), data[end : end + MAX_PIECE], b"\n"]
            end += MAX_PIECE
        self.pending = data[end:]
        return b"".join(parts)

    def flush(self, stamp: bytes, *, final: bool) -> bytes:
        """What is left without a line's end: whole at the end of the stream (`final`), else as a piece."""
        data, self.pending = self.pending, b""
        return self._mark(stamp, b"F" if final else b"P") + data + b"\n" if data else b""

    def _mark(self, stamp: bytes, tag: bytes) -> bytes:
        return b"%s %s %s " % (stamp, self._name, tag)

    def _lines(self, data: bytes, end: int, stamp: bytes) -> list[bytes]:
        """The parts of data[:end], which ends with a newline. Looks only for lines over MAX_PIECE; what lies between
        them is one replace: copies are what a flood of output costs."""
        parts: list[bytes] = []
        start = at = 0
        while end - at > MAX_PIECE + 1:
            newline = data.rfind(b"\n", at, at + MAX_PIECE + 1)
            if newline >= 0:
                at = newline + 1
                continue
            parts += self._whole(data[start : at - 1], stamp) if at > start else []
            parts += [self._mark(stamp, b"P"), data[at : at + MAX_PIECE], b"\n"]
            start = at = at + MAX_PIECE
        return parts + (self._whole(data[start : end - 1], stamp) if end > start else [])

    def _whole(self, lines: bytes, stamp: bytes) -> list[bytes]:
        """`lines` comes without its last newline."""
        mark = self._mark(stamp, b"F")
        return [mark, lines.replace(b"\n", b"\n" + mark), b"\n"]


class LogFile:
    """Appends whole lines to `path` ("" is nowhere), rotates it to path.1, path.2, ...; survives a full disk.

    `write` is os.write, given so that tests can refuse.
    """

    def __init__(
        self,
        path: str,
        max_bytes: int,
        max_files: int,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self.path, self._max, self._files = path, max(max_bytes, 1), max(max_files, 1)
        self._monotonic, self._write = monotonic, write
        self._fd, self._size = -1, 0
        self._retry_at = 0.0
        self.dropped_lines = self.dropped_bytes = 0

    def append(self, lines: bytes, stamp: bytes) -> None:
        """Writes lines or drops and counts them; never raises for the disk's sake, never waits for it."""
        if not lines or not self.path:
            return
        if self.dropped_lines and not self._say_dropped(stamp):
            self._drop(lines)
            return
        while lines:
            try:
                piece, rest = self._cut(lines)
            except OSError as fault:
                self._refused(fault)
                self._drop(lines)
                return
            if not self._put(piece):
                self._drop(lines)
                return
            lines = rest

    def _say_dropped(self, stamp: bytes) -> bool:
        if self._monotonic() < self._retry_at:
            return False
        text = f"shoal: {self.dropped_lines} lines ({self.dropped_bytes} bytes) are missing here: the disk was full\n"
        if not self._put(stamp + b" stderr F " + text.encode()):
            return False
        self.dropped_lines = self.dropped_bytes = 0
        return True

    def _cut(self, lines: bytes) -> tuple[bytes, bytes]:
        """What still fits into the file (at least one line) and the rest; rotates when nothing fits."""
        if self._fd >= 0 and self._size and self._size + len(lines) > self._max:
            cut = lines.rfind(b"\n", 0, max(self._max - self._size, 0)) + 1
            if cut:
                return lines[:cut], lines[cut:]
            self._rotate()
        if len(lines) <= self._max:
            return lines, b""
        cut = lines.rfind(b"\n", 0, self._max) + 1 or lines.find(b"\n") + 1
        return lines[:cut], lines[cut:]

    def _put(self, data: bytes) -> bool:
        """All of `data` or nothing: a half line would break the format."""
        try:
            if self._fd < 0:
                self._open()
            if self._size and self._size + len(data) > self._max:
                self._rotate()
                self._open()
            done = 0
            while done < len(data):
                done += self._write(self._fd, data[done:] if done else data)
        except OSError as fault:
            self._refused(fault)
            return False
        self._size += len(data)
        return True

    def _refused(self, fault: OSError) -> None:
        self._retry_at = self._monotonic() + RETRY_SECONDS
        if self._fd < 0:
            return
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            pass
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
            self.close()  # the file may have gone: open it anew next time

    def _drop(self, lines: bytes) -> None:
        self.dropped_lines += lines.count(b"\n")
        self.dropped_bytes += len(lines)

    def _open(self) -> None:
        if self._fd >= 0:
            return
        os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.path, flags, 0o640)
        self._size = os.fstat(self._fd).st_size
        start = max(self._size - TAIL_WINDOW, 0)
        tail = os.pread(self._fd, TAIL_WINDOW, start)
        if tail and not tail.endswith(b"\n"):  # a writer was killed in mid-line
            self._size = start + tail.rfind(b"\n") + 1
            os.ftruncate(self._fd, self._size)

    def _rotate(self) -> None:
        self.close()
        for number in range(self._files - 1, 0, -1):
            older = self.path if number == 1 else f"{self.path}.{number - 1}"
            try:
                os.rename(older, f"{self.path}.{number}")
            except FileNotFoundError:
                pass
        if self._files == 1:
            os.unlink(self.path)

    def finish(self, stamp: bytes) -> None:
        """At the end of the run: says what was dropped, if the disk lets it, and closes."""
        self._retry_at = 0.0
        if self.dropped_lines:
            self._say_dropped(stamp)
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._size = -1, 0


def rotated(path: str) -> list[str]:
    """The log's files that exist, the current one first."""
    found, number = [path] if os.path.exists(path) else [], 1
    while os.path.exists(f"{path}.{number}"):
        found.append(f"{path}.{number}")
        number += 1
    return found
