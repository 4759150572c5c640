"""Takes in one archive: spool, read, unpack, commit; whatever happens, nothing of it stays but what was committed."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

from shoal.agent.images import layers
from shoal.agent.images.archive import Archive, Found, LayerSource, named, spool
from shoal.agent.images.content import Content, Key, Progress, keys_of
from shoal.agent.images.port import Image, ImageFault
from shoal.agent.images.streams import CHUNK, MAGIC_SIZE, MIB, Digest, Region, packing

T = TypeVar("T")
WRITE_SIZE = MIB


class Load:
    """One load; `end` it in any case."""

    def __init__(self, content: Content, architecture: str, progress: Progress | None) -> None:
        self._content, self._architecture, self._progress = content, architecture, progress
        self._stop = threading.Event()
        self._folder: Path | None = None
        self._file = -1
        self._pinned: list[Key] = []

    async def run(self, chunks: AsyncIterator[bytes], name: str, now: float) -> list[Image]:
        content = self._content
        self._folder = content.disk.staging()
        await content.thread(content.disk.stage, self._folder)
        await self._spool(chunks)
        archive = await self._work(self._open_archive)
        found = named(await self._work(archive.images, self._architecture), name)
        pins = keys_of(found)
        await content.pin(pins)
        self._pinned = pins
        for image in found:
            await self._provide(archive, image)
        return await content.install(found, now)

    async def end(self) -> None:
        self._stop.set()
        if self._file >= 0:
            os.close(self._file)
        if self._folder is not None:
            await self._content.thread(self._content.disk.discard, self._folder)
        await self._content.unpin(self._pinned)

    async def _provide(self, archive: Archive, image: Found) -> None:
        """The layers that are not here yet, lowest first."""
        lowers: list[str] = []
        source = _FileSource(self._content, self._file)
        for number, layer in enumerate(image.layers, 1):
            if self._content.layer(layer.chain_id) is not None:
                await self._work(layers.check_packed, layer, archive.region(layer.blob))
                await self._content.fetch(layer, source)
            elif await self._content.provide(layer, lowers, source):
                self._say(f"unpacked layer {number} of {len(image.layers)} ({layer.blob.size / MIB:.1f} MiB)")
            lowers.append(self._content.folder(layer.chain_id))

    async def _work(self, work: Callable[..., T], *args: object) -> T:
        """In a thread that stops when this load is cancelled."""
        return await self._content.thread(work, *args, stop=self._stop, pool="unpack")

    async def _spool(self, chunks: AsyncIterator[bytes]) -> None:
        path = f"{self._folder}/archive"
        self._file = await self._work(os.open, path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        parts: list[bytes] = []
        held = total = 0
        async for chunk in chunks:
            parts.append(chunk)
            held += len(chunk)
            total += len(chunk)
            if total > self._content.bounds.archive:
                limit = self._content.bounds.archive // MIB
                raise ImageFault("TooLarge", f"the archive has more than {limit} MiB: refused")
            if held >= WRITE_SIZE:
                await self._work(write_all, self._file, b"".join(parts))
                parts, held = [], 0
        await self._work(write_all, self._file, b"".join(parts))
        self._say(f"received {total / MIB:.1f} MiB")

    def _open_archive(self) -> Archive:
        """In a thread. An archive that is packed as a whole is unpacked beside itself first."""
        bounds = self._content.bounds
        head = os.pread(self._file, MAGIC_SIZE, 0)
        if packing(head) or not head:
            packed, self._file = self._file, os.open(f"{self._folder}/plain", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            try:
                region = Region(_reader(packed), 0, os.fstat(packed).st_size, self._stop.is_set)
                spool(region.read, lambda data: write_all(self._file, data), bounds)
            finally:
                os.close(packed)
            os.unlink(f"{self._folder}/archive")
        size = os.fstat(self._file).st_size
        return Archive(_reader(self._file), size, bounds, self._stop.is_set)

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._progress(text)


class _FileSource:
    """The layers of a spooled archive. Each copy works on a descriptor of its own: others may wait for it when the
    load itself has been given up."""

    def __init__(self, content: Content, file: int) -> None:
        self._content, self._file = content, file

    async def fetch(self, layer: LayerSource, path: Path) -> int:
        stop = threading.Event()
        return await self._content.thread(_copy, os.dup(self._file), layer, path, stop.is_set, stop=stop, pool="write")


def _copy(file: int, layer: LayerSource, path: Path, stop: Callable[[], bool]) -> int:
    """Closes `file`. Raises ImageFault(BadDigest)."""
    try:
        region = Region(_reader(file), layer.blob.offset, layer.blob.size, stop)
        packed = Digest(region.read, layer.digest.partition(":")[0])
        with open(path, "xb") as out:
            while data := packed.read(CHUNK):
                out.write(data)
        layers.check(layer, packed)
        return packed.count
    finally:
        os.close(file)


def _reader(file: int) -> Callable[[int, int], bytes]:
    return lambda count, offset: os.pread(file, count, offset)


def write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(file, view) :]
