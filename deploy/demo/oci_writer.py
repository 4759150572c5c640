"""Writes OCI archives (image-spec v1.1, image-layout.md): the same bytes for the same content."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OCI = "application/vnd.oci.image."
GZIP_LEVEL = 6
EPOCH = 1_700_000_000  # every file's time: images must not differ by when they were made


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's packed bytes and the digest of its tar."""

    blob: bytes
    diff_id: str
    media_type: str = f"{OCI}layer.v1.tar+gzip"


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One image. `config` is the inner configuration object, with OCI's keys: Entrypoint, Cmd, Env, User, ..."""

    names: Sequence[str]
    layers: Sequence[Layer]
    config: Mapping[str, Any] = field(default_factory=dict)
    architecture: str = "amd64"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def pack_layer(tar: bytes) -> Layer:
    """A gzip layer of a tar."""
    return Layer(gzip.compress(tar, GZIP_LEVEL, mtime=0), digest(tar))


def tar_tree(root: Path, owners: Mapping[str, tuple[int, int]] | None = None) -> bytes:
    """The tar of a folder's content, sorted, owned by root save the paths in `owners` (path -> uid, gid)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(_walk(root)):
            info = archive.gettarinfo(str(root / path), arcname=path)
            info.uid, info.gid = (owners or {}).get(path, (0, 0))
            info.uname = info.gname = ""
            info.mtime = EPOCH
            if info.isreg():
                with (root / path).open("rb") as file:
                    archive.addfile(info, file)
            else:
                archive.addfile(info)
    return out.getvalue()


def layout(images: Sequence[ImageSpec]) -> dict[str, bytes]:
    """The files of an OCI layout by path; an image with several names is listed once per name."""
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"})}
    listed = []
    for image in images:
        for layer in image.layers:
            files[_blob(digest(layer.blob))] = layer.blob
        config = _json(_config(image))
        manifest = _json(_manifest(image, config))
        files[_blob(digest(config))] = config
        files[_blob(digest(manifest))] = manifest
        for name in image.names:
            item = _descriptor(f"{OCI}manifest.v1+json", manifest)
            listed.append({**item, "annotations": {"org.opencontainers.image.ref.name": name}})
    index = {"schemaVersion": 2, "mediaType": f"{OCI}index.v1+json", "manifests": listed}
    files["index.json"] = _json(index)
    return files


def tar_files(files: Mapping[str, bytes]) -> bytes:
    """A plain tar of files by path, in the given order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size, info.mtime, info.mode = len(data), EPOCH, 0o644
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write_archive(path: Path, images: Sequence[ImageSpec]) -> None:
    """An OCI archive, there as a whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(tar_files(layout(images)))
    os.replace(new, path)


def _walk(root: Path) -> list[str]:
    paths = []
    for folder, folders, files in os.walk(root):
        base = Path(folder).relative_to(root)
        paths += [str(base / name) for name in (*folders, *files)]
    return paths


def _config(image: ImageSpec) -> dict[str, Any]:
    return {
        "architecture": image.architecture,
        "os": "linux",
        "config": dict(image.config),
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in image.layers]},
    }


def _manifest(image: ImageSpec, config: bytes) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": f"{OCI}manifest.v1+json",
        "config": _descriptor(f"{OCI}config.v1+json", config),
        "layers": [_descriptor(layer.media_type, layer.blob) for layer in image.layers],
    }


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def _blob(value: str) -> str:
    return "blobs/" + value.replace(":", "/")


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
