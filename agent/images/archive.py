"""Finds the images in an archive: docker save's, an OCI archive (a tarred OCI layout), or both in one.

The archive lies on disk as one plain tar (`spool` puts it there); its members are only ever regions of that file, so
no path of the archive is used on the disk, and nothing but documents of a few MiB is held in memory.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shoal.agent.images import names, oci, tar
from shoal.agent.images.oci import Descriptor
from shoal.agent.images.port import ImageFault
from shoal.agent.images.streams import (
    CHUNK,
    DEFAULT_BOUNDS,
    MAGIC_SIZE,
    Bounds,
    Digest,
    Limited,
    Read,
    ReadAt,
    Region,
    digest_of,
    packing,
    unpacker,
)

MAX_MEMBERS = 100_000
MAX_IMAGES = 256
MAX_LINKS = 16
MAX_PATH = 1024  # bytes of a member's path
_HEX_NAME = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:\.json)?")


@dataclass(frozen=True, slots=True)
class Blob:
    """A region of the archive file."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class LayerSource:
    """A layer as it lies in the archive; `digest` is of its packed form, `diff_id` of its tar."""

    digest: str
    diff_id: str
    chain_id: str
    blob: Blob


@dataclass(frozen=True, slots=True)
class Found:
    """An image of the archive, its documents checked and its layers not yet. `digests` has its indexes' as well."""

    names: Sequence[str]
    digest: str
    digests: Sequence[str]
    id: str
    size: int
    document: bytes  # the configuration
    manifest: bytes
    config: oci.Config
    layers: Sequence[LayerSource]


def spool(read: Read, write: Callable[[bytes], object], bounds: Bounds) -> int:
    """Undoes the archive's own compression, if any, into a file. Returns the bytes written."""
    packed = Digest(read)
    plain = Limited(unpacker(packed.read, "the archive"), "the archive", bounds.archive, lambda: packed.count, bounds)
    while data := plain.read(CHUNK):
        write(data)
    if not plain.count:
        raise ImageFault("BadArchive", "the archive is empty")
    return plain.count


