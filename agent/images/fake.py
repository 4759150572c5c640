"""Images in memory, for unit tests and the simulation: same contract, no disk, no threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from shoal.agent.images import auth, layers, names, saving, tar
from shoal.agent.images.archive import Archive, Found, named, spool
from shoal.agent.images.catalog import Catalog, Record
from shoal.agent.images.content import record_of
from shoal.agent.images.port import Credential, Image, ImageConfig, ImageFault, Pruned
from shoal.agent.images.streams import DEFAULT_BOUNDS, Bounds, Region, digest_of


@dataclass(frozen=True, slots=True)
class Remote:
    """What a registry in memory serves under one name."""

    record: Record
    config: ImageConfig


class FakeImages:
    """Outlives an agent's crash when the same object is given to the next one, as a node's disk does. `remote` is what
    can be pulled by full name; `faults` what a pull of a name fails with. `passwords`: registry -> user, password."""

    def __init__(
        self,
        architecture: str = "amd64",
        bounds: Bounds = DEFAULT_BOUNDS,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._architecture, self._bounds, self._clock = architecture, bounds, clock
        self._catalog = Catalog()
        self._configs: dict[str, ImageConfig] = {}
        self._blobs: dict[str, bytes] = {}  # documents and packed layers
        self.remote: dict[str, Remote] = {}
        self.faults: dict[str, ImageFault] = {}
        self.passwords: dict[str, tuple[str, str]] = {}
        self.pulls: list[tuple[str, Sequence[Credential]]] = []

    def publish(self, name: str, config: ImageConfig | None = None, size: int = 1) -> None:
        """Puts an image into the registry in memory."""
        full = names.normalise(name)
        digest = digest_of(full.encode())
        record = Record(digest, (digest,), (full,), size, (digest,), (digest,))
        self.remote[full] = Remote(record, config or ImageConfig())

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
        return [self._image(self._catalog.images[record.digest]) for record in self._take(found, archive)]

    async def remove(self, name: str) -> None:
        self._catalog = self._catalog.remove(name)

    async def hold(self, holder: str, name: str) -> Image | None:
        record = self._catalog.find(name)
        if record is None:
            return None
        self._catalog = self._catalog.hold(holder, record)
        return self._image(record)

    async def release(self, holder: str) -> None:
        self._catalog = self._catalog.release(holder, self._clock())

    async def pull(
        self, name: str, credentials: Sequence[Credential] = (), progress: Callable[[str], None] | None = None
    ) -> Image:
        reference = names.parse(name)
        full = str(reference)
        self.pulls.append((full, tuple(credentials)))
        if full in self.faults:
            raise self.faults[full]
        self._enter(reference, credentials)
        if full not in self.remote:
            raise ImageFault("NotFound", f"{reference.domain} does not have the image {full}: manifest unknown")
        if progress is not None:
            progress("unpacked layer 1 of 1")
        remote = self.remote[full]
        self._configs[remote.record.id] = remote.config
        self._catalog = self._catalog.add([replace(remote.record, names=(full,), used=self._clock())])
        return self._image(self._catalog.images[remote.record.digest])

    async def push(
        self, name: str, credentials: Sequence[Credential] = (), progress: Callable[[str], None] | None = None
    ) -> str:
        record, reference = self._catalog.found(name), names.parse(name)
        self._enter(reference, credentials)
        self.remote[str(reference)] = Remote(record, self._configs[record.id])
        return record.digest

    async def login(self, credential: Credential) -> None:
        wanted = self.passwords.get(credential.registry)
        if wanted not in (None, (credential.username, credential.password)):
            raise ImageFault("Unauthorized", f"{credential.registry} refuses the user {credential.username!r}")

    async def save(self, names: Sequence[str]) -> AsyncIterator[bytes]:
        records = [self._catalog.found(name) for name in names]
        for record in records:
            if not {record.id, record.digest, *record.blobs} <= self._blobs.keys():
                raise ImageFault("NotFound", f"the packed layers of {record.names[0]} are not kept here")
        documents = [(self._blobs[record.id], self._blobs[record.digest]) for record in records]
        images = [
            saving.Saved(record.names, record.id, record.digest, *pair)
            for record, pair in zip(records, documents, strict=True)
        ]
        async for chunk in saving.archive(images, self._read_blob):
            yield chunk

    async def tag(self, source: str, target: str) -> None:
        self._catalog = self._catalog.tag(source, target, self._clock())

    async def inspect(self, name: str) -> Mapping[str, object]:
        record = self._catalog.found(name)
        image = self._configs[record.id]
        config = {"Entrypoint": list(image.entrypoint), "Cmd": list(image.cmd)}
        return {
            "id": record.id,
            "digest": record.digest,
            "names": list(record.names),
            "size": record.size,
            "layers": [{"digest": blob} for blob in record.blobs],
            "config": config,
        }

    async def prune(self, *, all: bool = False, dry_run: bool = False) -> Pruned:
        return self._take_away([one for one in self._catalog.unused() if all or not one.names], dry_run)

    async def collect(self, bytes_to_free: int, unused_for_s: float) -> Pruned:
        chosen: list[Record] = []
        for record in self._catalog.unused(self._clock() - unused_for_s):
            if sum(one.size for one in chosen) >= bytes_to_free:
                break
            chosen.append(record)
        return self._take_away(chosen, dry_run=False)

    def _take_away(self, records: Sequence[Record], dry_run: bool) -> Pruned:
        if not dry_run:
            self._catalog = self._catalog.without(records)
        return Pruned([name for one in records for name in one.names], sum(one.size for one in records))

    def _enter(self, reference: names.Reference, credentials: Sequence[Credential]) -> None:
        wanted = self.passwords.get(reference.domain)
        fitting = auth.matching(credentials, reference.domain, reference.path)
        if wanted is not None and wanted not in [(one.username, one.password) for one in fitting]:
            raise ImageFault("Unauthorized", f"{reference.domain} refuses the image {reference}")

    async def _read_blob(self, digest: str, offset: int, count: int) -> bytes:
        return self._blobs[digest][offset : offset + count]

    async def holders(self) -> Collection[str]:
        return list(self._catalog.holders)

    def _take(self, found: Sequence[Found], archive: Archive) -> Sequence[Record]:
        records = [record_of(image, self._clock()) for image in found]
        for image in found:
            self._configs[image.id] = image.config.image
            self._blobs |= {image.id: image.document, image.digest: image.manifest}
            for layer in image.layers:
                self._blobs[layer.digest] = archive.region(layer.blob).read(layer.blob.size)
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
