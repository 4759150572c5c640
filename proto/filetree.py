"""Trees of files as tar streams (POSIX pax), made and unpacked below folder descriptors: what `shoal cp` sends.

Both ends use it, and neither trusts the other. Every step is one name below an open folder, and no link is followed:
whoever made the stream, or changes the tree meanwhile, cannot lead outside of it.
"""

from __future__ import annotations

import os
import secrets
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

BLOCK = 512
CHUNK = 64 * 1024
END = bytes(2 * BLOCK)
MAX_DEPTH = 128  # folders; each is held open
MAX_RECORDS = 1 << 20  # bytes of one entry's pax records
PERMISSIONS = 0o777  # no setuid, setgid: the owner changes on the way

Warn = Callable[[str], None]


class TreeFault(Exception):
    """The tree or the stream cannot be taken; the message says what and why."""


class Kind(Enum):
    FILE = tarfile.REGTYPE
    FOLDER = tarfile.DIRTYPE
    LINK = tarfile.SYMTYPE


@dataclass(frozen=True, slots=True)
class Entry:
    """`path` begins with the top's own name; `target` is a link's; `mtime` in seconds."""

    path: str
    kind: Kind
    mode: int = 0o644
    mtime: float = 0.0
    size: int = 0
    target: str = ""

    @property
    def parts(self) -> list[str]:
        return self.path.split("/")


# ---- making a stream ----
def pack(found: int, top: str, warn: Warn) -> Iterator[bytes]:
    """The tree of an O_PATH descriptor, called `top` in the stream, in chunks. Special files are skipped with a
    warning. Raises OSError, TreeFault."""
    yield from frames(_packed(found, top, warn))


def _packed(found: int, top: str, warn: Warn) -> Iterator[bytes]:
    yield from _tree(found, top, warn, 0)
    yield END


def _tree(found: int, path: str, warn: Warn, depth: int) -> Iterator[bytes]:
    status = os.fstat(found)
    mode, mtime = stat.S_IMODE(status.st_mode), status.st_mtime
    if stat.S_ISREG(status.st_mode):
        yield header(Entry(path, Kind.FILE, mode, mtime, status.st_size))
        yield from _content(found, path, status.st_size, warn)
    elif stat.S_ISDIR(status.st_mode):
        if depth == MAX_DEPTH:
            raise TreeFault(f"{path}: folders are nested more than {MAX_DEPTH} deep")
        yield header(Entry(path, Kind.FOLDER, mode, mtime))
        yield from _children(found, path, warn, depth)
    elif stat.S_ISLNK(status.st_mode):
        yield header(Entry(path, Kind.LINK, mode, mtime, target=os.readlink("", dir_fd=found)))
    else:
        warn(f"{shown(path)} is a device, a socket or a pipe: skipped")


def _children(found: int, path: str, warn: Warn, depth: int) -> Iterator[bytes]:
    folder = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in sorted(os.listdir(folder)):
            try:
                child = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            except FileNotFoundError:
                continue  # removed meanwhile
            try:
                yield from _tree(child, f"{path}/{name}", warn, depth + 1)
            finally:
                os.close(child)
    finally:
        os.close(folder)


def _content(found: int, path: str, size: int, warn: Warn) -> Iterator[bytes]:
    """Exactly `size` bytes and the padding, whatever becomes of the file meanwhile."""
    left = size
    file = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while left and (data := os.read(file, min(left, CHUNK))):
            left -= len(data)
            yield data
    finally:
        os.close(file)
    if left:
        warn(f"{shown(path)} became shorter while it was read: zeros are in the place of {left} bytes")
    while left:
        yield bytes(min(left, CHUNK))
        left -= min(left, CHUNK)
    yield bytes(-size % BLOCK)