class Archive:
    """A spooled archive. `stop` is asked while reading."""

    def __init__(
        self, read_at: ReadAt, size: int, bounds: Bounds = DEFAULT_BOUNDS, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self._read_at, self._bounds, self._stop = read_at, bounds, stop
        self._blobs: dict[str, Blob] = {}
        self._links: dict[str, str] = {}
        self._index(size)

    def images(self, architecture: str) -> list[Found]:
        """All images for this platform, each named or not. Raises ImageFault."""
        if self._has("index.json"):
            return self._with_docker_names(self._layout(architecture))
        if self._has("manifest.json"):
            docker = self._docker()
            for image in docker:
                oci.check_platform(image.config, architecture, "the archive")
            return docker
        if self._has("repositories"):
            raise ImageFault("BadArchive", "the archive was saved by a Docker older than 1.10: save it again")
        raise ImageFault(
            "BadArchive",
            "the archive holds no image: neither index.json (OCI layout) nor manifest.json (docker save) is in it",
        )

    def region(self, blob: Blob) -> Region:
        return Region(self._read_at, blob.offset, blob.size, self._stop)

    def _index(self, size: int) -> None:
        region = Region(self._read_at, 0, size, self._stop)
        members = tar.Tar(region.read, "the archive", region.skip)
        for entry in members:
            path = _path(entry.name)
            if len(self._blobs) + len(self._links) >= MAX_MEMBERS:
                raise ImageFault("TooLarge", f"the archive has more than {MAX_MEMBERS} members")
            if entry.kind == tar.FILE and entry.segments is None:
                if entry.offset + entry.size > size:
                    raise ImageFault("BadArchive", f"the archive ends in the middle of {path}: it was cut off")
                self._links.pop(path, None)
                self._blobs[path] = Blob(entry.offset, entry.size)
            elif entry.kind in (tar.SYMLINK, tar.HARDLINK):
                self._links[path] = _target(path, entry)
            elif entry.kind != tar.DIR:
                raise ImageFault("BadArchive", f"the archive holds {path}, a {entry.kind}: only files belong there")

    def _find(self, path: str) -> Blob | None:
        path = posixpath.normpath(path)
        for _ in range(MAX_LINKS):
            if path not in self._links:
                return self._blobs.get(path)
            path = self._links[path]
        return None

    def _has(self, path: str) -> bool:
        return self._find(path) is not None

    def _document(self, path: str) -> bytes:
        blob = self._find(path)
        if blob is None:
            raise ImageFault("BadArchive", f"the archive names {path}, which is not in it")
        if blob.size > self._bounds.document:
            raise ImageFault("TooLarge", f"{path} has {blob.size} bytes; at most {self._bounds.document} are read")
        read = self.region(blob).read
        data = b""
        while more := read(CHUNK):
            data += more
        return data

    def _verified(self, descriptor: Descriptor) -> bytes:
        data = self._document(_blob_path(descriptor.digest))
        actual = digest_of(data, descriptor.digest.partition(":")[0])
        if actual != descriptor.digest or descriptor.size not in (-1, len(data)):
            raise _bad_digest(descriptor.digest, actual, len(data))
        return data

    def _layout(self, architecture: str) -> list[Found]:
        groups: dict[str, list[Descriptor]] = {}
        for item in oci.parse_index(self._document("index.json"), "index.json"):
            ref = item.annotations.get(oci.FULL_NAME) or item.annotations.get(oci.REF_NAME, "")
            groups.setdefault(ref, []).append(item)
        if len(groups) > MAX_IMAGES:
            raise ImageFault("TooLarge", f"index.json lists {len(groups)} images; at most {MAX_IMAGES} are read")
        if not groups:
            raise ImageFault("BadArchive", "index.json lists no image")
        merged: dict[str, Found] = {}
        for group in groups.values():
            image = self._image(oci.choose(group, architecture, "index.json"), architecture, ())
            known = merged.get(image.digest)
            merged[image.digest] = _renamed(image, [*(known.names if known else ()), *image.names])
        return list(merged.values())

    def _image(self, item: Descriptor, architecture: str, above: tuple[Descriptor, ...]) -> Found:
        data = self._verified(item)
        if oci.is_index(item, data, item.digest):
            if len(above) >= 3:
                raise ImageFault("BadArchive", f"{item.digest}: indexes are nested too deeply")
            inner = oci.choose(oci.parse_index(data, item.digest), architecture, item.digest)
            return self._image(inner, architecture, (*above, item))
        manifest = oci.parse_manifest(data, item.digest)
        document = self._verified(manifest.config)
        config = oci.parse_config(document, manifest.config.digest)
        oci.check_platform(config, architecture, item.digest)
        blobs = [self._blob(layer) for layer in manifest.layers]
        image_names = [name for one in (*above, item) for name in oci.names_of(one.annotations)]
        digests = [item.digest, *(one.digest for one in above)]
        packed = [layer.digest for layer in manifest.layers]
        return found(image_names, digests, (document, data), config, packed, blobs, self._bounds)

    def _blob(self, layer: Descriptor) -> Blob:
        blob = self._find(_blob_path(layer.digest))
        if blob is None:
            raise ImageFault("BadArchive", f"the layer {layer.digest} is not in the archive")
        if layer.size not in (-1, blob.size):
            raise ImageFault("BadDigest", f"the layer {layer.digest} has {blob.size} bytes, not {layer.size}")
        return blob

    def _docker(self) -> list[Found]:
        by_layer: dict[str, list[str]] = {}
        if self._has("repositories"):
            by_layer = oci.parse_repositories(self._document("repositories"), "repositories")
        return [self._docker_image(image, by_layer) for image in self._docker_list()]

    def _docker_list(self) -> list[oci.DockerImage]:
        images = oci.parse_docker_manifest(self._document("manifest.json"), "manifest.json")
        if len(images) > MAX_IMAGES:
            raise ImageFault("TooLarge", f"manifest.json lists {len(images)} images; at most {MAX_IMAGES} are read")
        return images

    def _docker_image(self, image: oci.DockerImage, by_layer: dict[str, list[str]]) -> Found:
        document = self._document(image.config)
        claimed = _HEX_NAME.fullmatch(image.config)
        if claimed and digest_of(document) != f"sha256:{claimed[1]}":
            raise _bad_digest(f"sha256:{claimed[1]}", digest_of(document), len(document))
        config = oci.parse_config(document, image.config)
        layers = [self._docker_layer(path) for path in image.layers]
        descriptor = Descriptor(oci.CONFIG_TYPES[0], digest_of(document), len(document))
        manifest = oci.make_manifest(descriptor, [layer for layer, _ in layers])
        top = image.layers[-1].partition("/")[0] if image.layers else ""
        image_names = [names.normalise(name) for name in image.names or by_layer.get(top, [])]
        digests = [layer.digest for layer, _ in layers]
        blobs = [blob for _, blob in layers]
        return found(image_names, [digest_of(manifest)], (document, manifest), config, digests, blobs, self._bounds)

    def _docker_layer(self, path: str) -> tuple[Descriptor, Blob]:
        blob = self._find(path)
        if blob is None:
            raise ImageFault("BadArchive", f"manifest.json names the layer {path}, which is not in the archive")
        digest = Digest(self.region(blob).read)
        digest.drain()
        kind = packing(self.region(blob).read(MAGIC_SIZE))
        suffix = f"+{kind}" if kind in ("gzip", "zstd") else ""
        return Descriptor(f"{oci.OCI}layer.v1.tar{suffix}", digest.value, blob.size), blob

    def _with_docker_names(self, images: list[Found]) -> list[Found]:
        """Newer docker save writes both lists; its names stand in manifest.json in full."""
        if not self._has("manifest.json"):
            return images
        extra: dict[str, list[str]] = {}
        for image in self._docker_list():
            config = digest_of(self._document(image.config))
            extra.setdefault(config, []).extend(map(names.normalise, image.names))
        return [_renamed(image, [*image.names, *extra.get(image.id, [])]) for image in images]


def found(
    image_names: Sequence[str],
    digests: Sequence[str],
    documents: tuple[bytes, bytes],  # configuration, manifest
    config: oci.Config,
    layer_digests: Sequence[str],
    blobs: Sequence[Blob],
    bounds: Bounds,
) -> Found:
    """Raises ImageFault(BadArchive) when the layers do not fit the configuration."""
    if len(blobs) != len(config.diff_ids):
        raise ImageFault(
            "BadArchive", f"{digests[0]} has {len(blobs)} layers, its configuration {len(config.diff_ids)}"
        )
    if not 0 < len(blobs) <= bounds.layers:
        raise ImageFault("BadArchive", f"{digests[0]} has {len(blobs)} layers: 1 to {bounds.layers} are possible")
    parts = zip(layer_digests, config.diff_ids, oci.chain_ids(config.diff_ids), blobs, strict=True)
    size = len(documents[0]) + sum(blob.size for blob in blobs)
    layers = [LayerSource(*part) for part in parts]
    return Found(
        tuple(image_names), digests[0], tuple(digests), digest_of(documents[0]), size, *documents, config, layers
    )


def named(images: Sequence[Found], name: str) -> list[Found]:
    """Every image gets a name: the archive's own, or the one that the caller gave for its only image."""
    if name:
        if len(images) != 1:
            raise ImageFault("BadArchive", f"the archive holds {len(images)} images: one name cannot serve them all")
        reference = names.parse(name)
        if reference.digest and reference.digest not in images[0].digests:
            raise ImageFault("BadDigest", f"the archive's image is {images[0].digest}, not {reference.digest}")
        plain = names.Reference(reference.domain, reference.path, reference.tag or names.DEFAULT_TAG)
        return [_renamed(images[0], [str(plain)])]
    for image in images:
        if not image.names:
            raise ImageFault("BadArchive", f"the archive does not name its image {image.digest}: give it a name")
    return list(images)


def _renamed(image: Found, image_names: Sequence[str]) -> Found:
    unique = tuple(dict.fromkeys(image_names))
    return replace(image, names=unique)


def _blob_path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)


def _path(raw: bytes) -> str:
    path = raw.decode("utf-8", "backslashreplace")
    if len(raw) > MAX_PATH or path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise ImageFault("BadPath", f"the archive holds the path {path[:200]!r}, which climbs out or is too long")
    return posixpath.normpath(path)


def _target(path: str, entry: tar.Entry) -> str:
    link = entry.link.decode("utf-8", "backslashreplace")
    base = posixpath.dirname(path) if entry.kind == tar.SYMLINK else ""
    target = posixpath.normpath(posixpath.join(base, link))
    if target.startswith(("/", "../")) or target == "..":
        raise ImageFault("BadPath", f"in the archive {path!r} is a link to {link[:200]!r}, which climbs out")
    return target


def _bad_digest(wanted: str, actual: str, size: int) -> ImageFault:
    return ImageFault("BadDigest", f"the content of {wanted} has the digest {actual} ({size} bytes): it is damaged")
