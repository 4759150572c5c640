"""The image store's folder: one index file says what is in it, and everything else is a leftover.

    index.json        images, names and layers; replaced by write, fsync, rename: that rename is every commit
    blobs/<kind>/     configurations, manifests and packed layers, by digest
    l/<n>             unpacked layers; the names are short because mount options are limited to 4 KiB
    holders/          one file per holder
    staging/  trash/  what is under way, things to delete; emptied at start
    reserve           blocks given up when a full disk would keep images from being removed
    lock              one process at a time

Everything here blocks: it is called in threads, never on the loop.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.agent.images.catalog import Catalog, Record
from shoal.agent.images.port import ImageFault
from shoal.agent.images.streams import KIB, MIB

VERSION = 1
RESERVE = 256 * KIB
FULL = (errno.ENOSPC, errno.EDQUOT)
FOLDERS = ("blobs/sha256", "blobs/sha512", "l", "holders", "staging", "trash")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Layer:
    folder: str  # its name below l/
    diff_id: str
    size: int = 0  # bytes of its tar


@dataclass(frozen=True, slots=True)
class State:
    """What the index says. `layers`: chain id -> layer; `blobs`: packed layers that are kept: digest -> bytes;
    `serial`: the number of the next layer's folder."""

    catalog: Catalog = field(default_factory=Catalog)
    layers: Mapping[str, Layer] = field(default_factory=dict)
    blobs: Mapping[str, int] = field(default_factory=dict)
    serial: int = 1


