"""Which images a node has, under which names, and who holds them. Pure: the store writes what it says to disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shoal.agent.images import names
from shoal.agent.images.port import ImageFault


@dataclass(frozen=True, slots=True)
class Record:
    """One image. `digests`: its manifest's first, then those of indexes that led to it. `chain`: its layers' ids."""

    id: str
    digests: Sequence[str]
    names: Sequence[str]
    size: int
    chain: Sequence[str]

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
                record = replace(record, names=every, digests=digests)
            images[record.digest] = record
        return Catalog(images, self.holders).pruned()

    def remove(self, name: str) -> Catalog:
        """Takes one name away, or all when asked by digest. Raises ImageFault(NotFound, InUse)."""
        record = self.find(name)
        if record is None:
            raise ImageFault("NotFound", f"there is no image {name} here")
        by_digest = names.is_digest(name) or "@" in name
        left = () if by_digest else tuple(one for one in record.names if one != names.normalise(name))
        users = sorted(holder for holder, held in self.holders.items() if record.digest in held)
        if users and not left:
            shown = ", ".join(users[:3]) + (f" and {len(users) - 3} more" if len(users) > 3 else "")
            raise ImageFault("InUse", f"the image {name} is used by {shown}: delete its pods first")
        return Catalog({**self.images, record.digest: replace(record, names=left)}, self.holders).pruned()

    def hold(self, holder: str, record: Record) -> Catalog:
        held = self.holders.get(holder, frozenset()) | {record.digest}
        return Catalog(self.images, {**self.holders, holder: held})

    def release(self, holder: str) -> Catalog:
        return Catalog(self.images, {key: held for key, held in self.holders.items() if key != holder}).pruned()

    def chains(self) -> set[str]:
        """The layers that some image needs."""
        return {chain for image in self.images.values() for chain in image.chain}

    def _by_digest(self, digest: str) -> Record | None:
        if digest in self.images:
            return self.images[digest]
        return next((image for image in self.images.values() if digest == image.id or digest in image.digests), None)

    def pruned(self) -> Catalog:
        """Without images that have neither a name nor a holder."""
        held = {digest for digests in self.holders.values() for digest in digests}
        return Catalog({key: one for key, one in self.images.items() if one.names or key in held}, self.holders)
