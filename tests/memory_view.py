"""The master's View over a dictionary: what the store's indexes answer, found by plain scans."""

from __future__ import annotations

from collections.abc import Iterator

from shoal.master.model import FINAL_PHASES, Key, Object, Record
from shoal.proto.references import Reference, homes, references
from shoal.proto.v1 import objects_pb2 as o


class MemoryView:
    """`records` are what is committed, up to `revision`."""

    def __init__(self) -> None:
        self.records: dict[Key, Record] = {}
        self.revision = 1

    def record(self, key: Key) -> Record | None:
        return self.records.get(key)

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        record = self.records.get(Key(kind, namespace, name))
        return record.message if record else None

    def all(self, kind: str, namespace: str | None = None) -> list[Object]:
        return [r.message for k, r in self.records.items() if k.kind == kind and namespace in (None, k.namespace)]

    def owned(self, uid: str) -> list[Object]:
        return [m for m in self._messages() if any(ref.uid == uid for ref in m.metadata.ownerReferences)]

    def by_uid(self, uid: str) -> Object | None:
        return next((m for m in self._messages() if m.metadata.uid == uid), None)

    def pods_on(self, node: str) -> list[o.Pod]:
        return [m for m in self._messages() if isinstance(m, o.Pod) and m.spec.nodeName == node]

    def labelled(self, kind: str, namespace: str, key: str, value: str) -> list[Object]:
        return [m for m in self.all(kind, namespace) if m.metadata.labels.get(key) == value]

    def referring(self, kind: str, namespace: str, name: str, node: str = "") -> list[o.Pod]:
        return [
            pod
            for pod in self._messages()
            if isinstance(pod, o.Pod)
            and pod.status.phase not in FINAL_PHASES
            and Reference(kind, namespace, name) in references(pod)
            and node in ("", pod.spec.nodeName)
        ]

    def claims_on(self, volume: str) -> list[o.PersistentVolumeClaim]:
        return [claim for claim in self._claims() if claim.spec.volumeName == volume]

    def claims_waiting(self, storage_class: str) -> list[o.PersistentVolumeClaim]:
        waiting = (claim for claim in self._claims() if claim.status.phase != "Bound")
        return [claim for claim in waiting if claim.spec.storageClassName == storage_class]

    def volumes_on(self, node: str) -> list[o.PersistentVolume]:
        return [volume for volume in self._volumes() if node in homes(volume)]

    def volumes_free(self, storage_class: str) -> list[o.PersistentVolume]:
        free = (volume for volume in self._volumes() if not volume.spec.claimRef.uid)
        return [volume for volume in free if volume.spec.storageClassName == storage_class]

    def volumes_of(self, claim_uid: str) -> list[o.PersistentVolume]:
        return [volume for volume in self._volumes() if volume.spec.claimRef.uid == claim_uid]

    def _messages(self) -> list[Object]:
        return [record.message for record in self.records.values()]

    def _claims(self) -> Iterator[o.PersistentVolumeClaim]:
        return (m for m in self._messages() if isinstance(m, o.PersistentVolumeClaim))

    def _volumes(self) -> Iterator[o.PersistentVolume]:
        return (m for m in self._messages() if isinstance(m, o.PersistentVolume))
