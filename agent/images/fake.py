"""Images in memory, for unit tests and the simulation: same contract, no disk, no threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

from shoal.agent.images import layers, names, tar
from shoal.agent.images.archive import Archive, Found, named, spool
from shoal.agent.images.catalog import Catalog, Record
from shoal.agent.images.port import Credential, Image, ImageConfig, Pruned
from shoal.agent.images.streams import DEFAULT_BOUNDS, Bounds, Region, digest_of


class FakeImages:
    """Outlives an agent's crash when the same object is given to the next one, as a node's disk does."""

    def __init__(self, architecture: str = "amd64", bounds: Bounds = DEFAULT_BOUNDS) -> None:
        self._architecture, self._bounds = architecture, bounds
        self._catalog = Catalog()
        self._configs: dict[str, ImageConfig] = {}

    def add(self, name: str, config: ImageConfig | None = None, size: int = 1) -> Image:
        """Puts an image there without an archive; its content follows from its name."""
        full = names.normalise(name)
        digest = digest_of(full.encode())
        record = Record(digest, (digest,), (full,), size, (digest,))
        self._configs[digest] = config or ImageConfig()
        self._catalog = self._catalog.add([record])
        return self._image(record)

    async def find(self, name: str) -> Image | None:
        record = self._catalog.find(name)
        return None if record is None else self._image(record)

    async def list(self) -> Sequence[Image]:
        return sorted(map(self._image, self._catalog.images.values()), key=lambda image: (*image.names, image.digest))

    async def load(
        self, chunks: AsyncIterator[bytes], name: str = "", progress: Callable[[str], None] | None = None
    ) -> Sequence[Image]:
        if name:
            names.parse(name)
        packed = b"".join([chunk async for chunk in chunks])
        plain = bytearray()
        spool(_region(packed).read, plain.extend, self._bounds)
        data = bytes(plain)
        archive = Archive(lambda count, offset: data[offset : offset + count], len(data), self._bounds)
        found = named(archive.images(self._architecture), name)
        for image in found:
            for layer in image.layers:
                layers.read_layer(layer, archive.region(layer.blob), self._bounds, _check_paths)
        if progress is not None:
            progress(f"received {len(packed)} bytes")
        return [self._image(self._catalog.images[record.digest]) for record in self._take(found)]

    async def remove(self, name: str) -> None:
        self._catalog = self._catalog.remove(name)

    async def hold(self, holder: str, name: str) -> Image | None:
        record = self._catalog.find(name)
        if record is None:
            return None
        self._catalog = self._catalog.hold(holder, record)
        return self._image(record)

    async def release(self, holder: str) -> None:
        self._catalog = self._catalog.release(holder)

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
        return list(self._catalog.holders)

    def _take(self, found: Sequence[Found]) -> Sequence[Record]:
        records = []
        for image in found:
            chain = tuple(layer.chain_id for layer in image.layers)
            records.append(Record(image.id, tuple(image.digests), tuple(image.names), image.size, chain))
            self._configs[image.id] = image.config.image
        self._catalog = self._catalog.add(records)
        return records

    def _image(self, record: Record) -> Image:
        folders = [f"/fake/{chain[7:19]}" for chain in record.chain]
        return Image(record.id, record.digest, record.names, record.size, folders, self._configs[record.id])


def _region(data: bytes) -> Region:
    return Region(lambda count, offset: data[offset : offset + count], 0, len(data))


def _check_paths(archive: tar.Tar) -> None:
    for entry in archive:
        layers.parts_of(entry.name, archive.what)
        if entry.kind == tar.HARDLINK:
            layers.parts_of(entry.link, archive.what)
