"""Puts assignments in order: parts of a COMPLETE together, increments one after the other, nothing older. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from shoal.agent.objects import Referred, object_of
from shoal.agent.state import NodeRange, Position
from shoal.proto.references import Reference
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s


@dataclass(frozen=True, slots=True)
class Change:
    """What is assigned now. `complete`: what is not in it is not assigned."""

    position: Position
    complete: bool
    pods: Mapping[str, o.Pod] = field(default_factory=dict)
    removed_pods: Sequence[str] = ()
    nodes: Mapping[str, NodeRange] = field(default_factory=dict)
    removed_nodes: Sequence[str] = ()
    objects: Sequence[Referred] = ()
    removed_objects: Sequence[Reference] = ()


@dataclass(frozen=True, slots=True)
class Gap:
    """Something is missing: ask for a COMPLETE."""

    why: str


@dataclass(frozen=True, slots=True)
class Stale:
    """Older than what this node has applied: it comes from a master that has been replaced."""

    why: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The message contradicts the protocol."""

    why: str


Taken = Change | Gap | Stale | Broken | None


def position_of(message: s.Position) -> Position:
    return Position(message.epoch, message.revision)


class Assembler:
    """Of one session. `position` is the highest that the node has applied; without `routes` the node table is left
    unread."""

    def __init__(self, position: Position, routes: bool = True) -> None:
        self.position = position
        self._routes = routes
        self._parts: list[s.Assignments] = []
        self._based = False  # a COMPLETE of this session has been applied
        self._asked = False  # a COMPLETE was asked for and has not come yet

    def take(self, message: s.Assignments) -> Taken:
        """The change to apply now; None when there is nothing to do yet, or the message has come before."""
        try:
            if message.kind == s.Assignments.COMPLETE:
                return self._take_part(message)
            if message.kind == s.Assignments.INCREMENTAL:
                return self._take_increment(message)
        except ValueError as fault:
            return Broken(str(fault))
        return Broken(f"assignments of kind {message.kind} are not known to this agent")

    def _take_part(self, message: s.Assignments) -> Taken:
        position = position_of(message.results_in)
        if position < self.position:
            self._parts = []
            return Stale(f"COMPLETE at {position}, but this node has applied {self.position}")
        if message.part == 0:
            self._parts = []
        first = self._parts[0] if self._parts else message
        if message.part != len(self._parts) or message.results_in != first.results_in:
            self._parts = []
            return self._gap(f"part {message.part} of a COMPLETE at {position} came out of order")
        self._parts.append(message)
        if not message.last:
            return None
        change = _change_of(self._parts, position, complete=True, routes=self._routes)
        self._parts, self._based, self._asked = [], True, False
        self.position = position
        return change

    def _take_increment(self, message: s.Assignments) -> Taken:
        after, position = position_of(message.applies_to), position_of(message.results_in)
        if not self._based:
            return self._gap(f"increment to {position} before any COMPLETE")
        if position < self.position or (position == self.position and after != position):
            return None  # it has come before; news of the node table alone leave the position as it is
        if after != self.position:
            return self._gap(f"increment from {after} to {position}, but this node is at {self.position}")
        change = _change_of([message], position, complete=False, routes=self._routes)
        self.position = position
        return change

    def _gap(self, why: str) -> Gap | None:
        self._based = False
        if self._asked:
            return None
        self._asked = True
        return Gap(why)


def _change_of(parts: Sequence[s.Assignments], position: Position, *, complete: bool, routes: bool) -> Change:
    """Raises ValueError when a pod's or an object's bytes are not one, or not the one that they are said to be."""
    pods: dict[str, o.Pod] = {}
    nodes: dict[str, NodeRange] = {}
    for part in parts:
        for assigned in part.upsert_pods:
            pods[assigned.uid] = _pod_of(assigned)
        if routes:
            nodes.update({n.name: NodeRange(n.address, n.pod_cidr) for n in part.upsert_nodes})
    removed_pods = [uid for part in parts for uid in part.remove_pods]
    removed_nodes = [name for part in parts for name in part.remove_nodes]
    objects = [obj for part in parts for assigned in part.upsert_objects if (obj := object_of(assigned)) is not None]
    removed_objects = [Reference(one.kind, one.namespace, one.name) for part in parts for one in part.remove_objects]
    return Change(position, complete, pods, removed_pods, nodes, removed_nodes, objects, removed_objects)


def _pod_of(assigned: s.AssignedPod) -> o.Pod:
    try:
        pod = o.Pod.FromString(assigned.pod)
    except DecodeError as fault:
        raise ValueError(f"the bytes of pod {assigned.uid} are not a pod: {fault}") from fault
    if pod.metadata.uid != assigned.uid:
        raise ValueError(f"the bytes of pod {assigned.uid} are those of {pod.metadata.uid!r}")
    return pod
