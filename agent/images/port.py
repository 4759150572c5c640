"""The image store's port. Two adapters: `store.py` (content store on disk) and `fake.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class ImageFault(Exception):
    """An image could not be used. `reason` is Kubernetes' word (ErrImageNeverPull, InvalidImageName,
    ImageInspectError) or one of BadArchive, BadDigest, BadPath, TooLarge, NoSpace, InUse, NotFound."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


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
