"""What image documents say: OCI and Docker indexes, manifests and configurations, and docker save's own lists.

Pure: bytes in, plain data out. Sources: image-spec v1.1 (manifest.md, image-index.md, config.md, annotations.md),
moby's image/spec v1.2. `mediaType` may be missing, as umoci leaves it out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.agent.images import names
from shoal.agent.images.port import ImageConfig, ImageFault

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
INDEX_TYPES = (f"{OCI}index.v1+json", f"{DOCKER}distribution.manifest.list.v2+json")
MANIFEST_TYPES = (f"{OCI}manifest.v1+json", f"{DOCKER}distribution.manifest.v2+json")
CONFIG_TYPES = (f"{OCI}config.v1+json", f"{DOCKER}container.image.v1+json", "")
LAYER_PREFIXES = (
    f"{OCI}layer.v1.tar",
    f"{OCI}layer.nondistributable.v1.tar",
    f"{DOCKER}image.rootfs.diff.tar",
    f"{DOCKER}image.rootfs.foreign.diff.tar",
)
LAYER_SUFFIXES = ("", "+gzip", "+zstd", ".gzip", ".zstd")
REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"
MAX_DOCUMENT_ITEMS = 10_000  # entries of one list


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Points at a blob. `size` is -1 where the document gave none."""

    media_type: str
    digest: str
    size: int
    architecture: str = ""
    os: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    config: Descriptor
    layers: Sequence[Descriptor]


@dataclass(frozen=True, slots=True)
class Config:
    """An image's configuration: what a container needs, and the digests of its unpacked layers, lowest first."""

    architecture: str
    os: str
    diff_ids: Sequence[str]
    image: ImageConfig


@dataclass(frozen=True, slots=True)
class DockerImage:
    """One entry of docker save's manifest.json; `config` and `layers` are paths in the archive."""

    config: str
    names: Sequence[str]
    layers: Sequence[str]


def parse_index(data: bytes, what: str) -> list[Descriptor]:
    document = _object(data, what)
    return [_descriptor(item, what) for item in _list(document, "manifests", what, dict)]


def is_index(descriptor: Descriptor, data: bytes, what: str) -> bool:
    """Index or manifest, by media type, else by content. Anything else is refused."""
    document = _object(data, what)
    own = _text(document, "mediaType", what)
    if own and descriptor.media_type and own != descriptor.media_type:
        raise _bad(what, f"it calls itself {own!r}, what names it says {descriptor.media_type!r}")
    if "manifests" in document and "layers" in document:
        raise _bad(what, "it is both an index and a manifest")
    kind = descriptor.media_type or own
    if kind in INDEX_TYPES or (not kind and "manifests" in document):
        return True
    if kind in MANIFEST_TYPES or (not kind and "layers" in document):
        return False
    if document.get("schemaVersion") == 1:
        raise _bad(what, "it is a schema 1 manifest, which Docker gave up in 2017: build or save the image again")
    raise _bad(what, f"its media type {kind!r} is neither an image's manifest nor an index")


def parse_manifest(data: bytes, what: str) -> Manifest:
    document = _object(data, what)
    config = _descriptor(_member(document, "config", what, dict, {}), what)
    if config.media_type not in CONFIG_TYPES:
        raise _bad(what, f"it is no container image: its config has the media type {config.media_type!r}")
    layers = [_descriptor(item, what) for item in _list(document, "layers", what, dict)]
    for layer in layers:
        if layer.media_type and not _is_layer(layer.media_type):
            raise _bad(what, f"a layer has the media type {layer.media_type!r}, which is not supported")
    return Manifest(config, layers)


def parse_config(data: bytes, what: str) -> Config:
    document = _object(data, what)
    rootfs = _member(document, "rootfs", what, dict, {})
    if _text(rootfs, "type", what) not in ("", "layers"):
        raise _bad(what, f"its rootfs has the type {rootfs['type']!r}; only 'layers' exists")
    diff_ids = _texts(rootfs, "diff_ids", what)
    for diff_id in diff_ids:
        _check_digest(diff_id, what)
    inner = _member(document, "config", what, dict, {})
    image = ImageConfig(
        entrypoint=tuple(_texts(inner, "Entrypoint", what)),
        cmd=tuple(_texts(inner, "Cmd", what)),
        env=_environment(_texts(inner, "Env", what), what),
        user=_text(inner, "User", what),
        working_dir=_text(inner, "WorkingDir", what),
        stop_signal=_text(inner, "StopSignal", what),
    )
    return Config(_text(document, "architecture", what), _text(document, "os", what), tuple(diff_ids), image)


def check_platform(config: Config, architecture: str, what: str) -> None:
    """Refuses an image that this node cannot run. An image that does not say is taken."""
    if config.os not in ("", "linux"):
        raise _bad(what, f"the image is made for {config.os}; nodes run linux")
    if config.architecture not in ("", architecture.partition("/")[0]):
        raise _bad(what, f"the image is made for {config.architecture}, this node is {architecture}")


def choose(descriptors: Sequence[Descriptor], architecture: str, what: str) -> Descriptor:
    """The one for this platform; one without a platform counts when no other fits. `architecture` may carry a variant
    (`arm/v7`)."""
    own, _, variant = architecture.partition("/")
    fitting = [one for one in descriptors if one.architecture == own and one.os in ("linux", "")]
    for wanted in _variants(own, variant):
        for descriptor in fitting:
            if descriptor.variant == wanted:
                return descriptor
    for descriptor in descriptors:
        if not descriptor.architecture and not descriptor.os:
            return descriptor
    held = sorted({_platform(one) for one in descriptors if one.os != "unknown"})
    raise _bad(what, f"there is no image for linux/{architecture} in it, only for {', '.join(held) or 'nothing'}")


