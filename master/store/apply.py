"""The cache of committed state. `apply(revision, changes)` is the only way into it, for leader and follower alike."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

from shoal.master.model import Event, Key, Object, Record
from shoal.master.store.indexes import Indexes
from shoal.proto.v1 import objects_pb2 as o

_NOTHING: Mapping[str, Record] = {}
_NOWHERE: Mapping[str, Mapping[str, Record]] = {}


class Applied(NamedTuple):
    """A committed change: the new record, or None for a deleted object."""

    key: Key
    record: Record | None


class Cache:
    """Committed objects with their indexes; the store's `View`. Messages are shared: clone before changing one.
    Collections that it gives are live: use them before the next await."""

    def __init__(self) -> None:
        self._revision = 0
        self._records: dict[str, dict[str, dict[str, Record]]] = {}  # kind, namespace, name
        self._uids: dict[str, Record] = {}
        self._indexes = Indexes()
        self._sorted: dict[str, list[Key]] = {}

    # ---- the view ----
    @property
    def revision(self) -> int:
        return self._revision

    def record(self, key: Key) -> Record | None:
        return self._records.get(key.kind, _NOWHERE).get(key.namespace, _NOTHING).get(key.name)

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        record = self._records.get(kind, _NOWHERE).get(namespace, _NOTHING).get(name)
        return record.message if record is not None else None

    def all(self, kind: str, namespace: str | None = None) -> Iterator[Object]:
        return (record.message for record in self.records(kind, namespace))

    def records(self, kind: str, namespace: str | None = None) -> Iterator[Record]:
        """All records of a kind, of one namespace or (None) of all."""
        spaces = self._records.get(kind, {})
        if namespace is not None:
            yield from spaces.get(namespace, {}).values()
        else:
            for names in spaces.values():
                yield from names.values()

    def owned(self, uid: str) -> Collection[Object]:
        return self._indexes.find(("owner", uid))

    def by_uid(self, uid: str) -> Object | None:
        record = self._uids.get(uid)
        return record.message if record else None

    def pods_on(self, node: str) -> Collection[o.Pod]:
        return cast(Collection[o.Pod], self._indexes.find(("node", node)))

    def labelled(self, kind: str, namespace: str, key: str, value: str) -> Collection[Object]:
        return self._indexes.find(("label", kind, namespace, key, value))

    def referring(self, kind: str, namespace: str, name: str, node: str = "") -> Collection[o.Pod]:
        return cast(Collection[o.Pod], self._indexes.find(("refers", kind, namespace, name, node)))

    def claims_on(self, volume: str) -> Collection[o.PersistentVolumeClaim]:
        return cast(Collection[o.PersistentVolumeClaim], self._indexes.find(("claims", volume)))

    def claims_waiting(self, storage_class: str) -> Collection[o.PersistentVolumeClaim]:
        return cast(Collection[o.PersistentVolumeClaim], self._indexes.find(("waiting", storage_class)))

    def volumes_on(self, node: str) -> Collection[o.PersistentVolume]:
        return cast(Collection[o.PersistentVolume], self._indexes.find(("lives", node)))

    def volumes_of(self, claim_uid: str) -> Collection[o.PersistentVolume]:
        return cast(Collection[o.PersistentVolume], self._indexes.find(("given", claim_uid)))

    def volumes_free(self, storage_class: str) -> Collection[o.PersistentVolume]:
        return cast(Collection[o.PersistentVolume], self._indexes.find(("free", storage_class)))

    def sorted_keys(self, kind: str) -> Sequence[Key]:
        """All keys of a kind by namespace and name. Sorted anew only after keys came or went."""
        if kind not in self._sorted:
            self._sorted[kind] = sorted(record.key for record in self.records(kind))
        return self._sorted[kind]

    # ---- the way in ----
    def apply(self, revision: int, changes: Iterable[Applied]) -> list[Event]:
        """Takes one revision's changes in, and gives what they were. An object replaced by one with another uid is
        told as a deletion and an addition."""
        if revision < self._revision:
            raise AssertionError(f"revision {revision} applied after {self._revision}")
        self._revision = revision
        events: list[Event] = []
        for key, new in changes:
            old = self.record(key)
            if old is not None and new is not None and old.message.metadata.uid != new.message.metadata.uid:
                events.append(Event(key, revision, old, None))
                self._remove(old)
                old = None
            if new is not None:
                self._put(new, old)
                events.append(Event(key, revision, old, new))
            elif old is not None:
                self._remove(old)
                events.append(Event(key, revision, old, None))
        return events

    def _put(self, new: Record, old: Record | None) -> None:
        key = new.key
        if old is None:
            self._sorted.pop(key.kind, None)
        self._records.setdefault(key.kind, {}).setdefault(key.namespace, {})[key.name] = new
        self._uids[new.message.metadata.uid] = new
        self._indexes.put(new, old)

    def _remove(self, old: Record) -> None:
        key = old.key
        self._sorted.pop(key.kind, None)
        names = self._records[key.kind][key.namespace]
        del names[key.name]
        if not names:
            del self._records[key.kind][key.namespace]
        uid = old.message.metadata.uid
        if self._uids.get(uid) is old:
            del self._uids[uid]
        self._indexes.remove(key)
