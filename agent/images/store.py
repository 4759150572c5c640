"""The image store of a node: takes in archives, pulls and pushes, shares unpacked layers, keeps what is held."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shoal.agent.images import gc, names, oci, saving
from shoal.agent.images.catalog import Record
from shoal.agent.images.content import Content, Progress
from shoal.agent.images.disk import Disk, State
from shoal.agent.images.loader import Load
from shoal.agent.images.port import Credential, Image, ImageFault, Pruned
from shoal.agent.images.puller import Puller
from shoal.agent.images.pusher import Push
from shoal.agent.images.registry import Registries
from shoal.agent.images.settings import Settings
from shoal.agent.images.streams import DEFAULT_BOUNDS, Bounds


class ImageStore:
    """The port `Images` on a folder of its own; made by `open`, ended by `close`."""

    def __init__(
        self, content: Content, architecture: str, settings: Settings, clock: Callable[[], float] = time.time
    ) -> None:
        self._content, self._architecture, self._clock = content, architecture, clock
        self._registries = Registries(settings)
        self._puller = Puller(content, self._registries, architecture, settings.reserve)

    @classmethod
    async def open(
        cls,
        root: Path,
        architecture: str,
        bounds: Bounds = DEFAULT_BOUNDS,
        settings: Settings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> ImageStore:
        """Sweeps what a crash has left. `architecture` as OCI writes it. Raises ImageFault."""
        content = Content(Disk(root), bounds)
        try:
            await content.open()
        except BaseException:
            await content.close()
            raise
        return cls(content, architecture, settings or Settings(), clock)

    async def close(self) -> None:
        """Waits for commits under way and gives the folder free."""
        await self._registries.close()
        await self._content.close()

    async def find(self, name: str) -> Image | None:
        record = self._content.state.catalog.find(name)
        return None if record is None else self._content.image(record)

    async def list(self) -> Sequence[Image]:
        images = self._content.state.catalog.images.values()
        good = [one for one in images if not isinstance(self._content.configs.get(one.id), ImageFault | None)]
        return [self._content.image(record) for record in sorted(good, key=lambda one: (*one.names, one.digest))]

    async def load(
        self, chunks: AsyncIterator[bytes], name: str = "", progress: Progress | None = None
    ) -> Sequence[Image]:
        if name:
            names.parse(name)
        load = Load(self._content, self._architecture, progress)
        try:
            return await load.run(chunks, name, self._clock())
        finally:
            await load.end()

    async def remove(self, name: str) -> None:
        await self._content.change(lambda catalog: catalog.remove(name))

    async def hold(self, holder: str, name: str) -> Image | None:
        content = self._content
        async with content.changing:
            record = content.state.catalog.find(name)
            if record is None:
                return None
            image = content.image(record)
            before = content.state
            if record.digest in before.catalog.holders.get(holder, frozenset()):
                return image
            catalog = before.catalog.hold(holder, record)
            content.state = replace(before, catalog=catalog)
            try:
                await content.thread(content.disk.keep_holder, holder, catalog.holders[holder])
            except ImageFault:
                content.state = before
                raise
            return image

    async def release(self, holder: str) -> None:
        if holder in self._content.state.catalog.holders:
            now = self._clock()
            await self._content.change(lambda catalog: catalog.release(holder, now), released=holder)

    async def holders(self) -> Collection[str]:
        return list(self._content.state.catalog.holders)

    async def pull(self, name: str, credentials: Sequence[Credential] = (), progress: Progress | None = None) -> Image:
        return await self._puller.pull(names.parse(name), tuple(credentials), progress, self._clock())

    async def push(self, name: str, credentials: Sequence[Credential] = (), progress: Progress | None = None) -> str:
        record = self._content.state.catalog.found(name)
        return await Push(self._content, self._registries, progress).run(names.parse(name), record, tuple(credentials))

    async def login(self, credential: Credential) -> None:
        await self._registries.login(credential)

    async def save(self, names: Sequence[str]) -> AsyncIterator[bytes]:
        catalog = self._content.state.catalog
        records = [catalog.found(name) for name in names]
        pins = [("blob", blob) for record in records for blob in record.blobs]
        await self._content.pin(pins)
        try:
            images = [await self._saved(record) for record in records]
            async for chunk in saving.archive(images, self._read_blob):
                yield chunk
        finally:
            await self._content.unpin(pins)

    async def tag(self, source: str, target: str) -> None:
        now = self._clock()
        names.parse(target)
        await self._content.change(lambda catalog: catalog.tag(source, target, now))

    async def inspect(self, name: str) -> Mapping[str, object]:
        record = self._content.state.catalog.found(name)
        self._content.image(record)  # a damaged one says so
        document = json.loads(await self._content.thread(self._content.disk.document, record.id))
        return described(record, document, self._content.state)

    async def prune(self, *, all: bool = False, dry_run: bool = False) -> Pruned:
        catalog = self._content.state.catalog
        chosen = catalog.unused() if all else [one for one in catalog.unused() if not one.names]
        return await self._take_away(gc.Plan(chosen), dry_run)

    async def collect(self, bytes_to_free: int, unused_for_s: float) -> Pruned:
        plan = gc.plan(self._content.state, bytes_to_free, self._clock(), unused_for_s)
        return await self._take_away(plan, dry_run=False)

    async def _take_away(self, plan: gc.Plan, dry_run: bool) -> Pruned:
        before = self._content.state
        gone = list(plan.images)
        if not dry_run and (gone or plan.blobs):
            await self._content.change(lambda catalog: catalog.without(gone), forget=plan.blobs)
            left = self._content.state
            gone = [one for one in gone if one.digest not in left.catalog.images]
        else:
            left = gc.after(before, plan)
        return Pruned([name for one in gone for name in one.names or (one.digest,)], gc.freed(before, left))

    async def _saved(self, record: Record) -> saving.Saved:
        missing = [digest for digest in record.blobs if not self._content.has_blob(digest)]
        if missing or not record.blobs:
            raise ImageFault("NotFound", dropped(record))
        disk = self._content.disk
        config, manifest = [await self._content.thread(disk.document, one) for one in (record.id, record.digest)]
        return saving.Saved(record.names, record.id, record.digest, config, manifest)

    async def _read_blob(self, digest: str, offset: int, count: int) -> bytes:
        return await self._content.thread(self._content.disk.read_blob, digest, offset, count)


def dropped(record: Record) -> str:
    shown = record.names[0] if record.names else record.digest
    return f"the packed layers of {shown} are not kept here any more: remove the image, then pull or load it again"


def described(record: Record, document: Mapping[str, object], state: State) -> Mapping[str, object]:
    """What `inspect` tells."""
    layers = [
        {
            "digest": blob,
            "diffID": state.layers[chain].diff_id,
            "size": state.blobs.get(blob, 0),
            "kept": blob in state.blobs,  # else push and save cannot do without a new pull
            "unpackedSize": state.layers[chain].size,
        }
        for chain, blob in zip(record.chain, record.blobs or [""] * len(record.chain), strict=True)
    ]
    return {
        "id": record.id,
        "digest": record.digest,
        "digests": list(record.digests),
        "names": list(record.names),
        "size": record.size,
        "lastUsed": record.used,
        "layers": layers,
        "architecture": document.get("architecture", ""),
        "os": document.get("os", ""),
        "created": document.get("created", ""),
        "author": document.get("author", ""),
        "config": document.get("config") or {},
        "history": oci.history(document),
    }
