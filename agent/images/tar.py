"""A streaming reader of tar: ustar, pax and GNU forms, sparse files too (tar(5); POSIX.1-2017 pax; GNU tar manual, D).

Our own rather than `tarfile`: archives come from strangers, and that one reads headers of any size into memory, takes
a damaged header for the end, and has expressions that take quadratic time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal

from shoal.agent.images.port import ImageFault
from shoal.agent.images.streams import CHUNK, MIB, Read

BLOCK = 512
MAX_HEADER = MIB  # bytes of one pax header or long name
MAX_EXTENSIONS = 16  # headers before one entry
MAX_SEGMENTS = 100_000  # of one sparse file
MAX_NUMBER = 2**63 - 1
MAX_MAJOR, MAX_MINOR = 2**12 - 1, 2**20 - 1  # of Linux' device numbers
NS = 1_000_000_000
ZEROS = bytes(BLOCK)

FILE, HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIR, FIFO = "file", "hardlink", "symlink", "char", "block", "dir", "fifo"
_KINDS = {
    b"0": FILE,
    b"\0": FILE,
    b"7": FILE,
    b"S": FILE,
    b"1": HARDLINK,
    b"2": SYMLINK,
    b"3": CHAR,
    b"4": BLOCKDEV,
    b"5": DIR,
    b"6": FIFO,
}
# Whole and broken seconds; Python's tarfile writes exponents for times close to 0.
_TIME = re.compile(rb"-?[0-9]{1,10}(?:\.[0-9]{0,30})?(?:e-[0-9]{1,3})?")
XATTR = b"SCHILY.xattr."
_KEPT = (b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime")
_SPARSE = tuple(b"GNU.sparse." + name for name in (b"name", b"major", b"realsize", b"size", b"map"))


@dataclass(slots=True)
class Entry:
    """One member. `size` counts the stored bytes, `real_size` those of the file; `segments` (offset, length) place the
    stored bytes in a sparse file."""

    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    segments: list[tuple[int, int]] | None = None
    real_size: int = 0
    offset: int = 0  # of the stored bytes, from the start of the tar


class Tar:
    """Iterates over the entries; `chunks()` gives the current one's stored bytes, which else are skipped."""

    def __init__(self, read: Read, what: str, skip: Callable[[int], None] | None = None) -> None:
        self._read, self._seek, self.what = read, skip, what
        self._buffer, self._at = b"", 0
        self.position = 0
        self._left = 0  # stored bytes of the current entry that are not yet read
        self._padding = 0
        self._global: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry

    def chunks(self) -> Iterator[bytes]:
        while self._left:
            data = self._take(min(CHUNK, self._left))
            if not data:
                raise self._bad("it ends in the middle of a file: it was cut off")
            self._left -= len(data)
            yield data

    def _next(self) -> Entry | None:
        self._skip(self._left + self._padding)
        self._left = self._padding = 0
        pax: dict[bytes, bytes] = dict(self._global)
        xattrs: dict[str, bytes] = {}
        long: dict[bytes, bytes] = {}
        for _ in range(MAX_EXTENSIONS):
            header = self._take(BLOCK)
            if not header or header == ZEROS:
                if long or (pax and pax != self._global):
                    raise self._bad("it ends after an extended header: it was cut off")
                return None
            kind = header[156:157]
            size = self._first(header) if self.position <= BLOCK else self._check(header)
            if kind in b"LK" and kind:
                long[kind] = self._extended(size).rstrip(b"\0")
            elif kind in (b"x", b"X", b"g"):
                target = self._global if kind == b"g" else pax
                self._pax(self._extended(size), target, xattrs)
                if kind == b"g":
                    pax = {**self._global, **pax}
            else:
                return self._entry(header, kind, pax, xattrs, long)
        raise self._bad(f"over {MAX_EXTENSIONS} extended headers stand before one entry")

    def _first(self, header: bytes) -> int:
        try:
            return self._check(header)
        except ImageFault as fault:
            if len(header) < BLOCK:
                raise
            raise self._bad("it is not a tar archive") from fault

    def _check(self, header: bytes) -> int:
        if len(header) < BLOCK:
            raise self._bad("it ends in the middle of a header: it was cut off")
        claimed = self._number(header[148:156], "checksum")
        plain = header[:148] + b" " * 8 + header[156:]
        total = sum(plain)
        if claimed != total and claimed != total - 256 * sum(byte > 127 for byte in plain):
            raise self._bad("a header's checksum is wrong: it is damaged")
        return self._number(header[124:136], "size")

    def _entry(
        self, header: bytes, kind: bytes, pax: dict[bytes, bytes], xattrs: dict[str, bytes], long: dict[bytes, bytes]
    ) -> Entry:
        if kind not in _KINDS:
            raise self._bad(f"an entry has the type {kind!r}, which is not supported")
        name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or long.get(b"L") or _name(header)
        entry = Entry(
            name=name,
            kind=DIR if _KINDS[kind] == FILE and name.endswith(b"/") else _KINDS[kind],
            mode=self._number(header[100:108], "mode") & 0o7777,
            uid=self._pick(pax, b"uid", header[108:116]),
            gid=self._pick(pax, b"gid", header[116:124]),
            size=self._pick(pax, b"size", header[124:136]),
            mtime_ns=self._mtime(pax, header[136:148]),
            link=pax.get(b"linkpath") or long.get(b"K") or header[157:257].split(b"\0", 1)[0],
            xattrs=xattrs,
        )
        if entry.kind in (CHAR, BLOCKDEV):
            entry.major = self._number(header[329:337], "device number")
            entry.minor = self._number(header[337:345], "device number")
            if entry.major > MAX_MAJOR or entry.minor > MAX_MINOR:
                raise self._bad(f"the device number of {_shown(name)} is out of range")
        if b"\0" in name or b"\0" in entry.link:
            raise self._bad(f"{_shown(name)} has a NUL in its path or link")
        if entry.kind != FILE:
            entry.size = 0 if entry.kind != DIR else entry.size
        if entry.uid > 2**32 - 2 or entry.gid > 2**32 - 2:
            raise self._bad(f"the owner of {_shown(name)} is out of range")
        self._left, self._padding = entry.size, -entry.size % BLOCK
        entry.real_size = entry.size
        self._sparse(entry, header, kind, pax)
        entry.offset = self.position
        return entry

    def _sparse(self, entry: Entry, header: bytes, kind: bytes, pax: dict[bytes, bytes]) -> None:
        numbers: list[int]
        if kind == b"S":
            entry.real_size = self._number(header[483:495], "size")
            numbers = self._old_sparse_map(header)
        elif pax.get(b"GNU.sparse.major") == b"1":
            entry.real_size = self._decimal(pax.get(b"GNU.sparse.realsize", b""), "sparse size")
            numbers = self._sparse_map(entry)
        elif b"GNU.sparse.map" in pax:
            entry.real_size = self._decimal(pax.get(b"GNU.sparse.size", b""), "sparse size")
            numbers = [self._decimal(item, "sparse map") for item in pax[b"GNU.sparse.map"].split(b",") if item]
        else:
            return
        if len(numbers) % 2 or len(numbers) > 2 * MAX_SEGMENTS:
            raise self._bad(f"the sparse map of {_shown(entry.name)} is not valid")
        entry.segments = list(zip(numbers[::2], numbers[1::2], strict=True))
        end = 0
        for offset, length in entry.segments:
            if offset < end:
                raise self._bad(f"the sparse map of {_shown(entry.name)} overlaps itself")
            end = offset + length
        if end > entry.real_size or sum(length for _, length in entry.segments) != self._left:
            raise self._bad(f"the sparse map of {_shown(entry.name)} does not fit its size")

    def _old_sparse_map(self, header: bytes) -> list[int]:
        numbers = [self._number(header[at : at + 12], "sparse map") for at in range(386, 482, 12) if header[at]]
        more = header[482]
        while more:
            block = self._take(BLOCK)
            if len(block) < BLOCK or len(numbers) > 2 * MAX_SEGMENTS:
                raise self._bad("a sparse map is cut off or too long")
            numbers += [self._number(block[at : at + 12], "sparse map") for at in range(0, 504, 12) if block[at]]
            more = block[504]
        return numbers

    def _sparse_map(self, entry: Entry) -> list[int]:
        """Format 1.0: the map is decimal lines before the data, padded to a block."""
        text, lines, wanted = bytearray(), 0, 0
        while not wanted or lines < wanted:
            block = self._take(BLOCK)
            self._left -= BLOCK
            if len(block) < BLOCK or self._left < 0 or len(text) > MAX_HEADER:
                raise self._bad(f"the sparse map of {_shown(entry.name)} is cut off or too long")
            text += block
            lines += block.count(b"\n")  # each byte is looked at once: entries are many
            if lines and not wanted:
                wanted = 1 + 2 * self._decimal(bytes(text[: text.index(b"\n")]), "sparse map")
            if wanted > 2 * MAX_SEGMENTS:
                raise self._bad(f"the sparse map of {_shown(entry.name)} is too long")
        return [self._decimal(line, "sparse map") for line in bytes(text).split(b"\n")[1:wanted]]

    def _pax(self, data: bytes, target: dict[bytes, bytes], xattrs: dict[str, bytes]) -> None:
        at = 0
        pieces: list[bytes] = []  # format 0.0 repeats its two keys
        while at < len(data) and data[at] != 0:
            space = data.find(b" ", at, at + 20)
            length = self._decimal(data[at:space], "pax header") if space > 0 else 0
            record = data[space + 1 : at + length]
            key, equals, value = record[:-1].partition(b"=")
            if not equals or b"\0" in key or record[-1:] != b"\n" or at + length > len(data):
                raise self._bad("a pax header is damaged")
            at += length
            if key.startswith(XATTR):
                xattrs[key[len(XATTR) :].decode("utf-8", "surrogateescape")] = value
            elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                pieces.append(value)
            elif (key in _KEPT or key in _SPARSE) and value:  # no others: global ones stay to the end
                target[key] = value
            elif key in _KEPT:
                target.pop(key, None)
        if pieces:
            target[b"GNU.sparse.map"] = b",".join(pieces)

    def _extended(self, size: int) -> bytes:
        if size > MAX_HEADER:
            raise self._bad(f"an extended header claims {size} bytes; at most {MAX_HEADER} are read")
        data = self._take(size)
        if len(data) < size:
            raise self._bad("it ends in the middle of an extended header: it was cut off")
        self._skip(-size % BLOCK)
        return data

    def _pick(self, pax: dict[bytes, bytes], key: bytes, raw: bytes) -> int:
        what = key.decode()
        return self._decimal(pax[key], what) if key in pax else self._number(raw, what)

    def _mtime(self, pax: dict[bytes, bytes], raw: bytes) -> int:
        if b"mtime" not in pax:
            return min(self._number(raw, "mtime", negative=True), 2**34) * NS
        text = pax[b"mtime"]
        if _TIME.fullmatch(text) is None:
            raise self._bad("a pax header's mtime is not a number in range")
        return int(Decimal(text.decode()).scaleb(9))

    def _number(self, raw: bytes, what: str, negative: bool = False) -> int:
        """Octal digits, or base 256 when the first bit is set (GNU)."""
        if raw and raw[0] & 0x80:
            value = int.from_bytes(raw, "big", signed=True) if raw[0] == 0xFF else int.from_bytes(raw, "big")
            value = value if raw[0] == 0xFF else value - (0x80 << 8 * (len(raw) - 1))
        else:
            text = raw.split(b"\0", 1)[0].strip(b" ")
            if text.strip(b"01234567"):
                raise self._bad(f"a header's {what} is not a number")
            value = int(text or b"0", 8)
        if value > MAX_NUMBER or (value < 0 and not negative):
            raise self._bad(f"a header's {what} is out of range")
        return max(value, -(2**33))

    def _decimal(self, text: bytes, what: str) -> int:
        if not text.isdigit() or len(text) > 19 or int(text) > MAX_NUMBER:
            raise self._bad(f"a pax header's {what} is not a number in range")
        return int(text)

    def _take(self, n: int) -> bytes:
        """Exactly n bytes (at most about a MiB), or fewer at the end."""
        while len(self._buffer) - self._at < n:
            more = self._read(CHUNK)
            if not more:
                break
            self._buffer, self._at = self._buffer[self._at :] + more, 0
        data = self._buffer[self._at : self._at + n]
        self._at += len(data)
        self.position += len(data)
        return data

    def _skip(self, n: int) -> None:
        """A file cut off within the skipped part shows at its end: the next header, or the digest, is missing."""
        buffered = len(self._buffer) - self._at
        if self._seek is not None and n > buffered:
            self._seek(n - buffered)
            self._buffer, self._at = b"", 0
            self.position += n
            return
        while n > 0 and (data := self._take(min(CHUNK, n))):
            n -= len(data)

    def _bad(self, why: str) -> ImageFault:
        return ImageFault("BadArchive", f"{self.what}: {why} (near byte {self.position})")


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _shown(name: bytes) -> str:
    return repr(name[:200].decode("utf-8", "backslashreplace"))
