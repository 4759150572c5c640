"""Which images a node has, under which names, and who holds them. Pure: the store writes what it says to disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shoal.agent.images import names
from shoal.agent.images.port import ImageFault


@dataclass(frozen=True, slots=True)
class Record:
    """One image. `digests`: its manifest's first, then those of indexes that led to it. `chain`: its layers' ids.
    `blobs`: the digests of its packed layers. `used`: when it last came, was held or let go, in seconds (Unix)."""

    id: str
    digests: Sequence[str]
    names: Sequence[str]
    size: int
    chain: Sequence[str]
    blobs: Sequence[str] = ()
    used: float = 0.0

    @property
    def digest(self) -> str:
        return self.digests[0]


@dataclass(frozen=True, slots=True)
class Catalog:
    """Never changed in place: each call gives the next state. `holders`: holder -> digests of images."""

    images: Mapping[str, Record] = field(default_factory=dict)
    holders: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def find(self, name: str) -> Record | None:
        """Raises ImageFault(InvalidImageName). A digest pins the content, whatever name stands before it."""
        if names.is_digest(name):
            return self._by_digest(name)
        reference = names.parse(name)
        if reference.digest:
            return self._by_digest(reference.digest)
        wanted = str(reference)
        return next((image for image in self.images.values() if wanted in image.names), None)

    def add(self, records: Iterable[Record]) -> Catalog:
        """Names move to the newest image that carries them."""
        images = dict(self.images)
        for record in records:
            for digest, image in images.items():
                left = tuple(name for name in image.names if name not in record.names)
                images[digest] = replace(image, names=left)
            known = images.get(record.digest)
            if known is not None:
                every = tuple(dict.fromkeys((*known.names, *record.names)))
                digests = tuple(dict.fromkeys((*known.digests, *record.digests)))
                used = max(known.used, record.used)
                record = replace(record, names=every, digests=digests, used=used)
            images[record.digest] = record
        return Catalog(images, self.holders).pruned()

    def remove(self, name: str) -> Catalog:
        """Takes one name away, or all when asked by digest. Raises ImageFault(NotFound, InUse)."""
        record = self.found(name)
        by_digest = names.is_digest(name) or "@" in name
        left = () if by_digest else tuple(one for one in record.names if one != names.normalise(name))
        users = sorted(holder for holder, held in self.holders.items() if record.digest in held)
        if users and not left:
            shown = ", ".join(users[:3]) + (f" and {len(users) - 3} more" if len(users) > 3 else "")
            raise ImageFault("InUse", f"the image {name} is used by {shown}: delete its pods first")
        return Catalog({**self.images, record.digest: replace(record, names=left)}, self.holders).pruned()

    def tag(self, source: str, target: str, now: float) -> Catalog:
        """Raises ImageFault(NotFound, InvalidImageName)."""
        record = self.found(source)
        reference = names.parse(target)
        if reference.digest:
            raise ImageFault("InvalidImageName", f"{target} pins a digest: a tag is a name without '@sha256:...'")
        return self.add([replace(record, names=(str(reference),), used=now)])

    def found(self, name: str) -> Record:
        """As `find`. Raises ImageFault(NotFound) too."""
        record = self.find(name)
        if record is None:
            raise ImageFault("NotFound", f"there is no image {name} here")
        return record

    def hold(self, holder: str, record: Record) -> Catalog:
        held = self.holders.get(holder, frozenset()) | {record.digest}
        return Catalog(self.images, {**self.holders, holder: held})

    def release(self, holder: str, now: float = 0.0) -> Catalog:
        images = dict(self.images)
        for digest in self.holders.get(holder, frozenset()) & images.keys():
            images[digest] = replace(images[digest], used=max(now, images[digest].used))
        return Catalog(images, {key: held for key, held in self.holders.items() if key != holder}).pruned()

    def chains(self) -> set[str]:
        """The layers that some image needs."""
        return {chain for image in self.images.values() for chain in image.chain}

    def blobs(self) -> set[str]:
        """The packed layers that some image is made of."""
        return {blob for image in self.images.values() for blob in image.blobs}

    def documents(self) -> set[str]:
        """Configurations and manifests."""
        return {one for image in self.images.values() for one in (image.id, image.digest)}

    def unused(self, before: float = math.inf) -> list[Record]:
        """What nobody holds and nobody used since `before`, the longest unused first."""
        held = self.held()
        free = (one for one in self.images.values() if one.digest not in held and one.used <= before)
        return sorted(free, key=lambda one: (one.used, one.digest))

    def without(self, records: Iterable[Record]) -> Catalog:
        """Forgets those that nobody holds."""
        gone = {record.digest for record in records} - self.held()
        return Catalog({key: one for key, one in self.images.items() if key not in gone}, self.holders)

    def held(self) -> set[str]:
        return {digest for digests in self.holders.values() for digest in digests}

    def _by_digest(self, digest: str) -> Record | None:
        if digest in self.images:
            return self.images[digest]
        return next((image for image in self.images.values() if digest == image.id or digest in image.digests), None)

    def pruned(self) -> Catalog:
        """Without images that have neither a name nor a holder."""
        held = self.held()
        return Catalog({key: one for key, one in self.images.items() if one.names or key in held}, self.holders)
