"""The scheduler's picture of the cluster: struct of arrays, one row per node ordered by name, exact integers.

Owned by one loop: fed by `apply`, changed by `commit` and `undo`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.master.model import FINAL_PHASES, Event
from shoal.master.scheduler.classes import (
    BASE_RESOURCES,
    PodClass,
    amounts,
    claims_of_pod,
    load_of,
    owner_of,
    requests_of,
)
from shoal.master.scheduler.volumes import KINDS as VOLUME_KINDS
from shoal.master.scheduler.volumes import Volumes
from shoal.master.volumes import Place
from shoal.proto.v1 import objects_pb2 as o

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

LABEL_ROWS_LIMIT = 512  # label pairs whose node masks are kept


class TaintKey(NamedTuple):
    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What placement needs to know of a node."""

    name: str
    alloc: dict[str, int]
    labels: dict[str, str]
    taints: frozenset[TaintKey]
    ready: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """What a bound pod takes of its node."""

    node: str
    requests: tuple[tuple[str, int], ...]
    load: tuple[int, int]  # cpu and memory as the scores count them
    owner: str
    claims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """What a batch of events made better: which reasons for waiting may have gone."""

    nodes_changed: bool
    freed: bool
    volumes_changed: bool = False


def facts_of(node: o.Node) -> NodeFacts:
    status = node.status
    alloc = amounts(status.allocatable) if status.allocatable else amounts(status.capacity)
    is_ready = any(c.type == "Ready" and c.status == "True" for c in status.conditions)
    closing = node.metadata.HasField("deletionTimestamp")
    taints = frozenset(TaintKey(t.key, t.value, t.effect) for t in node.spec.taints)
    return NodeFacts(node.metadata.name, alloc, dict(node.metadata.labels), taints, is_ready and not closing)


def holds(pod: o.Pod) -> bool:
    """Bound and not ended: a pod keeps its resources until its agent has reported the end."""
    return bool(pod.spec.nodeName) and pod.status.phase not in FINAL_PHASES


def hold_of(pod: o.Pod) -> Hold:
    """What a bound pod takes."""
    spec = pod.spec
    return Hold(spec.nodeName, requests_of(spec), load_of(spec), owner_of(pod), claims_of_pod(pod))


def hold_for(pods: PodClass, node: str) -> Hold:
    """What one more pod of the class takes."""
    return Hold(node, pods.requests, pods.load, pods.owner, pods.claims)


