"""The volumes' port: what a pod's machine asks for, and what makes it on the node's disk.

Two adapters pass one contract suite: `disk.py` (files, tmpfs, bind sources) and `fake.py`. What is asked for is plain
data, decided by `agent/pods/volumes.py` from the pod and the objects that it refers to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias


class VolumeFault(Exception):
    """A volume could not be made; the message says which, why and what to do. `retryable`: it may work later."""

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class EmptyDir:
    """A fresh folder for the pod's life, mode 0777. `memory`: a tmpfs of `size_bytes` (0: the kernel's default)."""

    memory: bool = False
    size_bytes: int = 0  # on disk: the pod is evicted above it; 0 is no limit


@dataclass(frozen=True, slots=True)
class HostPath:
    path: str
    type: str = ""  # as in Kubernetes; checked and, for ...OrCreate, made


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Files:
    """Files below one folder, replaced together and atomically (a link `..data` to a dated folder, as the kubelet's
    AtomicWriter). `secret`: in memory only."""

    files: Mapping[str, File]  # relative path -> content
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Local:
    """A persistent volume of this node. `path` "": Shoal's own folder for `name`, made when missing and kept."""

    name: str
    path: str = ""


VolumeSource: TypeAlias = EmptyDir | HostPath | Files | Local


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    name: str  # in the pod
    source: VolumeSource
    read_only: bool = False  # wherever it is mounted
    fs_group: int | None = None  # owner group (and g+rwX, setgid on folders) of what the volume holds
    fs_group_always: bool = True  # False: only when the volume's root differs (OnRootMismatch)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A volume that is there: the path on the node that containers mount."""

    name: str
    path: str
    is_file: bool = False


class Volumes(Protocol):
    """All calls are idempotent; any may raise VolumeFault."""

    async def prepare(self, pod_uid: str, specs: Sequence[VolumeSpec]) -> Mapping[str, Prepared]:
        """Makes the pod's volumes; what is there already is kept (Files: brought up to date)."""
        ...

    async def update(self, pod_uid: str, specs: Sequence[VolumeSpec]) -> None:
        """Brings the Files volumes among these up to date, each atomically; running containers see it."""
        ...

    async def free(self, pod_uid: str) -> None:
        """Unmounts and removes everything of the pod, save what is persistent or the host's."""
        ...

    async def held(self) -> Sequence[str]:
        """The uids of the pods that have volumes here, as known on disk."""
        ...

    async def usage(self, pod_uid: str) -> Mapping[str, int]:
        """Bytes on disk by volume, of those that count (emptyDir on disk)."""
        ...

    async def measure(self, folders: Sequence[str]) -> int:
        """Bytes on disk below these folders of the node; one that is not there has none."""
        ...

    async def remove_local(self, name: str) -> None:
        """Deletes Shoal's own folder of a persistent volume; one that is not there is no error."""
        ...


@dataclass(frozen=True, slots=True)
class Missing:
    """What a pod refers to and the cluster has not, or what cannot be used: the pod waits. `what` as "ConfigMap
    shop/web does not exist"; `field` is the path in the pod's manifest."""

    what: str
    field: str
    reason: str = "CreateContainerConfigError"
