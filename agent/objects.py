"""What this node's pods refer to, as the master assigned it: ConfigMaps, Secrets, claims and volumes.

Pods' machines look it up; `agent/sync.py` fills it. ConfigMaps, claims and volumes are kept on disk, Secrets in a tmpfs
only (`object_files.py`), so that containers can start again while the master is away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias

from google.protobuf.message import DecodeError

from shoal.proto.references import CLAIM, CONFIG_MAP, SECRET, Reference
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

Referred: TypeAlias = o.ConfigMap | o.Secret | o.PersistentVolumeClaim | o.PersistentVolume
VOLUME = "PersistentVolume"
CLASSES: Mapping[str, type[Referred]] = {
    CONFIG_MAP: o.ConfigMap,
    SECRET: o.Secret,
    CLAIM: o.PersistentVolumeClaim,
    VOLUME: o.PersistentVolume,
}


class Objects(Protocol):
    """Look-ups; None: the cluster has no such object, as far as it is known when `settled` is not set."""

    @property
    def settled(self) -> bool:
        """Everything that the master has for this node is here: not so after a reboot, which takes the Secrets away."""
        ...

    def config_map(self, namespace: str, name: str) -> o.ConfigMap | None: ...
    def secret(self, namespace: str, name: str) -> o.Secret | None: ...
    def claim(self, namespace: str, name: str) -> o.PersistentVolumeClaim | None: ...
    def volume(self, name: str) -> o.PersistentVolume | None: ...


class MemoryObjects:
    """The cache that machines read; alone, all that tests and the simulation need."""

    def __init__(self) -> None:
        self.table: dict[Reference, Referred] = {}
        self.settled = True

    def put(self, obj: Referred) -> None:
        self.table[reference_of(obj)] = obj

    def remove(self, kind: str, namespace: str, name: str) -> None:
        self.table.pop(Reference(kind, namespace, name), None)

    def apply(
        self, objects: Iterable[Referred], removed: Iterable[Reference] = (), *, complete: bool = False
    ) -> Collection[Reference]:
        """What really changed. `complete`: what is not among `objects` is gone."""
        changed = set()
        fresh = {reference_of(obj): obj for obj in objects}
        for key, obj in fresh.items():
            if self.table.get(key) != obj:
                self.table[key] = obj
                changed.add(key)
        gone = [key for key in self.table if key not in fresh] if complete else list(removed)
        changed |= {key for key in gone if self.table.pop(key, None) is not None}
        return changed

    async def restore(self) -> None:
        """Takes up what the last agent kept."""

    async def keep(self, changed: Collection[Reference]) -> None:
        """Keeps these as they are now, for the next agent. Raises StateFault."""

    async def settle(self) -> bool:
        """A COMPLETE was applied. Whether that is news."""
        news, self.settled = not self.settled, True
        return news

    def config_map(self, namespace: str, name: str) -> o.ConfigMap | None:
        found = self.table.get(Reference(CONFIG_MAP, namespace, name))
        return found if isinstance(found, o.ConfigMap) else None

    def secret(self, namespace: str, name: str) -> o.Secret | None:
        found = self.table.get(Reference(SECRET, namespace, name))
        return found if isinstance(found, o.Secret) else None

    def claim(self, namespace: str, name: str) -> o.PersistentVolumeClaim | None:
        found = self.table.get(Reference(CLAIM, namespace, name))
        return found if isinstance(found, o.PersistentVolumeClaim) else None

    def volume(self, name: str) -> o.PersistentVolume | None:
        found = self.table.get(Reference(VOLUME, "", name))
        return found if isinstance(found, o.PersistentVolume) else None

    def volumes(self) -> Sequence[o.PersistentVolume]:
        return [obj for obj in self.table.values() if isinstance(obj, o.PersistentVolume)]


def reference_of(obj: Referred) -> Reference:
    return Reference(obj.kind, obj.metadata.namespace, obj.metadata.name)


def body_of(obj: Referred) -> bytes:
    key = reference_of(obj)
    body = obj.SerializeToString(deterministic=True)
    return s.AssignedObject(kind=key.kind, namespace=key.namespace, name=key.name, body=body).SerializeToString()


def object_of(assigned: s.AssignedObject) -> Referred | None:
    """None: of a kind that this agent does not know. Raises ValueError when the bytes are not that object."""
    kind = CLASSES.get(assigned.kind)
    if kind is None:
        return None
    title = f"{assigned.kind} {assigned.namespace}/{assigned.name}"
    try:
        obj = kind.FromString(assigned.body)
    except DecodeError as fault:
        raise ValueError(f"the bytes of {title} are not one: {fault}") from fault
    if (obj.metadata.namespace, obj.metadata.name) != (assigned.namespace, assigned.name):
        raise ValueError(f"the bytes of {title} are those of {obj.metadata.namespace}/{obj.metadata.name}")
    obj.kind = assigned.kind
    return obj


def with_claims(changed: Collection[Reference], objects: MemoryObjects) -> frozenset[Reference]:
    """The same and the claims of the volumes among them: a pod names its claim, not its volume."""
    names = {key.name for key in changed if key.kind == VOLUME}
    claims = (
        key
        for key, obj in objects.table.items()
        if names and isinstance(obj, o.PersistentVolumeClaim) and obj.spec.volumeName in names
    )
    return frozenset(changed) | frozenset(claims)