def _variants(architecture: str, variant: str) -> Sequence[str]:
    """What this machine can run, best first: a variant includes the lower ones."""
    default = {"arm64": "v8", "amd64": "v1", "arm": "v7"}.get(architecture, "")
    own = variant or default
    if not own.removeprefix("v").isdecimal():
        return (own, "")
    number = int(own.removeprefix("v"))
    lowest = {"arm64": 8, "amd64": 1, "arm": 5}.get(architecture, 1)
    return (*(f"v{n}" for n in range(number, lowest - 1, -1)), "")


def _platform(descriptor: Descriptor) -> str:
    return "/".join(part for part in (descriptor.os, descriptor.architecture, descriptor.variant) if part)


def history(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A configuration's history, as far as it is in order."""
    steps = document.get("history")
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def media_type_of(manifest: bytes) -> str:
    """The manifest's own, or OCI's when it has none."""
    document = _load(manifest, "the manifest")
    kind = document.get("mediaType") if isinstance(document, dict) else None
    return kind if kind in MANIFEST_TYPES else MANIFEST_TYPES[0]


def parse_docker_manifest(data: bytes, what: str) -> list[DockerImage]:
    document = _load(data, what)
    if not isinstance(document, list) or not document or len(document) > MAX_DOCUMENT_ITEMS:
        raise _bad(what, "it must be a list of images")
    images = []
    for item in document:
        if not isinstance(item, dict):
            raise _bad(what, "it must be a list of objects")
        config = _text(item, "Config", what)
        if not config:
            raise _bad(what, "an image names no Config")
        images.append(DockerImage(config, _texts(item, "RepoTags", what), _texts(item, "Layers", what)))
    return images


def parse_repositories(data: bytes, what: str) -> dict[str, list[str]]:
    """docker save's `repositories`: {name: {tag: id of the top layer}}, turned round to id -> names."""
    by_layer: dict[str, list[str]] = {}
    document = _object(data, what)
    for name in document:
        tags = _member(document, name, what, dict, {})
        for tag in tags:
            by_layer.setdefault(_text(tags, tag, what), []).append(f"{name}:{tag}")
    return by_layer


def names_of(annotations: Mapping[str, str]) -> list[str]:
    """A descriptor's image names. A bare `ref.name` such as `latest` is by custom only a tag, so it names nothing."""
    full = annotations.get(FULL_NAME) or annotations.get(REF_NAME, "")
    return [names.normalise(full)] if "/" in full or ":" in full else []


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Names each layer together with all below it (image-spec, config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append("sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest() if chain else diff_id)
    return chain


def make_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """The manifest that a docker archive lacks, always the same for the same content."""

    def plain(item: Descriptor) -> dict[str, Any]:
        return {"mediaType": item.media_type, "digest": item.digest, "size": item.size}

    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPES[0],
        "config": plain(config),
        "layers": [plain(layer) for layer in layers],
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def _is_layer(media_type: str) -> bool:
    return any(media_type == prefix + suffix for prefix in LAYER_PREFIXES for suffix in LAYER_SUFFIXES)


def _descriptor(item: dict[str, Any], what: str) -> Descriptor:
    digest = _text(item, "digest", what)
    _check_digest(digest, what)
    size = item.get("size", -1)
    if not isinstance(size, int) or isinstance(size, bool) or size < -1:
        raise _bad(what, f"the size of {digest} is not a number")
    platform = _member(item, "platform", what, dict, {})
    annotations = _member(item, "annotations", what, dict, {})
    return Descriptor(
        _text(item, "mediaType", what),
        digest,
        size,
        _text(platform, "architecture", what),
        _text(platform, "os", what),
        {key: _text(annotations, key, what) for key in annotations},
        _text(platform, "variant", what),
    )


def _check_digest(digest: str, what: str) -> None:
    if not names.is_digest(digest):
        raise ImageFault("BadDigest", f"{what}: {digest[:200]!r} is not a sha256 or sha512 digest")


def _environment(items: Sequence[str], what: str) -> dict[str, str]:
    environment = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise _bad(what, f"Env holds {item[:200]!r}, which is not NAME=value")
        environment[key] = value
    return environment


def _load(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _bad(what, f"it is not valid JSON: {error}") from error


def _object(data: bytes, what: str) -> dict[str, Any]:
    document = _load(data, what)
    if not isinstance(document, dict):
        raise _bad(what, "it must be a JSON object")
    return document


def _member(document: Mapping[str, Any], key: str, what: str, kind: type, default: Any) -> Any:
    value = document.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise _bad(what, f"{key!r} must be {_KIND_NAMES[kind]}")
    return value


_KIND_NAMES: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}


def _list(document: Mapping[str, Any], key: str, what: str, kind: type) -> list[Any]:
    items: list[Any] = _member(document, key, what, list, [])
    if len(items) > MAX_DOCUMENT_ITEMS:
        raise _bad(what, f"{key!r} has {len(items)} entries; at most {MAX_DOCUMENT_ITEMS} are read")
    if not all(isinstance(item, kind) for item in items):
        raise _bad(what, f"every entry of {key!r} must be {_KIND_NAMES[kind]}")
    return items


def _text(document: Mapping[str, Any], key: str, what: str) -> str:
    value: str = _member(document, key, what, str, "")
    return _printable(value, key, what)


def _texts(document: Mapping[str, Any], key: str, what: str) -> list[str]:
    return [_printable(item, key, what) for item in _list(document, key, what, str)]


def _printable(value: str, key: str, what: str) -> str:
    if "\0" in value:
        raise _bad(what, f"{key!r} holds a NUL character")
    return value


def _bad(what: str, why: str) -> ImageFault:
    return ImageFault("BadArchive", f"{what}: {why}")
