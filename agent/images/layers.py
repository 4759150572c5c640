"""Unpacks one layer into a folder as overlayfs wants it (image-spec, layer.md; the kernel's overlayfs.rst).

Whiteouts become 0/0 character devices, opaque folders the xattr trusted.overlay.opaque. A layer is unpacked above the
layers below it: folders that it only passes through take their attributes, and links in them are followed, within the
root. Every place is reached from the root's descriptor by openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS): links are
resolved here, by our own walk, so that none can lead out.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from shoal.agent.images import tar
from shoal.agent.images.archive import LayerSource
from shoal.agent.images.port import ImageFault
from shoal.agent.images.streams import CHUNK, SMALL_DISK, Bounds, Digest, Limited, Region, unpacker
from shoal.agent.runtime import syscalls

Parts = tuple[bytes, ...]

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
AUFS = b".wh..wh."  # aufs' own bookkeeping, which means nothing elsewhere
OPAQUE_XATTR = "trusted.overlay.opaque"
KEPT_XATTRS = ("security.capability", "system.posix_acl_access", "system.posix_acl_default")  # and user.*
MAX_DEPTH = 256  # folders within each other
MAX_REPLACED = 1000  # folders of a layer by other things in it: each costs a look at all folders so far
MAX_LINKS = 40  # as the kernel's MAXSYMLINKS
NEW_DIR = 0o755
BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def shown(name: bytes, what: str) -> str:
    return f"{what}: {name[:300].decode('utf-8', 'backslashreplace')!r}"


def parts_of(name: bytes, what: str) -> Parts:
    """A member's path in parts. Raises ImageFault(BadPath) for one that is absolute or climbs."""
    if name.startswith(b"/") or b"\0" in name:
        raise ImageFault("BadPath", f"{shown(name, what)} is an absolute path or holds a NUL: refused")
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise ImageFault("BadPath", f"{shown(name, what)} climbs out with '..': refused")
    return parts


def read_layer(source: LayerSource, region: Region, bounds: Bounds, consume: Callable[[tar.Tar], None]) -> int:
    """Streams a layer's tar through `consume` and checks both of its digests. Returns the unpacked bytes.

    Raises ImageFault; BadDigest goes first, since damage shows in many ways.
    """
    what = f"the layer {source.digest[:19]}"
    packed = Digest(region.read, source.digest.partition(":")[0])
    try:
        plain = Digest(unpacker(packed.read, what), source.diff_id.partition(":")[0])
        limited = Limited(plain.read, what, bounds.unpacked, lambda: packed.count, bounds)
        consume(tar.Tar(limited.read, what))
        while limited.read(CHUNK):
            pass
    except ImageFault as fault:
        if fault.reason != "TooLarge":
            check(source, packed)
        raise
    check(source, packed)
    if plain.value != source.diff_id:
        raise ImageFault(
            "BadDigest", f"{what} unpacks to {plain.value}, the image's configuration says {source.diff_id}"
        )
    return plain.count


def check_packed(source: LayerSource, region: Region) -> None:
    """Only the packed form's digest, for a layer that is here already. Raises ImageFault(BadDigest)."""
    check(source, Digest(region.read, source.digest.partition(":")[0]))


def check(source: LayerSource, packed: Digest) -> None:
    packed.drain()
    if packed.value != source.digest:
        raise ImageFault("BadDigest", f"the layer {source.digest} has the digest {packed.value}: it is damaged")


