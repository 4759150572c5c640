"""Writes images as a docker archive that is an OCI layout too (image-spec, image-layout.md; moby, image/spec v1.2)."""

from __future__ import annotations

import json
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.agent.images import names, oci
from shoal.agent.images.streams import MIB

CHUNK = MIB
BLOCK = 512
END = bytes(2 * BLOCK)
ReadBlob = Callable[[str, int, int], Awaitable[bytes]]  # digest, offset, bytes wanted


@dataclass(frozen=True, slots=True)
class Saved:
    names: Sequence[str]
    id: str
    digest: str
    config: bytes
    manifest: bytes


async def archive(images: Sequence[Saved], read: ReadBlob) -> AsyncIterator[bytes]:
    """Its bytes; each blob once, however many images share it."""
    manifests = [oci.parse_manifest(image.manifest, image.digest) for image in images]
    yield _file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    written: set[str] = set()
    for image, manifest in zip(images, manifests, strict=True):
        for digest, data in ((image.id, image.config), (image.digest, image.manifest)):
            if digest not in written:
                written.add(digest)
                yield _file(_path(digest), data)
        for layer in manifest.layers:
            if layer.digest not in written:
                written.add(layer.digest)
                async for chunk in _blob(layer, read):
                    yield chunk
    yield _file("index.json", _json(_index(images)))
    yield _file("manifest.json", _json(_docker(images, manifests)))
    yield END


async def _blob(layer: oci.Descriptor, read: ReadBlob) -> AsyncIterator[bytes]:
    yield _header(_path(layer.digest), layer.size)
    at = 0
    while at < layer.size:
        data = await read(layer.digest, at, min(CHUNK, layer.size - at))
        if not data:
            raise EOFError(layer.digest)
        at += len(data)
        yield data
    yield bytes(-layer.size % BLOCK)


def _index(images: Sequence[Saved]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": oci.INDEX_TYPES[0], "manifests": [*_entries(images)]}


def _entries(images: Sequence[Saved]) -> list[dict[str, Any]]:
    """One per name: the full one for containerd and ourselves, its tag for everybody else."""
    entries = []
    for image in images:
        plain = {
            "mediaType": oci.media_type_of(image.manifest),
            "digest": image.digest,
            "size": len(image.manifest),
        }
        for name in image.names:
            tag = names.parse(name).tag
            notes = {oci.FULL_NAME: name, **({oci.REF_NAME: tag} if tag else {})}
            entries.append({**plain, "annotations": notes})
        if not image.names:
            entries.append(plain)
    return entries


def _docker(images: Sequence[Saved], manifests: Sequence[oci.Manifest]) -> list[dict[str, Any]]:
    return [
        {
            "Config": _path(image.id),
            "RepoTags": [name for name in image.names if "@" not in name],
            "Layers": [_path(layer.digest) for layer in manifest.layers],
        }
        for image, manifest in zip(images, manifests, strict=True)
    ]


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)


def _file(path: str, data: bytes) -> bytes:
    return _header(path, len(data)) + data + bytes(-len(data) % BLOCK)


def _header(path: str, size: int) -> bytes:
    info = tarfile.TarInfo(path)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)  # sizes over 8 GiB too


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
