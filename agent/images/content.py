"""What a node's image folder holds, in memory and on disk: what is committed, what is in the making, what is pinned.

The blocking work runs in this adapter's own threads; they never fork. A commit is one rename of the index (`disk.py`),
so a kill or a full disk at any moment leaves the last state. Layers and blobs in the making lie at their places
already, but no index names them; they stay while somebody pins them, and a restart sweeps them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from shoal.agent.images import layers, oci
from shoal.agent.images.archive import Found, LayerSource
from shoal.agent.images.catalog import Catalog, Record
from shoal.agent.images.disk import Disk, Layer, State
from shoal.agent.images.port import Image, ImageConfig, ImageFault
from shoal.agent.images.sharing import Shared
from shoal.agent.images.streams import Bounds, Region, digest_of

log = logging.getLogger(__name__)
T = TypeVar("T")
Key = tuple[str, str]  # what is pinned: ("layer", chain id) or ("blob", digest)
Progress = Callable[[str], None]

THREADS, UNPACKERS, WRITERS = 2, 2, 2  # small things, unpacking, writing what arrives


class Source(Protocol):
    """Where a load's or pull's packed layers come from."""

    async def fetch(self, layer: LayerSource, path: Path) -> int:
        """Writes the blob, its digest verified; its bytes. Raises ImageFault."""
        ...


@dataclass(slots=True)
class Making:
    """On disk, and named by no index."""

    layers: dict[str, Layer] = field(default_factory=dict)
    blobs: dict[str, int] = field(default_factory=dict)


class Content:
    """Owns the folder; made by `open`, ended by `close`."""

    def __init__(self, disk: Disk, bounds: Bounds) -> None:
        self.disk, self.bounds = disk, bounds
        self.state = State()
        self.configs: dict[str, ImageConfig | ImageFault] = {}
        self.changing = asyncio.Lock()
        self._pools = {
            name: ThreadPoolExecutor(count, thread_name_prefix=f"shoal-images-{name}")
            for name, count in (("small", THREADS), ("unpack", UNPACKERS), ("write", WRITERS))
        }
        self._making = Making()
        self._pins: Counter[Key] = Counter()
        self._serial = 1
        self._commits: set[asyncio.Task[None]] = set()
        self._fetching: Shared[str, None] = Shared()
        self._unpacking: Shared[str, Layer] = Shared()

    async def open(self) -> None:
        """Sweeps what a crash has left. Raises ImageFault."""
        self.state = await self.thread(self.disk.open)
        self._serial = self.state.serial
        for image in self.state.catalog.images.values():
            config = await self.thread(self._config, image)
            self.configs[image.id] = config
            if isinstance(config, ImageFault):
                log.warning(config.message)
        await self.change(lambda catalog: catalog.pruned())

    async def close(self) -> None:
        """Waits for commits under way and gives the folder free."""
        while self._commits:
            await asyncio.wait(self._commits)
        for pool in self._pools.values():
            await asyncio.get_running_loop().run_in_executor(None, pool.shutdown)
        self.disk.close()

    def image(self, record: Record) -> Image:
        config = self.configs[record.id]
        if isinstance(config, ImageFault):
            raise config
        folders = [self.folder(chain) for chain in record.chain]
        return Image(record.id, record.digest, record.names, record.size, folders, config)

    # ---- layers and blobs ----
    def layer(self, chain: str) -> Layer | None:
        return self.state.layers.get(chain) or self._making.layers.get(chain)

    def folder(self, chain: str) -> str:
        layer = self.layer(chain)
        assert layer is not None, chain
        return self.disk.folder_of(layer)

    def has_blob(self, digest: str) -> bool:
        return digest in self.state.blobs or digest in self._making.blobs

    async def pin(self, keys: Collection[Key]) -> None:
        """They stay, once they are there, until `unpin`. No commit under way has decided to drop them."""
        async with self.changing:
            self._pins.update(keys)

    async def unpin(self, keys: Collection[Key]) -> None:
        self._pins.subtract(keys)
        self._pins += Counter()  # drops the zeros
        if self._making.layers or self._making.blobs:
            await self.change(lambda catalog: catalog)

    async def provide(self, layer: LayerSource, lowers: Sequence[str], source: Source) -> bool:
        """Has the layer unpacked above `lowers`, by whoever is first. Whether this was new. Both must be pinned."""
        if self.layer(layer.chain_id) is not None:
            return False
        ours: list[LayerSource] = []
        await self._unpacking.run(layer.chain_id, lambda: self._unpack(layer, lowers, source, ours))
        return bool(ours)

    async def fetch(self, layer: LayerSource, source: Source) -> None:
        """Has the packed layer here. It must be pinned."""
        if not self.has_blob(layer.digest):
            await self._fetching.run(layer.digest, lambda: self._fetch(layer, source))

    async def _fetch(self, layer: LayerSource, source: Source) -> None:
        if self.has_blob(layer.digest):
            return
        folder = self.disk.staging()
        try:
            await self.thread(self.disk.stage, folder)
            size = await source.fetch(layer, folder / "blob")
            try:
                await self.thread(self.disk.keep_blob, folder / "blob", layer.digest)
            finally:
                if os.path.exists(self.disk.blob(layer.digest)):  # also when cancelled: the thread went on
                    self._making.blobs[layer.digest] = size
        finally:
            await self.thread(self.disk.discard, folder)

    async def _unpack(
        self, layer: LayerSource, lowers: Sequence[str], source: Source, done: list[LayerSource]
    ) -> Layer:
        """Says in `done` that it was this call."""
        if (known := self.layer(layer.chain_id)) is not None:
            return known
        kept = layer.digest in self.state.blobs
        await self.fetch(layer, source)
        try:
            made = await self._unpack_blob(layer, lowers)
        except ImageFault as fault:
            if not kept or fault.reason != "BadDigest":
                raise
            log.warning("the kept blob %s is damaged on disk: fetching it again", layer.digest)
            await self.change(lambda catalog: catalog, forget=[layer.digest])
            await self.fetch(layer, source)
            made = await self._unpack_blob(layer, lowers)
        self._making.layers[layer.chain_id] = made
        done.append(layer)
        return made

    async def _unpack_blob(self, layer: LayerSource, lowers: Sequence[str]) -> Layer:
        folder, self._serial = _short(self._serial), self._serial + 1
        stop = threading.Event()
        try:
            size = await self.thread(self._unpack_into, layer, lowers, folder, stop, stop=stop, pool="unpack")
        except BaseException:
            await self.thread(self.disk.drop, [Layer(folder, layer.diff_id)], ())
            raise
        return Layer(folder, layer.diff_id, size)

    def _unpack_into(self, layer: LayerSource, lowers: Sequence[str], folder: str, stop: threading.Event) -> int:
        """In a thread."""
        path = self.disk.new_layer(folder)
        path.chmod(layers.NEW_DIR)
        unpacker = layers.Unpacker(str(path), lowers, self.bounds, f"the layer {layer.digest[:19]}")
        try:
            with open(self.disk.blob(layer.digest), "rb") as file:
                descriptor = file.fileno()
                size = os.fstat(descriptor).st_size
                region = Region(lambda n, at: os.pread(descriptor, n, at), 0, size, stop.is_set)
                return layers.read_layer(layer, region, self.bounds, unpacker.unpack)
        finally:
            unpacker.close()

    # ---- commits ----
    async def install(self, found: Sequence[Found], now: float) -> list[Image]:
        """Commits images whose layers are all here. Names move to them."""
        records = [record_of(image, now) for image in found]
        documents = {image.id: image.document for image in found}
        documents |= {image.digest: image.manifest for image in found}
        configs = {image.id: image.config.image for image in found}
        await self.change(lambda catalog: catalog.add(records), documents, configs)
        return [self.image(self.state.catalog.images[record.digest]) for record in records]

    async def change(
        self,
        decide: Callable[[Catalog], Catalog],
        documents: Mapping[str, bytes] | None = None,
        configs: Mapping[str, ImageConfig] | None = None,
        *,
        released: str = "",
        forget: Iterable[str] = (),
    ) -> None:
        """Commits a new catalog; `forget` names blobs to drop. Once begun it ends, even if the caller is cancelled:
        disk and memory stay one."""
        work = self._commit(decide, documents or {}, configs or {}, released, frozenset(forget))
        commit = asyncio.get_running_loop().create_task(work)
        self._commits.add(commit)
        commit.add_done_callback(self._committed)
        await asyncio.shield(commit)

    def _committed(self, commit: asyncio.Task[None]) -> None:
        self._commits.discard(commit)
        if not commit.cancelled():
            commit.exception()  # its caller may be gone

    async def _commit(
        self,
        decide: Callable[[Catalog], Catalog],
        documents: Mapping[str, bytes],
        configs: Mapping[str, ImageConfig],
        released: str,
        forget: frozenset[str],
    ) -> None:
        async with self.changing:
            before = self.state
            catalog = decide(before.catalog)
            if released:
                await self.thread(self.disk.drop_holder, released)
            after = self._after(catalog, forget)
            fresh = after.layers.keys() - before.layers.keys() or after.blobs.keys() - before.blobs.keys() or documents
            old = catalog.documents() & before.catalog.documents()
            try:
                if fresh:
                    await self.thread(self.disk.write, documents)
                    await self.thread(self.disk.flush)
                if after != replace(before, catalog=Catalog(before.catalog.images, catalog.holders)):
                    await self.thread(self.disk.commit, after)
            except ImageFault:
                await self.thread(self.disk.drop, [], documents.keys() - old)
                raise
            self.state = after
            self.configs.update(configs)
            await self._drop_unneeded(before, after)

    def _after(self, catalog: Catalog, forget: frozenset[str]) -> State:
        """The next index: only what its images need."""
        chains, blobs = catalog.chains(), catalog.blobs() - forget
        every = {**self.state.layers, **self._making.layers}
        kept = {**self.state.blobs, **self._making.blobs}
        layers_after = {chain: layer for chain, layer in every.items() if chain in chains}
        blobs_after = {digest: size for digest, size in kept.items() if digest in blobs}
        serial = self.state.serial if layers_after == self.state.layers else self._serial
        return State(catalog, layers_after, blobs_after, serial)

    async def _drop_unneeded(self, before: State, after: State) -> None:
        """What the new index does not name stays only if it is pinned."""
        old_layers = {**before.layers, **self._making.layers}
        old_blobs = {**before.blobs, **self._making.blobs}
        left = {chain: layer for chain, layer in old_layers.items() if chain not in after.layers}
        left_blobs = {digest: size for digest, size in old_blobs.items() if digest not in after.blobs}
        self._making = Making(
            {chain: layer for chain, layer in left.items() if ("layer", chain) in self._pins},
            {digest: size for digest, size in left_blobs.items() if ("blob", digest) in self._pins},
        )
        documents = before.catalog.documents() - after.catalog.documents()
        for document in documents:
            self.configs.pop(document, None)
        gone = [layer for chain, layer in left.items() if chain not in self._making.layers]
        gone_blobs = [digest for digest in left_blobs if digest not in self._making.blobs]
        if gone or gone_blobs or documents:
            await self.thread(self.disk.drop, gone, [*gone_blobs, *documents])

    # ---- threads ----
    async def thread(
        self, work: Callable[..., T], *args: object, stop: threading.Event | None = None, pool: str = "small"
    ) -> T:
        """Waits for the work's end even when cancelled (`stop` is set then): nobody cleans up under a thread."""
        future = asyncio.get_running_loop().run_in_executor(self._pools[pool], lambda: work(*args))
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
            raise self.disk.fault(error) from error

    def _config(self, image: Record) -> ImageConfig | ImageFault:
        again = f"the image {image.names or image.digest} is damaged on disk: remove it and load it again"
        try:
            document = self.disk.document(image.id)
            if digest_of(document) != image.id or not all(chain in self.state.layers for chain in image.chain):
                return ImageFault("ImageInspectError", again)
            return oci.parse_config(document, image.id).image
        except (OSError, ImageFault) as error:
            return ImageFault("ImageInspectError", f"{again} ({error})")


def record_of(image: Found, now: float) -> Record:
    chain = tuple(layer.chain_id for layer in image.layers)
    blobs = tuple(layer.digest for layer in image.layers)
    return Record(image.id, tuple(image.digests), tuple(image.names), image.size, chain, blobs, now)


def keys_of(found: Iterable[Found]) -> list[Key]:
    """What a load or pull of these images must pin."""
    return [
        key for image in found for layer in image.layers for key in (("layer", layer.chain_id), ("blob", layer.digest))
    ]


def _short(number: int) -> str:
    """A folder's name: base 36, so that hundreds of layers fit one mount option."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    text = ""
    while number:
        number, rest = divmod(number, len(digits))
        text = digits[rest] + text
    return text or "0"
