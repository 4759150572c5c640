"""The image store of a node: takes in archives, shares unpacked layers, keeps what is held.

The blocking work runs in this adapter's own threads; they never fork. A commit is one rename of the index (`disk.py`),
so a kill or a full disk at any moment leaves the last state.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from shoal.agent.images import layers, names, oci
from shoal.agent.images.archive import Archive, Found, LayerSource, named, spool
from shoal.agent.images.catalog import Catalog, Record
from shoal.agent.images.disk import Disk, Layer, State
from shoal.agent.images.port import Credential, Image, ImageConfig, ImageFault, Pruned
from shoal.agent.images.streams import DEFAULT_BOUNDS, MAGIC_SIZE, MIB, Bounds, Region, digest_of, packing

log = logging.getLogger(__name__)
T = TypeVar("T")
Progress = Callable[[str], None]

THREADS = 3  # one unpacks, the others write and answer
WRITE_SIZE = MIB


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A layer that this load unpacked into its staging folder."""

    source: LayerSource
    path: Path


class ImageStore:
    """The port `Images` on a folder of its own; made by `open`, ended by `close`."""

    def __init__(self, disk: Disk, architecture: str, bounds: Bounds) -> None:
        self._disk, self._architecture, self._bounds = disk, architecture, bounds
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="shoal-images")
        self._state = State()
        self._configs: dict[str, ImageConfig | ImageFault] = {}
        self._installing = asyncio.Lock()  # one load unpacks at a time, so that none does another's work again
        self._changing = asyncio.Lock()
        self._pins: Counter[str] = Counter()  # chain ids that a load under way counts on
        self._commits: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, root: Path, architecture: str, bounds: Bounds = DEFAULT_BOUNDS) -> ImageStore:
        """Sweeps what a crash has left. `architecture` as OCI writes it. Raises ImageFault."""
        store = cls(Disk(root), architecture, bounds)
        try:
            store._state = await store._thread(store._disk.open)
            await store._read_configs()
            kept = Catalog(store._state.catalog.images, store._state.catalog.holders).pruned()
            await store._change(lambda _: kept)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Waits for commits under way and gives the folder free."""
        while self._commits:
            await asyncio.wait(self._commits)
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)
        self._disk.close()

    async def find(self, name: str) -> Image | None:
        record = self._state.catalog.find(name)
        return None if record is None else self._image(record)

    async def list(self) -> Sequence[Image]:
        images = self._state.catalog.images.values()
        good = [one for one in images if isinstance(self._configs.get(one.id), ImageConfig)]
        return [self._image(record) for record in sorted(good, key=lambda one: (*one.names, one.digest))]

    async def load(
        self, chunks: AsyncIterator[bytes], name: str = "", progress: Progress | None = None
    ) -> Sequence[Image]:
        if name:
            names.parse(name)
        load = _Load(self, progress)
        try:
            return await load.run(chunks, name)
        finally:
            await load.end()

    async def remove(self, name: str) -> None:
        await self._change(lambda catalog: catalog.remove(name))

    async def hold(self, holder: str, name: str) -> Image | None:
        async with self._changing:
            record = self._state.catalog.find(name)
            if record is None:
                return None
            image = self._image(record)
            before = self._state
            if record.digest in before.catalog.holders.get(holder, frozenset()):
                return image
            catalog = before.catalog.hold(holder, record)
            self._state = State(catalog, before.layers, before.serial)
            try:
                await self._thread(self._disk.keep_holder, holder, catalog.holders[holder])
            except ImageFault:
                self._state = before
                raise
            return image

    async def release(self, holder: str) -> None:
        if holder in self._state.catalog.holders:
            await self._change(lambda catalog: catalog.release(holder), released=holder)

    async def pull(
        self, name: str, credentials: Sequence[Credential] = (), progress: Callable[[str], None] | None = None
    ) -> Image:
        raise NotImplementedError

    async def push(
        self, name: str, credentials: Sequence[Credential] = (), progress: Callable[[str], None] | None = None
    ) -> str:
        raise NotImplementedError

    async def login(self, credential: Credential) -> None:
        raise NotImplementedError

    def save(self, names: Sequence[str]) -> AsyncIterator[bytes]:
        raise NotImplementedError

    async def tag(self, source: str, target: str) -> None:
        raise NotImplementedError

    async def inspect(self, name: str) -> Mapping[str, object]:
        raise NotImplementedError

    async def prune(self, *, all: bool = False, dry_run: bool = False) -> Pruned:
        raise NotImplementedError

    async def collect(self, bytes_to_free: int, unused_for_s: float) -> Pruned:
        raise NotImplementedError

    async def holders(self) -> Collection[str]:
        return list(self._state.catalog.holders)

    def _image(self, record: Record) -> Image:
        config = self._configs[record.id]
        if isinstance(config, ImageFault):
            raise config
        folders = [self._disk.folder_of(self._state.layers[chain]) for chain in record.chain]
        return Image(record.id, record.digest, record.names, record.size, folders, config)

    async def _read_configs(self) -> None:
        for image in self._state.catalog.images.values():
            config = await self._thread(self._config, image)
            self._configs[image.id] = config
            if isinstance(config, ImageFault):
                log.warning(config.message)

    def _config(self, image: Record) -> ImageConfig | ImageFault:
        again = f"the image {image.names or image.digest} is damaged on disk: remove it and load it again"
        try:
            document = self._disk.document(image.id)
            if digest_of(document) != image.id or not all(chain in self._state.layers for chain in image.chain):
                return ImageFault("ImageInspectError", again)
            return oci.parse_config(document, image.id).image
        except (OSError, ImageFault) as error:
            return ImageFault("ImageInspectError", f"{again} ({error})")

    async def _change(
        self, decide: Callable[[Catalog], Catalog], install: _Load | None = None, released: str = ""
    ) -> None:
        """Commits a new catalog. Once begun it ends, even if the caller is cancelled: disk and memory stay one."""
        commit = asyncio.get_running_loop().create_task(self._commit(decide, install, released))
        self._commits.add(commit)
        commit.add_done_callback(self._committed)
        await asyncio.shield(commit)

    def _committed(self, commit: asyncio.Task[None]) -> None:
        self._commits.discard(commit)
        if not commit.cancelled():
            commit.exception()  # its caller may be gone

    async def _commit(self, decide: Callable[[Catalog], Catalog], install: _Load | None, released: str) -> None:
        async with self._changing:
            before = self._state
            catalog = decide(before.catalog)
            if released:
                await self._thread(self._disk.drop_holder, released)
            new = install.layers(before.serial) if install is not None else {}
            every = {**before.layers, **new}
            gone = set(every) - catalog.chains() - set(self._pins)
            kept = {chain: layer for chain, layer in every.items() if chain not in gone}
            after = State(catalog, kept, before.serial + len(new))
            documents = _ids(before.catalog) - _ids(catalog)
            try:
                if install is not None:
                    await self._thread(install.adopt, new)
                if after != State(Catalog(before.catalog.images, catalog.holders), before.layers, before.serial):
                    await self._thread(self._disk.commit, after)
            except ImageFault:
                await self._thread(self._disk.drop, list(new.values()), _ids(catalog) - _ids(before.catalog))
                raise
            self._state = after
            for document in documents:
                self._configs.pop(document, None)
            await self._thread(self._disk.drop, [every[chain] for chain in gone], documents)

    async def _thread(self, work: Callable[..., T], *args: object, stop: threading.Event | None = None) -> T:
        """Waits for the work's end even when cancelled (`stop` is set then): nobody cleans up under a thread."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, lambda: work(*args))
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
                if stop is not None:
                    stop.set()
        if cancelled is not None:
            future.exception()
            raise cancelled
        try:
            return future.result()
        except OSError as error:
            raise self._disk.fault(error) from error


