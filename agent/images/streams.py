"""Bounded readers that stack up: a region of a file, a digest over what passes, gzip and zstd undone.

A reader is `read(n) -> bytes`: up to n bytes, b"" at the end only.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, cast

import zstandard

from shoal.agent.images.port import ImageFault

Read = Callable[[int], bytes]
ReadAt = Callable[[int, int], bytes]  # bytes wanted, offset

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
CHUNK = 256 * KIB
SMALL_DISK = 20  # a reserve is at most this part of the disk
ZSTD_MAX_WINDOW = 128 * MIB  # what `zstd --ultra --long=27` needs; more would be memory for the asking


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one archive may cost its node, all in bytes save `ratio`, `entries` and `layers`."""

    archive: int = 32 * GIB  # the archive itself, its own compression undone
    unpacked: int = 64 * GIB  # all files of one layer
    ratio: int = 1100  # unpacked to packed; deflate cannot exceed 1,032
    ratio_free: int = 64 * MIB  # below this the ratio is not looked at
    document: int = 4 * MIB  # one manifest, index or configuration
    entries: int = 2_000_000  # of one layer
    layers: int = 256
    reserve: int = 128 * MIB  # of the disk, or a part of SMALL_DISK if that is less: never unpacked into


DEFAULT_BOUNDS = Bounds()


class Stopped(Exception):
    """The load was given up by its caller."""


class Region:
    """A part of a file, read by position; `stop` is asked before each read."""

    def __init__(self, read_at: ReadAt, offset: int, size: int, stop: Callable[[], bool] = lambda: False) -> None:
        self._read_at, self._at, self._end, self._stop = read_at, offset, offset + size, stop

    def read(self, n: int) -> bytes:
        if self._stop():
            raise Stopped
        data = self._read_at(min(n, self._end - self._at), self._at)
        self._at += len(data)
        return data

    def skip(self, n: int) -> None:
        self._at = min(self._end, self._at + n)


class Digest:
    """Passes on what it reads and keeps the digest and the count of it."""

    def __init__(self, read: Read, algorithm: str = "sha256") -> None:
        self._read, self._hash = read, hashlib.new(algorithm)
        self._algorithm = algorithm
        self.count = 0

    def read(self, n: int) -> bytes:
        data = self._read(n)
        self._hash.update(data)
        self.count += len(data)
        return data

    def drain(self) -> None:
        while self.read(CHUNK):
            pass

    @property
    def value(self) -> str:
        return f"{self._algorithm}:{self._hash.hexdigest()}"


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class Gunzip:
    """Undoes gzip of one or several members (RFC 1952); what follows the last member is ignored."""

    def __init__(self, read: Read, what: str, first: bytes = b"") -> None:
        self._read, self._what = read, what
        self._left = first
        self._engine = zlib.decompressobj(wbits=31)
        self._over = False

    def read(self, n: int) -> bytes:
        while not self._over:
            data = self._left or self._read(CHUNK)
            if not data:
                raise ImageFault("BadArchive", f"{self._what} ends in the middle of its gzip data: it was cut off")
            try:
                out = self._engine.decompress(data, n)
            except zlib.error as error:
                raise ImageFault("BadArchive", f"{self._what} is not intact gzip data: {error}") from error
            self._left = self._engine.unconsumed_tail
            if self._engine.eof:
                self._next_member(self._engine.unused_data)
            if out:
                return out
        return b""

    def _next_member(self, rest: bytes) -> None:
        rest = rest if len(rest) >= 2 else rest + self._read(CHUNK)
        if rest[:2] == b"\x1f\x8b":
            self._engine = zlib.decompressobj(wbits=31)
            self._left = rest
        else:
            self._over = True


class Unzstd:
    """Undoes zstd of one or several frames (RFC 8878), skippable ones too."""

    def __init__(self, read: Read, what: str, first: bytes = b"") -> None:
        self._what = what
        engine = zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW)
        source = cast(IO[bytes], _Source(_joined(first, read)))
        self._reader = engine.stream_reader(source, read_size=CHUNK, read_across_frames=True)

    def read(self, n: int) -> bytes:
        try:
            return bytes(self._reader.read(n))
        except zstandard.ZstdError as error:
            raise ImageFault("BadArchive", f"{self._what} is not intact zstd data: {error}") from error


class _Source:
    """The one method of a file that zstandard asks for."""

    def __init__(self, read: Read) -> None:
        self.read = read


_UNSUPPORTED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"Rar!": "rar"}
MAGIC_SIZE = 6


def packing(first: bytes) -> str:
    """How data that begins so is packed: gzip, zstd, a kind that is not read, or "" for not at all."""
    if first[:2] == b"\x1f\x8b":
        return "gzip"
    if first[:4] == b"\x28\xb5\x2f\xfd" or (first[1:4] == b"\x2a\x4d\x18" and first[0] & 0xF0 == 0x50):
        return "zstd"
    return next((kind for magic, kind in _UNSUPPORTED.items() if first.startswith(magic)), "")


def unpacker(read: Read, what: str) -> Read:
    """Undoes the compression that the first bytes show, whatever a media type claims."""
    first = b""
    while len(first) < MAGIC_SIZE:
        more = read(CHUNK)
        if not more:
            break
        first += more
    kind = packing(first)
    if kind == "gzip":
        return Gunzip(read, what, first).read
    if kind == "zstd":
        return Unzstd(read, what, first).read
    if kind:
        raise ImageFault("BadArchive", f"{what} is {kind} data: plain tar, gzip and zstd are read")
    return _joined(first, read)


def _joined(first: bytes, read: Read) -> Read:
    left = first

    def joined(n: int) -> bytes:
        nonlocal left
        if left:
            data, left = left[:n], left[n:]
            return data
        return read(n)

    return joined


class Limited:
    """Refuses more than `limit` bytes, and more than `ratio` times what `packed` has counted."""

    def __init__(self, read: Read, what: str, limit: int, packed: Callable[[], int], bounds: Bounds) -> None:
        self._read, self._what, self._limit, self._packed, self._bounds = read, what, limit, packed, bounds
        self.count = 0

    def read(self, n: int) -> bytes:
        data = self._read(n)
        self.count += len(data)
        if self.count > self._limit:
            raise ImageFault("TooLarge", f"{self._what} unpacks to more than {self._limit // MIB} MiB: refused")
        if self.count > self._bounds.ratio_free and self.count > self._bounds.ratio * (self._packed() + 1):
            raise ImageFault("TooLarge", f"{self._what} unpacks to over {self._bounds.ratio} times its size: refused")
        return data
