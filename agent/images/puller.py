"""Pulls images: finds the one for this node, fetches what is not here several layers at a time, unpacks in order.

Mirrors are asked first, in order, for each thing anew: one that lacks a layer, or lies about it, does no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import hashlib
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from shoal.agent.images import archive, oci
from shoal.agent.images.archive import Found, LayerSource
from shoal.agent.images.content import Content, Key, Progress, keys_of
from shoal.agent.images.loader import write_all
from shoal.agent.images.names import Reference
from shoal.agent.images.oci import Descriptor
from shoal.agent.images.port import Credential, Image, ImageConfig, ImageFault
from shoal.agent.images.registry import Registries, Repository, Shown
from shoal.agent.images.sharing import Shared
from shoal.agent.images.streams import MIB, SMALL_DISK, digest_of

log = logging.getLogger(__name__)
T = TypeVar("T")

PER_IMAGE, PER_NODE = 3, 6  # downloads at once
BATCH = MIB  # bytes handed to a thread at once
PROGRESS_S = 0.5
MAX_INDEXES = 3  # nested in each other
TAGS_ASKED, TAGS_SHOWN = 100, 5


class Puller:
    """One per node: it knows what is under way."""

    def __init__(self, content: Content, registries: Registries, architecture: str, reserve: int) -> None:
        self._content, self._registries, self._architecture, self._reserve = content, registries, architecture, reserve
        self._pulls: Shared[tuple[Reference, Sequence[Credential]], Image] = Shared()
        self._slots = asyncio.Semaphore(PER_NODE)
        self._said: dict[tuple[Reference, Sequence[Credential]], list[Progress]] = {}

    async def pull(
        self, name: Reference, credentials: Sequence[Credential], progress: Progress | None, now: float
    ) -> Image:
        """Raises ImageFault."""
        key = (name, credentials)
        listeners = self._said.setdefault(key, [])
        if progress is not None:
            listeners.append(progress)
        try:
            return await self._pulls.run(key, lambda: self._pull(name, credentials, listeners, now))
        finally:
            if progress is not None:
                listeners.remove(progress)
            if not listeners:
                self._said.pop(key, None)

    async def _pull(
        self, name: Reference, credentials: Sequence[Credential], listeners: Sequence[Progress], now: float
    ) -> Image:
        repositories = self._registries.repositories(name, credentials, "pull")
        finder = _Finder(repositories, self._architecture, self._content)
        found = await finder.find(name)
        if (known := self._known(found)) is not None:
            return known
        job = _Job(self._content, found, repositories, self._slots, lambda text: [say(text) for say in [*listeners]])
        await self._content.pin(job.pins)
        try:
            await job.check_space(self._reserve)
            await job.run()
            [image] = await self._content.install([found], now)
            return image
        finally:
            await self._content.unpin(job.pins)

    def _known(self, found: Found) -> Image | None:
        """The image, when it is here whole and under this name: then nothing is written."""
        record = self._content.state.catalog.images.get(found.digest)
        if record is None or not {*found.names} <= {*record.names} or not {*found.digests} <= {*record.digests}:
            return None
        healthy = isinstance(self._content.configs.get(record.id), ImageConfig)
        return self._content.image(record) if healthy else None


@dataclass(slots=True)
class _Finder:
    """From a name to an image's documents."""

    repositories: Sequence[Repository]
    architecture: str
    content: Content

    async def find(self, name: Reference) -> Found:
        what = f"the image {name}"
        shown = await self._tagged(name, what)
        digests = [shown.digest]
        descriptor = Descriptor(shown.media_type, shown.digest, len(shown.data))
        while oci.is_index(descriptor, shown.data, what):
            if len(digests) > MAX_INDEXES:
                raise ImageFault("BadArchive", f"{what}: its indexes are nested too deeply")
            descriptor = oci.choose(oci.parse_index(shown.data, what), self.architecture, what)
            shown = await self._described(descriptor, what)
            digests.insert(0, shown.digest)
        manifest = oci.parse_manifest(shown.data, what)
        document = await self._document(manifest.config, f"the configuration of {name}")
        config = oci.parse_config(document, what)
        oci.check_platform(config, self.architecture, what)
        blobs = [archive.Blob(0, layer.size) for layer in manifest.layers]
        packed = [layer.digest for layer in manifest.layers]
        pinned = replace(name, tag="") if name.digest else name
        documents = (document, shown.data)
        return archive.found([str(pinned)], digests, documents, config, packed, blobs, self.content.bounds)

    async def _tagged(self, name: Reference, what: str) -> Shown:
        try:
            return await first_of(self.repositories, lambda one: one.manifest(name.digest or name.tag, what))
        except ImageFault as fault:
            if fault.reason != "NotFound" or name.digest:
                raise
            tags = [tag for one in self.repositories for tag in await one.tags(TAGS_ASKED)]
            raise ImageFault("NotFound", fault.message + near(name.tag, tags)) from fault

    async def _described(self, descriptor: Descriptor, what: str) -> Shown:
        shown = await first_of(self.repositories, lambda one: one.manifest(descriptor.digest, what))
        if descriptor.size not in (-1, len(shown.data)):
            raise ImageFault("BadDigest", f"{what}: {descriptor.digest} has {len(shown.data)} bytes, not as declared")
        return shown

    async def _document(self, descriptor: Descriptor, what: str) -> bytes:
        with contextlib.suppress(ImageFault, OSError):  # another image's, or that of an earlier pull
            if isinstance(self.content.configs.get(descriptor.digest), ImageConfig):
                data = await self.content.thread(self.content.disk.document, descriptor.digest)
                if digest_of(data) == descriptor.digest:
                    return data
        return await first_of(self.repositories, lambda one: one.document(descriptor, what))