class _Load:
    """One load: spool, read, unpack, commit; whatever happens, `end` leaves nothing of it but what was committed."""

    def __init__(self, store: ImageStore, progress: Progress | None) -> None:
        self._store, self._progress = store, progress
        self._stop = threading.Event()
        self._folder: Path | None = None
        self._file = -1
        self._pinned: list[str] = []
        self._unpacked: dict[str, Unpacked] = {}
        self._documents: dict[str, bytes] = {}
        self._loop = asyncio.get_running_loop()

    async def run(self, chunks: AsyncIterator[bytes], name: str) -> list[Image]:
        store = self._store
        self._folder = await store._thread(store._disk.stage)
        await self._spool(chunks)
        archive = await self._work(self._open_archive)
        found = named(await self._work(archive.images, store._architecture), name)
        async with store._installing:
            async with store._changing:  # no commit under way has decided to drop what is pinned here
                self._pin(layer.chain_id for image in found for layer in image.layers)
                known = store._state.layers
            await self._work(self._unpack, archive, found, known)
            records = [_record(image) for image in found]
            for image in found:
                store._configs[image.id] = image.config.image
            await store._change(lambda catalog: catalog.add(records), self)
        return [store._image(store._state.catalog.images[record.digest]) for record in records]

    async def end(self) -> None:
        self._stop.set()
        self._store._pins.subtract(self._pinned)
        self._store._pins += Counter()  # drops the zeros
        if self._file >= 0:
            os.close(self._file)
        if self._folder is not None:
            await self._store._thread(self._store._disk.discard, self._folder)

    def layers(self, serial: int) -> dict[str, Layer]:
        """The new layers, with their folders' names to be."""
        return {
            chain: Layer(_short(serial + number), one.source.diff_id)
            for number, (chain, one) in enumerate(self._unpacked.items())
        }

    def adopt(self, new: Mapping[str, Layer]) -> None:
        """In a thread, within the commit: layers and configurations go to their places."""
        staged = {layer.folder: self._unpacked[chain].path for chain, layer in new.items()}
        self._store._disk.adopt(staged, self._documents)

    async def _work(self, work: Callable[..., T], *args: object) -> T:
        """In a thread that stops when this load is cancelled."""
        return await self._store._thread(work, *args, stop=self._stop)

    async def _spool(self, chunks: AsyncIterator[bytes]) -> None:
        assert self._folder is not None
        path = self._folder / "archive"
        self._file = await self._work(os.open, path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        parts: list[bytes] = []
        held = total = 0
        async for chunk in chunks:
            parts.append(chunk)
            held += len(chunk)
            total += len(chunk)
            if total > self._store._bounds.archive:
                limit = self._store._bounds.archive // MIB
                raise ImageFault("TooLarge", f"the archive has more than {limit} MiB: refused")
            if held >= WRITE_SIZE:
                await self._work(_write, self._file, b"".join(parts))
                parts, held = [], 0
        await self._work(_write, self._file, b"".join(parts))
        self._say(f"received {total / MIB:.1f} MiB")

    def _open_archive(self) -> Archive:
        """In a thread. An archive that is packed as a whole is unpacked beside itself first."""
        head = os.pread(self._file, MAGIC_SIZE, 0)
        if packing(head) or not head:
            packed, self._file = self._file, os.open(f"{self._folder}/plain", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            try:
                region = Region(_reader(packed), 0, os.fstat(packed).st_size, self._stop.is_set)
                spool(region.read, lambda data: _write(self._file, data), self._store._bounds)
            finally:
                os.close(packed)
            os.unlink(f"{self._folder}/archive")
        size = os.fstat(self._file).st_size
        return Archive(_reader(self._file), size, self._store._bounds, self._stop.is_set)

    def _pin(self, chain_ids: Iterable[str]) -> None:
        self._pinned = list(chain_ids)
        self._store._pins.update(self._pinned)

    def _unpack(self, archive: Archive, found: Sequence[Found], known: Mapping[str, Layer]) -> None:
        """In a thread: the layers that are not here yet, then everything to the disk."""
        for image in found:
            self._documents[image.id] = image.document
            lowers: list[str] = []
            for number, layer in enumerate(image.layers, 1):
                if layer.chain_id in known:
                    layers.check_packed(layer, archive.region(layer.blob))
                    lowers.append(self._store._disk.folder_of(known[layer.chain_id]))
                    continue
                if layer.chain_id not in self._unpacked:
                    self._unpack_layer(archive, layer, lowers)
                    size = f"{layer.blob.size / MIB:.1f} MiB"
                    self._say(f"unpacked layer {number} of {len(image.layers)} ({size})")
                lowers.append(str(self._unpacked[layer.chain_id].path))
        if self._unpacked:
            self._store._disk.flush()

    def _unpack_layer(self, archive: Archive, layer: LayerSource, lowers: Sequence[str]) -> None:
        path = Path(f"{self._folder}/{len(self._unpacked)}")
        path.mkdir()
        path.chmod(layers.NEW_DIR)
        unpacker = layers.Unpacker(str(path), lowers, self._store._bounds, f"the layer {layer.digest[:19]}")
        try:
            layers.read_layer(layer, archive.region(layer.blob), self._store._bounds, unpacker.unpack)
        finally:
            unpacker.close()
        self._unpacked[layer.chain_id] = Unpacked(layer, path)

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._loop.call_soon_threadsafe(self._progress, text)


def _record(image: Found) -> Record:
    chain = tuple(layer.chain_id for layer in image.layers)
    return Record(image.id, tuple(image.digests), tuple(image.names), image.size, chain)


def _ids(catalog: Catalog) -> set[str]:
    return {image.id for image in catalog.images.values()}


def _short(number: int) -> str:
    """A folder's name: base 36, so that hundreds of layers fit one mount option."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    text = ""
    while number:
        number, rest = divmod(number, len(digits))
        text = digits[rest] + text
    return text or "0"


def _reader(file: int) -> Callable[[int, int], bytes]:
    return lambda count, offset: os.pread(file, count, offset)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(file, view) :]