class Lower:
    """The layers below, topmost first, seen as overlayfs would merge them."""

    def __init__(self, folders: Sequence[int]) -> None:
        self._folders = folders

    def find(self, parts: Parts) -> tuple[int, os.stat_result] | None:
        """The layer's descriptor and the state of what is visible at a path whose parents are real folders."""
        for folder in self._folders:
            found, hides = self._look(folder, parts)
            if found is not None:
                return None if is_whiteout(found) else (folder, found)
            if hides:
                return None
        return None

    def _look(self, folder: int, parts: Parts) -> tuple[os.stat_result | None, bool]:
        hides = False
        for depth in range(1, len(parts) + 1):
            path = b"/".join(parts[:depth])
            try:
                state = os.stat(path, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                return None, hides
            if depth == len(parts):
                return state, True
            if not stat.S_ISDIR(state.st_mode):
                return None, True
            hides = hides or _is_opaque(folder, path)
        return None, hides


def is_whiteout(state: os.stat_result) -> bool:
    return stat.S_ISCHR(state.st_mode) and state.st_rdev == 0


class Unpacker:
    """Unpacks one layer's entries below the folder `root`; `close` it in any case."""

    def __init__(self, root: str, lowers: Sequence[str], bounds: Bounds, what: str) -> None:
        self.what, self._bounds = what, bounds
        self._root = os.open(root, DIRECTORY)
        self._lowers: list[int] = []
        try:
            for lower in reversed(lowers):
                self._lowers.append(os.open(lower, DIRECTORY))
        except OSError:
            self.close()
            raise
        self._lower = Lower(self._lowers)
        self._opaque: set[Parts] = set()
        self._times: dict[Parts, int] = {}  # of folders: set last, as filling them changes them
        self._parent: tuple[Parts, int] | None = None  # the folder opened last, and its descriptor
        self._parent_valid = False
        self._written = self._replaced = 0

    def close(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None
        for folder in (self._root, *self._lowers):
            os.close(folder)
        self._lowers = []

    def unpack(self, archive: tar.Tar) -> None:
        """Raises ImageFault(BadPath, BadArchive, TooLarge) and OSError of a full disk."""
        for count, entry in enumerate(archive, 1):
            if count > self._bounds.entries:
                raise ImageFault("TooLarge", f"{self.what} has more than {self._bounds.entries} entries")
            try:
                self._entry(archive, entry)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE):
                    raise
                raise ImageFault("BadArchive", f"{self._at(entry.name)} cannot be made: {error.strerror}") from error
        for parts, mtime in self._times.items():
            self._touch_dir(parts, mtime)

    def _entry(self, archive: tar.Tar, entry: tar.Entry) -> None:
        parts = parts_of(entry.name, self.what)
        if not parts:
            if entry.kind == tar.DIR:
                self._attributes(self._root, entry)
                self._times[()] = entry.mtime_ns
            return
        name, above = parts[-1], parts[:-1]
        if any(part.startswith(AUFS) for part in above) or (name.startswith(AUFS) and name != OPAQUE):
            return
        if any(part.startswith(WHITEOUT) for part in above):
            raise ImageFault("BadPath", f"{self._at(entry.name)} lies below a whiteout")
        real, folder = self._open_parent(above)
        if name == OPAQUE:
            self._make_opaque(real, folder)
        elif name.startswith(WHITEOUT):
            self._whiteout(real, folder, name[len(WHITEOUT) :], entry)
        else:
            self._make(archive, entry, real, folder, name)

    def _make(self, archive: tar.Tar, entry: tar.Entry, real: Parts, folder: int, name: bytes) -> None:
        if entry.kind == tar.DIR:
            self._make_dir(entry, real, folder, name)
            return
        path = (*real, name)
        if entry.kind == tar.HARDLINK:
            self._hard_link(entry, path, folder, name)
            return
        self._clear(path, folder, name)
        if entry.kind == tar.FILE:
            self._make_file(archive, entry, folder, name)
            return
        if entry.kind == tar.SYMLINK:
            os.symlink(entry.link, name, dir_fd=folder)
        elif entry.kind == tar.FIFO:
            os.mkfifo(name, 0o600, dir_fd=folder)
        else:
            kind = stat.S_IFCHR if entry.kind == tar.CHAR else stat.S_IFBLK
            os.mknod(name, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=folder)
        os.chown(name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
        if entry.kind != tar.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=folder)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False)

    def _make_dir(self, entry: tar.Entry, real: Parts, folder: int, name: bytes) -> None:
        path = (*real, name)
        self._real_dir(path, folder, name)
        with _opened(name, folder) as made:
            self._attributes(made, entry)
        self._times[path] = entry.mtime_ns

    def _real_dir(self, path: Parts, folder: int, name: bytes) -> None:
        """A folder of this layer at that place; what was a whiteout hides what lies below."""
        state = self._state(folder, name)
        if state is not None and stat.S_ISDIR(state.st_mode):
            return
        if state is not None:
            self._clear(path, folder, name)
        os.mkdir(name, 0o700, dir_fd=folder)
        if state is not None and is_whiteout(state):
            with _opened(name, folder) as made:
                self._make_opaque(path, made)

    def _make_file(self, archive: tar.Tar, entry: tar.Entry, folder: int, name: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._written += entry.size
        if self._written > self._bounds.unpacked or entry.real_size > self._bounds.unpacked:
            raise ImageFault("TooLarge", f"{self.what} unpacks to more than {self._bounds.unpacked} bytes: refused")
        made = os.open(name, flags, 0o600, dir_fd=folder)
        try:
            _fill(made, self._leaving_room(archive.chunks()), entry)
            self._attributes(made, entry)
            os.utime(made, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(made)

    def _leaving_room(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """A layer may unpack to far more than it promises: the disk's last part stays everybody else's."""
        for data in chunks:
            disk = os.fstatvfs(self._root)
            if disk.f_bavail * disk.f_frsize < min(self._bounds.reserve, disk.f_blocks * disk.f_frsize // SMALL_DISK):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield data

    def _attributes(self, made: int, entry: tar.Entry) -> None:
        """Owner before mode and capabilities: chown(2) takes setuid bits and capabilities away."""
        os.fchown(made, entry.uid, entry.gid)
        os.fchmod(made, entry.mode)
        for key, value in entry.xattrs.items():
            if key in KEPT_XATTRS or (key.startswith("user.") and not key.startswith("user.overlay.")):
                os.setxattr(made, key, value)

    def _hard_link(self, entry: tar.Entry, path: Parts, folder: int, name: bytes) -> None:
        target = parts_of(entry.link, self.what)
        if not target:
            raise ImageFault("BadPath", f"{self._at(entry.name)} is a hard link to the root: refused")
        real = self._resolve(target[:-1])
        if (*real, target[-1]) == path:
            return
        source = self._open(real)
        try:
            state = self._state(source, target[-1])
            if state is None or stat.S_ISDIR(state.st_mode) or is_whiteout(state):
                raise ImageFault(
                    "BadArchive",
                    f"{self._at(entry.name)} is a hard link to {entry.link[:300]!r}, no file of this layer",
                )
            self._clear(path, folder, name)
            os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(source)

    def _whiteout(self, real: Parts, folder: int, name: bytes, entry: tar.Entry) -> None:
        """Hides `name` of the layers below, never of this one, whatever the order in the tar."""
        if name in (b"", b".", b".."):
            raise ImageFault("BadPath", f"{self._at(entry.name)} is a whiteout of nothing")
        path = (*real, name)
        state = self._state(folder, name)
        if state is not None:
            if stat.S_ISDIR(state.st_mode):
                with _opened(name, folder) as made:
                    self._make_opaque(path, made)
            return
        if self._below(path) is not None:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=folder)

    def _make_opaque(self, real: Parts, folder: int) -> None:
        os.setxattr(folder, OPAQUE_XATTR, b"y")
        self._opaque.add(real)

    def _open_parent(self, named: Parts) -> tuple[Parts, int]:
        """The real folder behind a name. Kept for the next entry when no link leads there: links may change."""
        if self._parent is not None:
            if self._parent_valid and self._parent[0] == named:
                return self._parent
            os.close(self._parent[1])
            self._parent = None
        real = self._resolve(named)
        self._parent, self._parent_valid = (real, self._open(real)), real == named
        return self._parent

    def _open(self, real: Parts) -> int:
        return syscalls.openat2(self._root, b"/".join(real) or b".", DIRECTORY, BENEATH)

    def _resolve(self, named: Parts) -> Parts:
        """Follows links within the root, in this layer and below, and makes what folders are missing in this layer."""
        todo, real, links = list(reversed(named)), list[bytes](), 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if not real:
                    raise ImageFault("BadPath", f"{self._at(b'/'.join(named))} climbs out through a link: refused")
                real.pop()
                continue
            target = self._step((*real, part), named)
            if target is None:
                real.append(part)
                if len(real) > MAX_DEPTH:
                    raise ImageFault("BadPath", f"{self._at(b'/'.join(named))} lies over {MAX_DEPTH} folders deep")
                continue
            links += 1
            if links > MAX_LINKS:
                raise ImageFault("BadPath", f"{self._at(b'/'.join(named))} leads through over {MAX_LINKS} links")
            if target.startswith(b"/"):
                real.clear()
            todo.extend(reversed(target.split(b"/")))
        return tuple(real)

    def _step(self, path: Parts, named: Parts) -> bytes | None:
        """None when `path` is, or now is, a folder of this layer; else the target of the link there."""
        full = b"/".join(path)
        state = self._state(self._root, full)
        if state is not None and stat.S_ISDIR(state.st_mode):
            return None
        if state is not None and stat.S_ISLNK(state.st_mode):
            return os.readlink(full, dir_fd=self._root)
        if state is not None and not is_whiteout(state):
            raise ImageFault("BadPath", f"{self._at(b'/'.join(named))} lies below {full!r}, which is no folder")
        below = self._below(path) if state is None else None
        if below is not None and stat.S_ISLNK(below[1].st_mode):
            return os.readlink(full, dir_fd=below[0])
        folder = self._open(path[:-1])
        try:
            self._real_dir(path, folder, path[-1])
            with _opened(path[-1], folder) as made:
                self._inherit(made, path, below)
        finally:
            os.close(folder)
        return None

    def _inherit(self, made: int, path: Parts, below: tuple[int, os.stat_result] | None) -> None:
        """A folder that the tar only passes through looks as it does below."""
        if below is None or not stat.S_ISDIR(below[1].st_mode):
            os.fchmod(made, NEW_DIR)
            return
        state = below[1]
        os.fchown(made, state.st_uid, state.st_gid)
        os.fchmod(made, stat.S_IMODE(state.st_mode))
        origin = syscalls.openat2(below[0], b"/".join(path), DIRECTORY, BENEATH)
        try:
            for key in os.listxattr(origin):
                if key in KEPT_XATTRS or key.startswith("user."):
                    os.setxattr(made, key, os.getxattr(origin, key))
        finally:
            os.close(origin)
        self._times[path] = state.st_mtime_ns

    def _touch_dir(self, parts: Parts, mtime_ns: int) -> None:
        folder = self._open(parts)
        try:
            os.utime(folder, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(folder)

    def _below(self, path: Parts) -> tuple[int, os.stat_result] | None:
        """What the layers below show there, unless a folder of this layer hides it."""
        if any(path[:depth] in self._opaque for depth in range(len(path))):
            return None
        return self._lower.find(path)

    def _clear(self, path: Parts, folder: int, name: bytes) -> None:
        """Takes away what an earlier entry of this layer put there."""
        state = self._state(folder, name)
        if state is None:
            return
        self._parent_valid = False
        if not stat.S_ISDIR(state.st_mode):
            os.unlink(name, dir_fd=folder)
            return
        self._replaced += 1
        if self._replaced > MAX_REPLACED:
            raise ImageFault("TooLarge", f"{self.what} replaces over {MAX_REPLACED} of its own folders: refused")
        shutil.rmtree(name, dir_fd=folder)
        gone = [key for key in self._times if key[: len(path)] == path]
        for key in gone:
            del self._times[key]
        self._opaque = {key for key in self._opaque if key[: len(path)] != path}

    def _state(self, folder: int, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _at(self, name: bytes) -> str:
        return shown(name, self.what)


@contextmanager
def _opened(name: bytes, folder: int) -> Iterator[int]:
    made = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        yield made
    finally:
        os.close(made)


def _is_opaque(folder: int, path: bytes) -> bool:
    opened = syscalls.openat2(folder, path, DIRECTORY, BENEATH)
    try:
        return OPAQUE_XATTR in os.listxattr(opened) and os.getxattr(opened, OPAQUE_XATTR) == b"y"
    finally:
        os.close(opened)


def _fill(made: int, chunks: Iterator[bytes], entry: tar.Entry) -> None:
    """Writes a file's data; the holes of a sparse one stay holes."""
    if entry.segments is None:
        for data in chunks:
            _write(made, data)
        return
    segments = iter(entry.segments)
    at = left = 0
    for data in chunks:
        view = memoryview(data)
        while len(view):
            while not left:
                at, left = next(segments)
                os.lseek(made, at, os.SEEK_SET)
            _write(made, view[:left])
            left, view = left - min(left, len(view)), view[left:]
    os.ftruncate(made, entry.real_size)


def _write(made: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(made, view) :]
