"""Small image archives for tests: from lists of members, good and bad."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.deploy.demo import oci_writer
from shoal.deploy.demo.oci_writer import ImageSpec, Layer, digest, tar_files

CHUNK = 64 * 1024
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", mode: int = 0o644, **fields: Any) -> Member:
    """A member of a layer; `fields` are TarInfo's (type, uid, gid, linkname, mtime, pax_headers, devmajor, ...)."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), mode, oci_writer.EPOCH
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, mode: int = 0o755, **fields: Any) -> Member:
    return member(name, mode=mode, type=tarfile.DIRTYPE, **fields)


def symlink(name: str, target: str) -> Member:
    return member(name, mode=0o777, type=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> Member:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def device(name: str, major: int, minor: int, mode: int = 0o644) -> Member:
    return member(name, mode=mode, type=tarfile.CHRTYPE, devmajor=major, devminor=minor)


def fifo(name: str) -> Member:
    return member(name, type=tarfile.FIFOTYPE)


def tar(members: Sequence[Member], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def layer(*members: Member) -> Layer:
    return oci_writer.pack_layer(tar(members))


def image(
    *layers: Layer, names: Sequence[str] = ("docker.io/library/test:latest",), config: Mapping[str, Any] | None = None
) -> ImageSpec:
    return ImageSpec(names, layers, config or {"Cmd": ["/bin/sh"]})


def oci_archive(*images: ImageSpec) -> bytes:
    return tar_files(oci_writer.layout(images))


def small(content: bytes = b"hello", name: str = "test:latest", config: Mapping[str, Any] | None = None) -> bytes:
    """An OCI archive of one image with one file."""
    return oci_archive(image(layer(member("file", content)), names=[f"docker.io/library/{name}"], config=config))


def docker_archive(
    *layers: Layer, tags: Sequence[str] = ("test:latest",), config: Mapping[str, Any] | None = None
) -> bytes:
    """As `docker save` wrote it for long: layers first, manifest.json last."""
    return tar_files(docker_files(*layers, tags=tags, config=config))


def docker_files(
    *layers: Layer, tags: Sequence[str] = ("test:latest",), config: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": dict(config or {"Cmd": ["/bin/sh"]}),
        "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in layers]},
    }
    data = json.dumps(document).encode()
    paths = [f"{number}/layer.tar" for number in range(len(layers))]
    files = {path: one.blob for path, one in zip(paths, layers, strict=True)}
    name = digest(data).removeprefix("sha256:") + ".json"
    files[name] = data
    files["manifest.json"] = json.dumps([{"Config": name, "RepoTags": list(tags), "Layers": paths}]).encode()
    return files


def bad_digest(name: str = "bad-digest:latest") -> bytes:
    """An archive whose layer is not what its digest says."""
    files = oci_writer.layout([image(layer(member("file", b"good")), names=[f"docker.io/library/{name}"])])
    [path] = [path for path, data in files.items() if data[:2] == b"\x1f\x8b"]
    other = layer(member("file", b"evil")).blob
    files[path] = other.ljust(len(files[path]), b"\0")[: len(files[path])]
    return tar_files(files)


def climbing(path: str = "../../outside", name: str = "climbing:latest") -> bytes:
    """An archive whose layer holds a path that leads out of its root."""
    return oci_archive(image(layer(member(path, b"escaped")), names=[f"docker.io/library/{name}"]))


def self_exe(name: str = "self-exe:latest") -> bytes:
    """An image whose entrypoint is a script with the interpreter /proc/self/exe (CVE-2019-5736)."""
    script = member("entry", b"#!/proc/self/exe\n", mode=0o755)
    config = {"Entrypoint": ["/entry"]}
    return oci_archive(image(layer(script), names=[f"docker.io/library/{name}"], config=config))


def write(folder_path: Path, data: bytes, name: str = "image.tar") -> Path:
    path = folder_path / name
    path.write_bytes(data)
    return path


async def chunks(data: bytes, size: int = CHUNK) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def file_chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            yield data