class Snapshot:
    """`alloc` and `used` are int64[resource, node]; `resources` names their rows. `load` is int64[2, node]: cpu and
    memory, the first two of them, as the scores count them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.row: dict[str, int] = {}
        self.resources: list[str] = list(BASE_RESOURCES)
        self.alloc: Ints = np.zeros((len(self.resources), 0), dtype=np.int64)
        self.used: Ints = np.zeros((len(self.resources), 0), dtype=np.int64)
        self.load: Ints = np.zeros((2, 0), dtype=np.int64)
        self.ready: Bools = np.zeros(0, dtype=np.bool_)
        self.volumes = Volumes()
        self.epoch = 0  # grows with every change of a node
        self._facts: dict[str, NodeFacts] = {}
        self._holds: dict[str, Hold] = {}  # by pod uid
        self._by_node: dict[str, set[str]] = {}
        self._owners: dict[str, dict[str, int]] = {}  # owner uid -> node -> its pods there
        self._taints: dict[TaintKey, Bools] | None = None
        self._label_rows: dict[tuple[str, str], Bools] = {}

    # ---- what it says ----
    def __len__(self) -> int:
        return len(self.names)

    def facts(self) -> list[NodeFacts]:
        """In the order of the rows."""
        return [self._facts[name] for name in self.names]

    def places(self) -> list[Place]:
        """The nodes as volumes see them, in the order of the rows."""
        return [Place(name, self._facts[name].labels) for name in self.names]

    def held(self, uid: str) -> Hold | None:
        return self._holds.get(uid)

    def resource_row(self, name: str) -> int | None:
        try:
            return self.resources.index(name)
        except ValueError:
            return None

    def taint_rows(self) -> dict[TaintKey, Bools]:
        """For each distinct taint the nodes that carry it."""
        if self._taints is None:
            self._taints = {}
            for index, facts in enumerate(self.facts()):
                for taint in facts.taints:
                    row = self._taints.get(taint)
                    if row is None:
                        row = self._taints[taint] = np.zeros(len(self), dtype=np.bool_)
                    row[index] = True
        return self._taints

    def label_row(self, key: str, value: str) -> Bools:
        """The nodes with this label."""
        found = self._label_rows.get((key, value))
        if found is None:
            if len(self._label_rows) >= LABEL_ROWS_LIMIT:
                self._label_rows.clear()
            has = (facts.labels.get(key) == value for facts in self.facts())
            found = self._label_rows[key, value] = np.fromiter(has, dtype=np.bool_, count=len(self))
        return found

    def owner_counts(self, owner: str) -> Ints:
        """How many pods of the owner each node holds."""
        counts = np.zeros(len(self), dtype=np.int64)
        for node, number in self._owners.get(owner, {}).items():
            index = self.row.get(node)
            if index is not None:
                counts[index] = number
        return counts

    def sibling_count(self, owner: str, index: int) -> int:
        return self._owners.get(owner, {}).get(self.names[index], 0)

    # ---- events ----
    def apply(self, events: Iterable[Event]) -> Applied:
        """Nodes and pods as committed; the order within the batch does not matter for different objects."""
        changed: dict[str, NodeFacts | None] = {}
        freed = volumes_changed = False
        for event in events:
            if event.key.kind == "Node":
                node = event.new.message if event.new else None
                changed[event.key.name] = facts_of(node) if isinstance(node, o.Node) else None
            elif event.key.kind == "Pod":
                freed = self._apply_pod(event) or freed
            elif event.key.kind in VOLUME_KINDS:
                self.volumes.apply(event)
                volumes_changed = True
        return Applied(self._apply_nodes(changed), freed, volumes_changed)

    def _apply_pod(self, event: Event) -> bool:
        """True when something was freed."""
        old = event.old.message if event.old else None
        new = event.new.message if event.new else None
        freed = False
        if isinstance(old, o.Pod) and (new is None or new.metadata.uid != old.metadata.uid):
            freed = self.undo(old.metadata.uid)
        if not isinstance(new, o.Pod):
            return freed
        uid = new.metadata.uid
        if not holds(new):
            # An unbound pod may be assumed here while its binding is under way: only its end frees that.
            ended = new.status.phase in FINAL_PHASES
            return (self.undo(uid) if ended else False) or freed
        known = self._holds.get(uid)
        if known is None or known.node != new.spec.nodeName:
            self.undo(uid)
            self.commit(uid, hold_of(new))
        return freed

    def commit(self, uid: str, hold: Hold) -> None:
        """The pod takes its part of the node, known or not yet known."""
        assert uid not in self._holds, f"pod {uid} is placed twice"
        self._holds[uid] = hold
        if hold.claims:
            self.volumes.use(uid, hold.node, hold.claims)
        self._by_node.setdefault(hold.node, set()).add(uid)
        if hold.owner:
            on = self._owners.setdefault(hold.owner, {})
            on[hold.node] = on.get(hold.node, 0) + 1
        self._count(hold, 1)

    def undo(self, uid: str) -> bool:
        """Gives back what the pod took; False when it took nothing."""
        hold = self._holds.pop(uid, None)
        if hold is None:
            return False
        if hold.claims:
            self.volumes.leave(uid, hold.claims)
        on_node = self._by_node[hold.node]
        on_node.discard(uid)
        if not on_node:
            del self._by_node[hold.node]
        if hold.owner:
            self._forget_owner(hold)
        self._count(hold, -1)
        return True

    def _forget_owner(self, hold: Hold) -> None:
        on = self._owners[hold.owner]
        on[hold.node] -= 1
        if not on[hold.node]:
            del on[hold.node]
        if not on:
            del self._owners[hold.owner]

    def _count(self, hold: Hold, sign: int) -> None:
        index = self.row.get(hold.node)
        if index is None:
            return
        for name, value in hold.requests:
            resource = self._resource(name)  # first: it may replace `used`
            self.used[resource, index] += sign * value
        self.load[0, index] += sign * hold.load[0]
        self.load[1, index] += sign * hold.load[1]

    def _resource(self, name: str) -> int:
        """The row of a resource; a new one is appended."""
        found = self.resource_row(name)
        if found is None:
            found = len(self.resources)
            self.resources.append(name)
            empty = np.zeros((1, len(self)), dtype=np.int64)
            self.alloc = np.vstack([self.alloc, empty])
            self.used = np.vstack([self.used, empty])
        return found

    # ---- nodes ----
    def _apply_nodes(self, changed: dict[str, NodeFacts | None]) -> bool:
        real = {name: facts for name, facts in changed.items() if facts != self._facts.get(name)}
        if not real:
            return False
        self.epoch += 1
        self._taints, self._label_rows = None, {}
        reshaped = False
        for name, facts in real.items():
            reshaped = reshaped or facts is None or name not in self._facts
            if facts is None:
                del self._facts[name]
            else:
                self._facts[name] = facts
        if reshaped:
            self._reshape()
        for name, facts in real.items():
            if facts is not None:
                self._set_row(self.row[name], facts)
        return True

    def _reshape(self) -> None:
        """New rows in the order of names; what stays keeps its figures, what is new counts its pods."""
        before, old = self.row, (self.alloc, self.used, self.load, self.ready)
        self.names = sorted(self._facts)
        self.row = {name: index for index, name in enumerate(self.names)}
        kept = [(index, before[name]) for index, name in enumerate(self.names) if name in before]
        to, came = [index for index, _ in kept], [index for _, index in kept]
        shape = (len(self.resources), len(self.names))
        self.alloc, self.used = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        self.load = np.zeros((2, len(self.names)), dtype=np.int64)
        self.ready = np.zeros(len(self.names), dtype=np.bool_)
        self.alloc[:, to], self.used[:, to], self.load[:, to] = (table[:, came] for table in old[:3])
        self.ready[to] = old[3][came]
        for name in self.names:
            if name not in before:
                for uid in self._by_node.get(name, ()):
                    self._count(self._holds[uid], 1)

    def _set_row(self, index: int, facts: NodeFacts) -> None:
        for name in facts.alloc:
            self._resource(name)
        self.alloc[:, index] = [facts.alloc.get(name, 0) for name in self.resources]
        self.ready[index] = facts.ready

    def free(self, resource: str) -> Ints:
        """What is left per node; negative where more is bound than there is. Nothing of what no node has."""
        index = self.resource_row(resource)
        if index is None:
            return np.zeros(len(self), dtype=np.int64)
        result: Ints = self.alloc[index] - self.used[index]
        return result
