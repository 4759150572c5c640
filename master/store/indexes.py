"""The declared indexes over committed objects: by owner uid, by node, by label, and by what refers to what. Kept by
`apply` alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeAlias, cast

from shoal.master.model import FINAL_PHASES, Key, Object, Record
from shoal.proto.references import homes, references
from shoal.proto.v1 import objects_pb2 as o

# ("owner", uid), ("node", name), ("label", kind, namespace, key, value),
# ("refers", kind, namespace, name, node or ""): pods; ("claims", volume) and
# ("waiting", storage class): claims; ("lives", node), ("given", claim's uid) and ("free", storage class): volumes
Entry: TypeAlias = tuple[str, ...]
_NOTHING: dict[Key, Object] = {}


def entries_of(record: Record) -> tuple[Entry, ...]:
    """Where an object is to be found."""
    message, key = record.message, record.key
    metadata = message.metadata
    entries: list[Entry] = [("owner", owner.uid) for owner in metadata.ownerReferences]
    entries += [("label", key.kind, key.namespace, name, value) for name, value in metadata.labels.items()]
    if key.kind == "Pod":
        entries += _of_pod(cast(o.Pod, message))
    elif key.kind == "PersistentVolumeClaim":
        entries += _of_claim(cast(o.PersistentVolumeClaim, message))
    elif key.kind == "PersistentVolume":
        entries += _of_volume(cast(o.PersistentVolume, message))
    return tuple(entries)


def _of_pod(pod: o.Pod) -> Iterator[Entry]:
    node = pod.spec.nodeName
    if node:
        yield ("node", node)
    if pod.status.phase in FINAL_PHASES:
        return
    for kind, namespace, name in references(pod):
        yield ("refers", kind, namespace, name, "")
        if node:
            yield ("refers", kind, namespace, name, node)


def _of_claim(claim: o.PersistentVolumeClaim) -> Iterator[Entry]:
    if claim.spec.volumeName:
        yield ("claims", claim.spec.volumeName)
    if claim.status.phase != "Bound":
        yield ("waiting", claim.spec.storageClassName)


def _of_volume(volume: o.PersistentVolume) -> Iterator[Entry]:
    for node in homes(volume):
        yield ("lives", node)
    given = volume.spec.claimRef.uid
    yield ("given", given) if given else ("free", volume.spec.storageClassName)


def _found_alike(old: Record, new: Record) -> bool:
    """A pod of which the status alone has changed is in the same indexes, unless it has ended."""
    if new.key.kind != "Pod":
        return False
    was, now = cast(o.Pod, old.message), cast(o.Pod, new.message)
    if (was.status.phase in FINAL_PHASES) != (now.status.phase in FINAL_PHASES):
        return False
    return was.spec == now.spec and was.metadata == now.metadata


class Indexes:
    """Entry -> the objects in it, newest state. What `find` gives is live: use it before the next await."""

    def __init__(self) -> None:
        self._objects: dict[Entry, dict[Key, Object]] = {}
        self._entries: dict[Key, tuple[Entry, ...]] = {}

    def find(self, entry: Entry) -> Collection[Object]:
        return self._objects.get(entry, _NOTHING).values()

    def put(self, record: Record, old: Record | None = None) -> None:
        """`old` is the record that this one replaces, when it is known."""
        key = record.key
        before = self._entries.get(key, ())
        if old is not None and _found_alike(old, record):
            entries = before
        else:
            entries = entries_of(record)
            if before != entries:
                self._leave(key, [entry for entry in before if entry not in entries])
                self._entries[key] = entries
        for entry in entries:
            self._objects.setdefault(entry, {})[key] = record.message

    def remove(self, key: Key) -> None:
        self._leave(key, self._entries.pop(key, ()))

    def _leave(self, key: Key, entries: Collection[Entry]) -> None:
        for entry in entries:
            objects = self._objects[entry]
            objects.pop(key, None)
            if not objects:
                del self._objects[entry]
