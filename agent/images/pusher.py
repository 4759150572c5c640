"""Pushes an image: the blobs that the registry lacks, several at a time, then the manifest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from shoal.agent.images import names, oci
from shoal.agent.images.caller import Retry
from shoal.agent.images.catalog import Record
from shoal.agent.images.content import Content, Progress
from shoal.agent.images.names import Reference
from shoal.agent.images.oci import Descriptor
from shoal.agent.images.port import Credential, ImageFault
from shoal.agent.images.registry import Registries, Repository
from shoal.agent.images.sharing import together
from shoal.agent.images.streams import MIB

AT_ONCE = 3
CHUNK = MIB


class Push:
    """One push of one image to the registry in its name; mirrors are for pulling."""

    def __init__(self, content: Content, registries: Registries, progress: Progress | None) -> None:
        self._content, self._registries, self._progress = content, registries, progress
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def run(self, name: Reference, record: Record, credentials: Sequence[Credential]) -> str:
        """The manifest's digest. Raises ImageFault."""
        if name.digest and name.digest != record.digest:
            raise ImageFault(
                "InvalidImageName", f"{name} is an index of several images; only {record.digest} is here: push a tag"
            )
        pins = [("blob", blob) for blob in record.blobs]
        await self._content.pin(pins)
        try:
            return await self._run(name, record, credentials)
        finally:
            await self._content.unpin(pins)

    async def _run(self, name: Reference, record: Record, credentials: Sequence[Credential]) -> str:
        disk = self._content.disk
        if not record.blobs:
            raise ImageFault("NotFound", f"the manifest of {name} was not kept: remove the image and load it again")
        data = await self._content.thread(disk.document, record.digest)
        manifest = oci.parse_manifest(data, str(name))
        repository = self._registries.origin(name, credentials, "pull,push")
        origins = origins_of(name, record)
        unique = list({layer.digest: layer for layer in (*manifest.layers, manifest.config)}.values())
        await together(
            self._blob(repository, blob, number, len(unique), origins) for number, blob in enumerate(unique, 1)
        )
        kind = oci.media_type_of(data)
        await repository.put_manifest(name.digest or name.tag, data, kind, f"the manifest of {name}")
        return record.digest

    async def _blob(
        self, repository: Repository, blob: Descriptor, number: int, count: int, origins: Sequence[str]
    ) -> None:
        what = f"the blob {blob.digest[:19]}"
        async with self._slots:
            if await repository.has_blob(blob.digest, what):
                self._say(f"blob {number} of {count}: is there already")
                return
            await self._send(repository, blob, what, origins)
            self._say(f"blob {number} of {count}: sent {blob.size / MIB:.1f} MiB")

    async def _send(self, repository: Repository, blob: Descriptor, what: str, origins: Sequence[str]) -> None:
        for origin in origins:
            if not await repository.begin_upload(what, blob.digest, origin):
                return
        path = self._content.disk.blob(blob.digest)
        if not path.exists():
            raise ImageFault(
                "NotFound", f"{what} was dropped here to free the disk: remove the image and pull it again"
            )
        size = path.stat().st_size
        attempts = self._registries.patience.attempts
        for attempt in range(1, attempts + 1):
            where = await repository.begin_upload(what)
            try:
                await repository.upload(where, blob.digest, size, lambda: self._chunks(blob.digest, size), what)
                return
            except Retry as retry:
                if attempt == attempts or retry.after > self._registries.patience.longest_wait_s:
                    raise retry.fault from retry
                await asyncio.sleep(max(retry.after, self._registries.patience.backoff_s * 2 ** (attempt - 1)))

    async def _chunks(self, digest: str, size: int) -> AsyncIterator[bytes]:
        at = 0
        while at < size:
            data = await self._content.thread(self._content.disk.read_blob, digest, at, CHUNK)
            if not data:
                raise ImageFault("ImageInspectError", f"the blob {digest} is damaged on disk")
            at += len(data)
            yield data

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._progress(text)


def origins_of(name: Reference, record: Record) -> list[str]:
    """Repositories of the same registry that the image's other names say have its blobs."""
    others = [names.parse(other) for other in record.names]
    return list(dict.fromkeys(one.path for one in others if one.domain == name.domain and one.path != name.path))