class _Job:
    """The layers of one image: which are missing, how far each has come."""

    def __init__(
        self,
        content: Content,
        found: Found,
        repositories: Sequence[Repository],
        slots: asyncio.Semaphore,
        say: Callable[[str], object],
    ) -> None:
        self._content, self._found, self._repositories, self._say = content, found, repositories, say
        self._node_slots, self._slots = slots, asyncio.Semaphore(PER_IMAGE)
        self._done: dict[str, int] = {}
        self.pins: Sequence[Key] = keys_of([found])

    def _missing(self) -> list[LayerSource]:
        unique = {layer.digest: layer for layer in self._found.layers if self._content.layer(layer.chain_id) is None}
        return [layer for layer in unique.values() if not self._content.has_blob(layer.digest)]

    async def check_space(self, reserve: int) -> None:
        """Before anything is written: packed and unpacked, layers need at least twice their size."""
        sizes = [layer.blob.size for layer in self._missing()]
        if any(size > self._content.bounds.archive for size in sizes):
            raise ImageFault("TooLarge", f"a layer of {self._found.names[0]} has over 32 GiB: refused")
        needed = 2 * sum(max(size, 0) for size in sizes)
        free, total = await self._content.thread(self._content.disk.space)
        kept = min(reserve, total // SMALL_DISK)
        if needed and free - needed < kept:
            raise ImageFault(
                "NoSpace",
                f"{self._found.names[0]} needs at least {needed / MIB:.1f} MiB; the disk of {self._content.disk.root} "
                f"has {free / MIB:.1f} MiB free, {kept / MIB:.1f} of which are kept: remove images or enlarge it",
            )

    async def run(self) -> None:
        """Fetches ahead while it unpacks, lowest layer first."""
        wanted = self._missing()
        fetches = {layer.digest: asyncio.create_task(self._fetch(layer)) for layer in wanted}
        reporter = asyncio.create_task(self._report())
        try:
            await self._unpack(fetches)
        finally:
            tasks = [reporter, *fetches.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _unpack(self, fetches: dict[str, asyncio.Task[None]]) -> None:
        lowers: list[str] = []
        layers = self._found.layers
        for number, layer in enumerate(layers, 1):
            if layer.digest in fetches:
                await _first_failure(fetches, layer.digest)
            if await self._content.provide(layer, lowers, self):
                self._say(f"unpacked layer {number} of {len(layers)} ({layer.blob.size / MIB:.1f} MiB)")
            lowers.append(self._content.folder(layer.chain_id))

    async def _fetch(self, layer: LayerSource) -> None:
        async with self._slots:
            await self._content.fetch(layer, self)

    async def fetch(self, layer: LayerSource, path: Path) -> int:
        """Downloads it, from wherever it can be had whole."""
        async with self._node_slots:
            return await first_of(self._repositories, lambda one: self._download(one, layer, path))

    async def _download(self, repository: Repository, layer: LayerSource, path: Path) -> int:
        content, stop = self._content, threading.Event()
        what = f"the layer {layer.digest[:19]}"
        file = _Incoming(path, layer.digest)
        blob = repository.blob(layer.digest, layer.blob.size, content.bounds.archive, what)
        try:
            batch: list[bytes] = []
            held = 0
            async with contextlib.aclosing(blob) as chunks:
                async for chunk in chunks:
                    batch.append(chunk)
                    held += len(chunk)
                    self._done[layer.digest] = file.size + held
                    if held >= BATCH:
                        await content.thread(file.write, batch, stop=stop, pool="write")
                        batch, held = [], 0
            await content.thread(file.write, batch, stop=stop, pool="write")
        finally:
            file.close()
        if file.digest != layer.digest:
            raise ImageFault(
                "BadDigest", f"{repository.endpoint} sent {what} with the digest {file.digest}: it is damaged"
            )
        return file.size

    async def _report(self) -> None:
        """Says how far the lowest layer under way is, twice a second."""
        layers = self._found.layers
        last = ""
        while True:
            for number, layer in enumerate(layers, 1):
                done = self._done.get(layer.digest, 0)
                if 0 < done < layer.blob.size:
                    text = f"layer {number} of {len(layers)}: {done / MIB:.1f} of {layer.blob.size / MIB:.1f} MiB"
                    if text != last:
                        self._say(text)
                    last = text
                    break
            await asyncio.sleep(PROGRESS_S)


class _Incoming:
    """A file and the digest of what was written to it; used by one thread at a time."""

    def __init__(self, path: Path, digest: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._algorithm = digest.partition(":")[0]
        self._hash = hashlib.new(self._algorithm)
        self.size = 0

    def write(self, parts: Sequence[bytes]) -> None:
        data = b"".join(parts)
        self._hash.update(data)
        write_all(self._file, data)
        self.size += len(data)

    def close(self) -> None:
        os.close(self._file)

    @property
    def digest(self) -> str:
        return f"{self._algorithm}:{self._hash.hexdigest()}"


async def first_of(repositories: Sequence[Repository], ask: Callable[[Repository], Awaitable[T]]) -> T:
    """The first that can answer. When none does, the registry's own fault with what its mirrors said."""
    passed: list[str] = []
    for repository in repositories:
        try:
            return await ask(repository)
        except ImageFault as fault:
            if fault.reason in ("NoSpace", "ImageInspectError"):
                raise
            if repository is repositories[-1]:
                said = "".join(f"; its mirror: {text}" for text in passed)
                raise ImageFault(fault.reason, fault.message + said, fault.retry_after) from fault
            log.warning("the mirror %s is passed over: %s", repository.endpoint, fault.message)
            passed.append(fault.message)
    raise AssertionError("no registry to ask")


async def _first_failure(fetches: dict[str, asyncio.Task[None]], wanted: str) -> None:
    """Waits for one, and fails with whichever fails before."""
    while not fetches[wanted].done():
        running = [task for task in fetches.values() if not task.done()]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in fetches.values():
            if task.done():
                task.result()
    fetches[wanted].result()


def near(tag: str, tags: Sequence[str]) -> str:
    """A hint at the tags that there are."""
    shown = difflib.get_close_matches(tag, tags, TAGS_SHOWN, 0.4) or sorted(tags)[-TAGS_SHOWN:]
    return f"; it has the tags {', '.join(shown)}" if shown else ""