def header(entry: Entry) -> bytes:
    info = tarfile.TarInfo(entry.path)
    info.type, info.size, info.linkname = entry.kind.value, entry.size, entry.target
    info.mode, info.mtime = entry.mode, entry.mtime
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def frames(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of CHUNK, all but the last."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= CHUNK:
            yield bytes(waiting[:CHUNK])
            del waiting[:CHUNK]
    if waiting:
        yield bytes(waiting)


def shown(path: str) -> str:
    """A name as people can be shown it, whatever bytes it is of."""
    text = path.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


# ---- reading a stream ----
class Reader:
    """Iterates over the entries; `chunks` is the present one's content. Raises TreeFault."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        """`read` gives the next bytes, b"" at the end."""
        self._more = read
        self._waiting = bytearray()
        self._left = self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        while True:
            for _ in self.chunks():
                pass
            block = self._take(BLOCK)
            if not block.strip(b"\0"):
                return
            yield self._entry(block)

    def chunks(self) -> Iterator[bytes]:
        while self._left:
            data = self._take(min(self._left, CHUNK))
            self._left -= len(data)
            yield data
        self._take(self._padding)
        self._padding = 0

    def _take(self, count: int) -> bytes:
        while len(self._waiting) < count:
            data = self._more()
            if not data:
                raise TreeFault("the stream of files broke off before its end: what has come so far is there")
            self._waiting += data
        taken = bytes(self._waiting[:count])
        del self._waiting[:count]
        return taken

    def _entry(self, block: bytes) -> Entry:
        info, records = _parsed(block), dict[str, str]()
        if info.type == tarfile.XHDTYPE:
            if not 0 <= info.size <= MAX_RECORDS:
                raise TreeFault(f"an entry's description has {info.size} bytes: at most {MAX_RECORDS} are taken")
            records = _records(self._take(info.size))
            self._take(-info.size % BLOCK)
            info = _parsed(self._take(BLOCK))
        try:
            size = int(records.get("size", info.size))
            mtime = float(records.get("mtime", info.mtime))
        except ValueError:
            raise TreeFault("the stream of files is damaged: a number is none") from None
        path = records.get("path", info.name).removesuffix("/")
        kind = next((kind for kind in Kind if kind.value == info.type), None)
        if kind is None or size < 0 or (size and kind is not Kind.FILE):
            raise TreeFault(f"the stream holds {shown(path)} of a kind that is not taken")
        self._left, self._padding = size, -size % BLOCK
        return Entry(path, kind, info.mode & PERMISSIONS, mtime, size, records.get("linkpath", info.linkname))


def _parsed(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as fault:
        raise TreeFault(f"the stream of files is damaged: {fault}") from None


def _records(data: bytes) -> dict[str, str]:
    """Pax records: "LENGTH key=value\\n", the length counting all of it."""
    records = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data) or int(length) < len(length) + 3:
            raise TreeFault("the stream of files is damaged: a record's length is wrong")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
        data = data[int(length) :]
    return records


# ---- unpacking ----
@dataclass(slots=True)
class _Folder:
    """An open folder on the way down; `entry` when it was made here and gets its mode and time in the end."""

    name: str
    descriptor: int
    entry: Entry | None = None


class Unpacker:
    """Writes entries below `parent`, which stays open. The top is called `name` there (None: as in the stream; "": it
    is the parent itself). What exists is replaced, but for folders, into which is written."""

    def __init__(self, parent: int, name: str | None, owner: tuple[int, int] | None = None) -> None:
        self._name, self._owner = name, owner
        self._top = ""
        self._folders = [_Folder("", os.dup(parent))]
        self.bytes = self.files = 0

    def unpack(self, reader: Reader) -> None:
        """Raises OSError with the path in the stream, TreeFault."""
        try:
            for entry in reader:
                try:
                    self._write(entry, reader)
                except OSError as fault:
                    raise OSError(fault.errno, fault.strerror, shown(entry.path)) from fault
            if not self._top:
                raise TreeFault("nothing was sent")
            self._leave(1)
        finally:
            while self._folders:
                os.close(self._folders.pop().descriptor)

    def _write(self, entry: Entry, reader: Reader) -> None:
        *above, name = self._place(entry)
        self._leave(len(above) + 1)
        if [folder.name for folder in self._folders[1:]] != above:
            raise TreeFault(f"the stream holds {shown(entry.path)} before its folder")
        if not name:
            self._folders.append(_Folder("", os.dup(self._folders[0].descriptor)))
        elif entry.kind is Kind.FOLDER:
            self._folder(name, entry)
        elif entry.kind is Kind.LINK:
            self._link(name, entry)
        else:
            self._file(name, entry, reader)
        self.files += 1

    def _place(self, entry: Entry) -> list[str]:
        """The names from the parent down to the entry's own."""
        top, *below = entry.parts
        if any(part in ("", ".", "..") or "\0" in part for part in entry.parts) or len(below) > MAX_DEPTH:
            raise TreeFault(f"the stream holds the path {shown(entry.path)}, which is not taken: it could lead outside")
        if self._top and (top != self._top or not below):
            raise TreeFault(f"the stream holds {shown(entry.path)}, which is not in {shown(self._top)}")
        if not self._top and below:
            raise TreeFault(f"the stream holds {shown(entry.path)} before its folder")
        if not self._top and self._name == "" and entry.kind is not Kind.FOLDER:
            raise TreeFault(f"{shown(entry.path)} is no folder, so that there is nothing in it")
        self._top = top
        return [top if self._name is None else self._name, *below]

    def _leave(self, depth: int) -> None:
        """Closes the folders below the given depth; those that were made here get their mode and time."""
        while len(self._folders) > depth:
            folder = self._folders.pop()
            try:
                if folder.entry is not None:
                    os.fchmod(folder.descriptor, folder.entry.mode)
                    _set_time(folder.descriptor, folder.entry)
            finally:
                os.close(folder.descriptor)

    def _folder(self, name: str, entry: Entry) -> None:
        parent, made = self._folders[-1].descriptor, True
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            made = False
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=parent)
        except NotADirectoryError:
            raise TreeFault(f"{shown(entry.path)} exists there and is no folder: remove it first") from None
        self._folders.append(_Folder(name, descriptor, entry if made else None))
        if made and self._owner is not None:
            os.fchown(descriptor, *self._owner)

    def _link(self, name: str, entry: Entry) -> None:
        parent, hidden = self._folders[-1].descriptor, _hidden()
        os.symlink(entry.target, hidden, dir_fd=parent)
        try:
            if self._owner is not None:
                os.chown(hidden, *self._owner, dir_fd=parent, follow_symlinks=False)
            self._replace(parent, hidden, name, entry)
        except BaseException:
            _unlink(parent, hidden)
            raise

    def _file(self, name: str, entry: Entry, reader: Reader) -> None:
        """Under a hidden name first: nobody sees half a file, and one that is in use is not changed."""
        parent, hidden = self._folders[-1].descriptor, _hidden()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(hidden, flags, 0o600, dir_fd=parent)
        try:
            for data in reader.chunks():
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                self.bytes += len(data)
            if self._owner is not None:
                os.fchown(descriptor, *self._owner)
            os.fchmod(descriptor, entry.mode)
            _set_time(descriptor, entry)
            self._replace(parent, hidden, name, entry)
        except BaseException:
            _unlink(parent, hidden)
            raise
        finally:
            os.close(descriptor)

    def _replace(self, parent: int, hidden: str, name: str, entry: Entry) -> None:
        try:
            os.rename(hidden, name, src_dir_fd=parent, dst_dir_fd=parent)
        except IsADirectoryError:
            raise TreeFault(f"{shown(entry.path)} is a folder there: remove it first") from None


def _set_time(descriptor: int, entry: Entry) -> None:
    try:
        os.utime(descriptor, (entry.mtime, entry.mtime))
    except (OverflowError, ValueError):
        pass  # a time that this machine cannot write down is not worth failing for


def _hidden() -> str:
    return f".shoal-cp-{secrets.token_hex(8)}"


def _unlink(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except OSError:
        pass
