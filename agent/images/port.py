"""The image store's port. Two adapters: `store.py` (content store on disk) and `fake.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

MAX_MESSAGE = 2000  # characters


def in_short(text: str) -> str:
    """Printable, so that it can be encoded and shown, and with its middle left out where it is long."""
    if len(text) > MAX_MESSAGE:
        half = MAX_MESSAGE // 2 - 10
        text = f"{text[:half]} [...] {text[-half:]}"
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


class ImageFault(Exception):
    """An image could not be used. `reason` is Kubernetes' word (ErrImagePull, ErrImageNeverPull, InvalidImageName,
    ImageInspectError, RegistryUnavailable) or one of BadArchive, BadDigest, BadPath, TooLarge, NoSpace, InUse,
    NotFound, Unauthorized. `retry_after` is what the registry asked for, in seconds; 0 when it did not. The message may
    repeat a stranger's words: it is kept short and printable, for it becomes a part of statuses."""

    def __init__(self, reason: str, message: str, retry_after: float = 0.0) -> None:
        message = in_short(message)
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The part of the OCI image configuration that a container needs (image-spec, config.md)."""

    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    id: str  # sha256:... of the configuration
    digest: str  # sha256:... of the manifest
    names: Sequence[str]  # normalised: docker.io/library/nginx:1.25
    size: int  # bytes of the compressed layers and configuration
    layers: Sequence[str]  # folders, lowest first
    config: ImageConfig


@dataclass(frozen=True, slots=True)
class Credential:
    """For one registry; `registry` is host[:port], or that with the beginning of a repository's path."""

    registry: str
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What went, or would go."""

    names: Sequence[str]
    freed: int  # bytes


class Images(Protocol):
    async def find(self, name: str) -> Image | None:
        """By any spelling of its name, or by digest. Raises ImageFault(InvalidImageName)."""
        ...

    async def list(self) -> Sequence[Image]: ...

    async def load(
        self, chunks: AsyncIterator[bytes], name: str = "", progress: Callable[[str], None] | None = None
    ) -> Sequence[Image]:
        """Takes in a docker or OCI archive (or a tarred OCI layout). All or nothing. Raises ImageFault."""
        ...

    async def remove(self, name: str) -> None:
        """Takes the name away; layers that nothing needs any more are deleted. Raises ImageFault(InUse, NotFound)."""
        ...

    async def hold(self, holder: str, name: str) -> Image | None:
        """As `find`, and the image's layers stay until `release(holder)`, also over restarts."""
        ...

    async def release(self, holder: str) -> None: ...

    async def holders(self) -> Collection[str]:
        """Everybody who holds something."""
        ...

    async def pull(
        self, name: str, credentials: Sequence[Credential] = (), progress: Callable[[str], None] | None = None
    ) -> Image:
        """Fetches the image of this node's architecture from its registry (or that one's mirrors) and gives it the
        name; layers that are here are not fetched again, and one fetch serves all who ask at once. Credentials are
        tried before those of the node. Raises ImageFault with the registry's own words."""
        ...

    async def push(
        self, name: str, credentials: Sequence[Credential] = (), progress: Callable[[str], None] | None = None
    ) -> str:
        """Sends an image of this node to the registry in its name; the manifest's digest. Raises ImageFault."""
        ...

    async def login(self, credential: Credential) -> None:
        """Tries the credential against its registry. Raises ImageFault(Unauthorized, RegistryUnavailable)."""
        ...

    def save(self, names: Sequence[str]) -> AsyncIterator[bytes]:
        """A docker archive that is an OCI layout too. Raises ImageFault."""
        ...

    async def tag(self, source: str, target: str) -> None:
        """Gives an image another name; a name moves. Raises ImageFault(NotFound, InvalidImageName)."""
        ...

    async def inspect(self, name: str) -> Mapping[str, object]:
        """Names, digest, sizes, layers, history and configuration, ready for JSON. Raises ImageFault(NotFound)."""
        ...

    async def prune(self, *, all: bool = False, dry_run: bool = False) -> Pruned:
        """Removes what has no name and nobody holds; with `all` everything that nobody holds."""
        ...

    async def collect(self, bytes_to_free: int, unused_for_s: float) -> Pruned:
        """Removes images that nobody holds, the longest unused first, until so much is free; none that was used within
        `unused_for_s`. Never what is held, or being pulled."""
        ...