class Disk:
    """Owns one folder. `open` takes its lock and sweeps it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = -1
        self._staged = itertools.count(1)  # asked by several threads

    def open(self) -> State:
        """Raises ImageFault when the folder is in use or its index is damaged (then nothing is touched)."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            for name in FOLDERS:
                (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            state = self._read()
            self._sweep(state)
        except OSError as error:
            self.close()
            raise self.fault(error) from error
        except BaseException:
            self.close()
            raise
        return state

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def folder_of(self, layer: Layer) -> str:
        return str(self.root / "l" / layer.folder)

    def staging(self) -> Path:
        """A place that nobody else has, for `stage`; `discard` it at the end in any case. Does not block."""
        return self.root / "staging" / str(next(self._staged))

    def stage(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)

    def discard(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def flush(self) -> None:
        """Everything written so far reaches the disk: one syncfs(2) rather than an fsync per unpacked file."""
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libc.syncfs(folder) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), str(self.root))
        finally:
            os.close(folder)

    def new_layer(self, folder: str) -> Path:
        """An empty folder at a layer's place. No index names it yet."""
        path = self.root / "l" / folder
        path.mkdir(mode=0o700)
        return path

    def keep_blob(self, path: Path, digest: str) -> None:
        """Moves a packed layer to its place. No index names it yet."""
        os.rename(path, self.blob(digest))

    def write(self, documents: Mapping[str, bytes]) -> None:
        """Configurations and manifests; the `flush` before the commit makes them last."""
        for digest, document in documents.items():
            self._replace(self.blob(digest), document, durable=False)

    def commit(self, state: State) -> None:
        """Makes `state` the truth. On a full disk the reserve is spent, so that removing always works."""
        data = json.dumps(_encode(state), indent=1, sort_keys=True).encode()
        try:
            self._replace(self.root / "index.json", data)
        except OSError as error:
            if error.errno not in FULL or not self._spend():
                raise
            self._replace(self.root / "index.json", data)
        self._save()

    def drop(self, layers: Sequence[Layer], blobs: Iterable[str]) -> None:
        """Deletes what the index no longer names; what fails is left to the next start."""
        for digest in blobs:
            self.blob(digest).unlink(missing_ok=True)
        for layer in layers:
            trash = self.root / "trash" / layer.folder
            try:
                os.rename(self.folder_of(layer), trash)
            except OSError:
                continue
            shutil.rmtree(trash, ignore_errors=True)

    def document(self, digest: str) -> bytes:
        return self.blob(digest).read_bytes()

    def read_blob(self, digest: str, offset: int, count: int) -> bytes:
        with self.blob(digest).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), count, offset)

    def space(self) -> tuple[int, int]:
        """Free and all bytes of its file system."""
        usage = shutil.disk_usage(self.root)
        return usage.free, usage.total

    def keep_holder(self, holder: str, held: frozenset[str]) -> None:
        """Not fsynced: a hold guards running containers, which end with the machine too."""
        data = json.dumps({"holder": holder, "images": sorted(held)}).encode()
        self._replace(self._holder(holder), data, durable=False)

    def drop_holder(self, holder: str) -> None:
        self._holder(holder).unlink(missing_ok=True)

    def fault(self, error: OSError) -> ImageFault:
        """What a failed system call means to people."""
        if error.errno in FULL:
            try:
                space = shutil.disk_usage(self.root)
                left = f"{space.free // MIB} of {space.total // MIB} MiB free"
            except OSError:
                left = "nothing free"
            return ImageFault("NoSpace", f"the disk of {self.root} is full ({left}): remove images or enlarge it")
        where = f" ({error.filename})" if error.filename else ""
        return ImageFault("ImageInspectError", f"the image folder {self.root} fails: {error.strerror}{where}")

    def _take_lock(self) -> None:
        self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ImageFault("InUse", f"another agent uses the image folder {self.root}: stop it first") from error

    def _read(self) -> State:
        path = self.root / "index.json"
        try:
            document = json.loads(path.read_bytes())
            if document["version"] != VERSION:
                raise ValueError(f"it has version {document['version']}, this program reads {VERSION}")
            state = _decode(document)
        except FileNotFoundError:
            state = State()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImageFault(
                "ImageInspectError", f"{path} is damaged ({error}): move the folder away and load the images again"
            ) from error
        layers = {chain: one for chain, one in state.layers.items() if os.path.isdir(self.folder_of(one))}
        blobs = {digest: size for digest, size in state.blobs.items() if os.path.isfile(self.blob(digest))}
        return State(Catalog(state.catalog.images, self._holders()), layers, blobs, state.serial)

    def _holders(self) -> dict[str, frozenset[str]]:
        """A file that does not read was torn by a power cut: with it ended what it guarded."""
        holders = {}
        for path in (self.root / "holders").iterdir():
            try:
                document = json.loads(path.read_bytes())
                holders[str(document["holder"])] = frozenset(map(str, document["images"]))
            except (ValueError, KeyError, TypeError):
                path.unlink()
        return holders

    def _sweep(self, state: State) -> None:
        """Deletes everything that the index does not name."""
        layers = {layer.folder for layer in state.layers.values()}
        blobs = {digest.partition(":")[2] for digest in (*state.catalog.documents(), *state.blobs)}
        whole = {"l": layers, "blobs/sha256": blobs, "blobs/sha512": blobs, "staging": set(), "trash": set()}
        for name, kept in whole.items():
            for path in (self.root / name).iterdir():
                if path.name in kept:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        for path in self.root.glob("*.new"):
            path.unlink()

    def _replace(self, path: Path, data: bytes, durable: bool = True) -> None:
        new = path.with_name(path.name + ".new")
        made = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(made, "wb", closefd=True) as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(made)
            os.rename(new, path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        if durable:
            _sync_folder(path.parent)

    def _spend(self) -> bool:
        try:
            (self.root / "reserve").unlink()
        except FileNotFoundError:
            return False
        return True

    def _save(self) -> None:
        path = self.root / "reserve"
        if path.exists():
            return
        try:
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(made, 0, RESERVE)
            finally:
                os.close(made)
        except OSError:
            path.unlink(missing_ok=True)

    def blob(self, digest: str) -> Path:
        return self.root / "blobs" / digest.replace(":", "/", 1)

    def _holder(self, holder: str) -> Path:
        return self.root / "holders" / hashlib.sha256(holder.encode()).hexdigest()[:32]


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _encode(state: State) -> dict[str, Any]:
    return {
        "version": VERSION,
        "serial": state.serial,
        "layers": {
            chain: {"folder": one.folder, "diffID": one.diff_id, "size": one.size}
            for chain, one in state.layers.items()
        },
        "blobs": dict(state.blobs),
        "images": [
            {
                "id": image.id,
                "digests": list(image.digests),
                "names": list(image.names),
                "size": image.size,
                "chain": list(image.chain),
                "blobs": list(image.blobs),
                "used": image.used,
            }
            for image in state.catalog.images.values()
        ],
    }


def _decode(document: dict[str, Any]) -> State:
    """Sizes, blobs and times came later: an older index lacks them."""
    layers = {
        chain: Layer(one["folder"], one["diffID"], int(one.get("size", 0))) for chain, one in document["layers"].items()
    }
    images = {}
    for one in document["images"]:
        chain, packed = tuple(one["chain"]), tuple(one.get("blobs", ()))
        names, used = tuple(one["names"]), float(one.get("used", 0))
        record = Record(one["id"], tuple(one["digests"]), names, int(one["size"]), chain, packed, used)
        images[record.digest] = record
    blobs = {str(digest): int(size) for digest, size in document.get("blobs", {}).items()}
    return State(Catalog(images), layers, blobs, int(document["serial"]))
