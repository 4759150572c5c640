"""Builds assignments: a COMPLETE in parts, and increments from what is dirty (pure)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from shoal.master.dispatcher import deliveries, statuses
from shoal.master.dispatcher.table import Table
from shoal.master.model import Key, View
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

PART_BYTES = 1 << 20  # a part's bound; a larger object is a part of its own
INCREMENT_BYTES = 8 << 20  # what one revision may weigh; agents read messages of up to 16 MiB
OVERHEAD_BYTES = 32  # of an entry beside its uid or name and its body

Entry: TypeAlias = s.AssignedPod | s.AssignedObject
Change: TypeAlias = tuple[int, int, str | Key]  # revision, which table of Dirty, what
PODS, OBJECTS = range(2)


@dataclass(slots=True)
class Dirty:
    """What one session has still to hear: pod uids and objects' keys, each with the revision of its last change; of an
    object the first change that is not told, so that it never comes after a pod that refers to it."""

    pods: dict[str, int] = field(default_factory=dict)
    objects: dict[Key, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.pods or self.objects)

    def add_pod(self, uid: str, revision: int) -> None:
        self.pods.pop(uid, None)  # to the end: the dictionary stays ordered by revision
        self.pods[uid] = revision

    def add_object(self, key: Key, revision: int) -> None:
        self.objects.setdefault(key, revision)

    def clear(self) -> None:
        self.pods.clear()
        self.objects.clear()


def assigned_pod(view: View, uid: str, node: str) -> s.AssignedPod | None:
    """The pod as `node` is to hold it, or None."""
    pod = view.by_uid(uid)
    if not isinstance(pod, o.Pod) or not statuses.assigned(pod, node):
        return None
    record = view.record(Key("Pod", pod.metadata.namespace, pod.metadata.name))
    return s.AssignedPod(uid=uid, pod=record.body) if record is not None else None


def complete(
    view: View, table: Table, node: str, position: s.Position, over: Collection[str] = ()
) -> list[s.Assignments]:
    """Everything that `node` is to hold, save the pods that are `over` there, and the whole node table, in parts of at
    most 1 MiB."""
    parts = table.parts()
    size = parts[-1].ByteSize()
    for entry in _holdings(view, node, over):
        weight = entry.ByteSize() + OVERHEAD_BYTES
        if size and size + weight > PART_BYTES:
            parts.append(s.Assignments())
            size = 0
        size += weight
        _put(parts[-1], entry)
    for number, part in enumerate(parts):
        part.kind = s.Assignments.COMPLETE
        part.results_in.CopyFrom(position)
        part.part = number
    parts[-1].last = True
    return parts


def _holdings(view: View, node: str, over: Collection[str]) -> Iterator[Entry]:
    for key in deliveries.everything(view, node):
        found = deliveries.assigned_object(view, key, node)
        if found is not None:
            yield found
    for pod in sorted(view.pods_on(node), key=lambda p: (p.metadata.namespace, p.metadata.name)):
        entry = assigned_pod(view, pod.metadata.uid, node)
        if entry is not None and entry.uid not in over:
            yield entry


def _put(message: s.Assignments, entry: Entry) -> None:
    if isinstance(entry, s.AssignedPod):
        message.upsert_pods.append(entry)
    else:
        message.upsert_objects.append(entry)


def increment(
    view: View, node: str, dirty: Dirty, fed: int, applies_to: s.Position, table_news: s.Assignments | None = None
) -> s.Assignments | None:
    """Takes from `dirty` what fits into one message, whole revisions only, so that each increment has a position of
    its own; `fed` is the revision up to which changes have been told. News of the node table
    have no position: they may come alone, at the one that was. None when one revision is too much for a
    message: a COMPLETE, which has parts, must carry it."""
    message = s.Assignments(kind=s.Assignments.INCREMENTAL, applies_to=applies_to, last=True)
    if table_news is not None:
        message.MergeFrom(table_news)
    order = sorted(_changes(dirty), key=lambda change: change[:2])
    size, reached = 0, fed
    for index, (revision, _, what) in enumerate(order):
        if size > PART_BYTES and revision != order[index - 1][0]:
            reached = order[index - 1][0]
            break
        size += _add(view, node, message, what)
        if size > INCREMENT_BYTES:
            return None
        _forget(dirty, what)
    message.results_in.CopyFrom(s.Position(epoch=applies_to.epoch, revision=reached))
    return message


def _changes(dirty: Dirty) -> Iterator[Change]:
    yield from ((revision, PODS, uid) for uid, revision in dirty.pods.items())
    yield from ((revision, OBJECTS, key) for key, revision in dirty.objects.items())


def _forget(dirty: Dirty, what: str | Key) -> None:
    if isinstance(what, Key):
        del dirty.objects[what]
    else:
        del dirty.pods[what]


def _add(view: View, node: str, message: s.Assignments, what: str | Key) -> int:
    """Puts one change into the message; its size in bytes."""
    if isinstance(what, Key):
        return _add_object(view, node, what, message)
    return _add_pod(view, node, what, message)


def _add_object(view: View, node: str, key: Key, message: s.Assignments) -> int:
    entry = deliveries.assigned_object(view, key, node)
    if entry is None:
        message.remove_objects.add(kind=key.kind, namespace=key.namespace, name=key.name)
        return len(key.namespace) + len(key.name) + OVERHEAD_BYTES
    message.upsert_objects.append(entry)
    return entry.ByteSize() + OVERHEAD_BYTES


def _add_pod(view: View, node: str, uid: str, message: s.Assignments) -> int:
    entry = assigned_pod(view, uid, node)
    if entry is None:
        message.remove_pods.append(uid)
        return len(uid) + OVERHEAD_BYTES
    message.upsert_pods.append(entry)
    return entry.ByteSize() + OVERHEAD_BYTES
