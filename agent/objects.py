"""What this node's pods refer to, as the master assigned it: ConfigMaps, Secrets, claims and volumes.

Pods' machines look it up; `agent/sync.py` fills it. ConfigMaps, claims and volumes are kept on disk, Secrets in a tmpfs
only, so that containers can start again while the master is away.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from shoal.proto.v1 import objects_pb2 as o

Referred: TypeAlias = o.ConfigMap | o.Secret | o.PersistentVolumeClaim | o.PersistentVolume


class Objects(Protocol):
    """Look-ups; None: the cluster has no such object."""

    def config_map(self, namespace: str, name: str) -> o.ConfigMap | None: ...
    def secret(self, namespace: str, name: str) -> o.Secret | None: ...
    def claim(self, namespace: str, name: str) -> o.PersistentVolumeClaim | None: ...
    def volume(self, name: str) -> o.PersistentVolume | None: ...


class MemoryObjects:
    """The objects by (kind, namespace, name): the cache itself, and all that tests and the simulation need."""

    def __init__(self) -> None:
        self.table: dict[tuple[str, str, str], Referred] = {}

    def put(self, obj: Referred) -> None:
        self.table[obj.kind, obj.metadata.namespace, obj.metadata.name] = obj

    def remove(self, kind: str, namespace: str, name: str) -> None:
        self.table.pop((kind, namespace, name), None)

    def config_map(self, namespace: str, name: str) -> o.ConfigMap | None:
        found = self.table.get(("ConfigMap", namespace, name))
        return found if isinstance(found, o.ConfigMap) else None

    def secret(self, namespace: str, name: str) -> o.Secret | None:
        found = self.table.get(("Secret", namespace, name))
        return found if isinstance(found, o.Secret) else None

    def claim(self, namespace: str, name: str) -> o.PersistentVolumeClaim | None:
        found = self.table.get(("PersistentVolumeClaim", namespace, name))
        return found if isinstance(found, o.PersistentVolumeClaim) else None

    def volume(self, name: str) -> o.PersistentVolume | None:
        found = self.table.get(("PersistentVolume", "", name))
        return found if isinstance(found, o.PersistentVolume) else None
