"""Builds assignments: a COMPLETE in parts, and increments from what is dirty (pure)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from shoal.master.dispatcher import statuses
from shoal.master.dispatcher.nodes import Table
from shoal.master.model import Key, View
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

PART_BYTES = 1 << 20  # a part's bound; a larger object is a part of its own
NODES_PER_PART = 2000  # an entry has at most some 330 bytes
OVERHEAD_BYTES = 32  # of an entry beside its uid or name and its body


@dataclass(slots=True)
class Dirty:
    """What one session has still to hear: pod uids and node names, each with the revision of its last change."""

    pods: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.pods or self.nodes)

    def add_pod(self, uid: str, revision: int) -> None:
        self.pods.pop(uid, None)  # to the end: the dictionary stays ordered by revision
        self.pods[uid] = revision

    def add_node(self, name: str, revision: int) -> None:
        self.nodes.pop(name, None)
        self.nodes[name] = revision

    def clear(self) -> None:
        self.pods.clear()
        self.nodes.clear()


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
    """Everything that `node` is to hold, save what is `over` there, and the whole node table, in parts of at most
    1 MiB."""
    entries = table.ordered()
    parts = [
        s.Assignments(upsert_nodes=entries[start : start + NODES_PER_PART])
        for start in range(0, len(entries), NODES_PER_PART)
    ]
    parts = parts or [s.Assignments()]
    size = parts[-1].ByteSize()
    for pod in sorted(view.pods_on(node), key=lambda p: (p.metadata.namespace, p.metadata.name)):
        entry = assigned_pod(view, pod.metadata.uid, node)
        if entry is None or entry.uid in over:
            continue
        weight = entry.ByteSize() + OVERHEAD_BYTES
        if size and size + weight > PART_BYTES:
            parts.append(s.Assignments())
            size = 0
        size += weight
        parts[-1].upsert_pods.append(entry)
    for number, part in enumerate(parts):
        part.kind = s.Assignments.COMPLETE
        part.results_in.CopyFrom(position)
        part.part = number
    parts[-1].last = True
    return parts


def increment(view: View, table: Table, node: str, dirty: Dirty, fed: int, applies_to: s.Position) -> s.Assignments:
    """Takes from `dirty` what fits into one message, whole revisions only, so that each increment has a position of
    its own; `fed` is the revision up to which changes have been told."""
    message = s.Assignments(kind=s.Assignments.INCREMENTAL, applies_to=applies_to, last=True)
    order = sorted([*_tagged(dirty.pods, True), *_tagged(dirty.nodes, False)])
    size, reached = 0, fed
    for index, (revision, is_pod, name) in enumerate(order):
        if size > PART_BYTES and revision != order[index - 1][0]:
            reached = order[index - 1][0]
            break
        size += _add_pod(view, node, name, message) if is_pod else _add_node(table, name, message)
        (dirty.pods if is_pod else dirty.nodes).pop(name)
    message.results_in.CopyFrom(s.Position(epoch=applies_to.epoch, revision=reached))
    return message


def _tagged(changes: Mapping[str, int], is_pod: bool) -> Iterator[tuple[int, bool, str]]:
    return ((revision, is_pod, name) for name, revision in changes.items())


def _add_pod(view: View, node: str, uid: str, message: s.Assignments) -> int:
    entry = assigned_pod(view, uid, node)
    if entry is None:
        message.remove_pods.append(uid)
        return len(uid) + OVERHEAD_BYTES
    message.upsert_pods.append(entry)
    return entry.ByteSize() + OVERHEAD_BYTES


def _add_node(table: Table, name: str, message: s.Assignments) -> int:
    entry = table.get(name)
    if entry is not None:
        message.upsert_nodes.append(entry)
    else:
        message.remove_nodes.append(name)
    return len(name) + OVERHEAD_BYTES
