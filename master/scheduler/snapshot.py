"""The scheduler's picture of the cluster: struct of arrays, one row per node ordered by name, exact integers.

Owned by one loop: fed by `apply`, changed by `commit` and `undo`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.master.model import FINAL_PHASES, Event, Key, Object
from shoal.master.scheduler.classes import BASE_RESOURCES, CPU, Classes, PodClass, devices_of
from shoal.master.scheduler.counts import ClassState, Counts
from shoal.master.scheduler.gpus import WHOLE, Shape, Want, Workload
from shoal.master.scheduler.groups import Budget, Group, budget_of, group_of
from shoal.master.scheduler.nodes import Bools as Bools
from shoal.master.scheduler.nodes import Ints as Ints
from shoal.master.scheduler.nodes import NodeFacts as NodeFacts
from shoal.master.scheduler.nodes import Nodes
from shoal.master.scheduler.nodes import TaintKey as TaintKey
from shoal.master.scheduler.nodes import facts_of as facts_of
from shoal.master.scheduler.owners import Owners
from shoal.master.scheduler.queue import arrival_of
from shoal.master.scheduler.terms import NodeTerm, Rule
from shoal.master.scheduler.volumes import KINDS as VOLUME_KINDS
from shoal.master.scheduler.volumes import Volumes
from shoal.master.volumes import Place
from shoal.proto.rules.resources import GPU
from shoal.proto.v1 import objects_pb2 as o

JOURNAL_LIMIT = 65_536  # rows that changed, before the older half is forgotten

DEVICES_LIMIT = 64  # of a node; more are not given out

Floats = npt.NDArray[np.float64]
Where = tuple[tuple[tuple[str, str], ...], tuple[NodeTerm, ...] | None]  # node selector, required affinity


class Hold(NamedTuple):
    """What a pod takes of its node. `nominated`: the room is held for a pod whose victims are still there;
    `leaving`: it is being deleted; `arrival`: see queue.arrival_of."""

    node: str
    pods: PodClass
    devices: tuple[int, ...] = ()
    key: Key | None = None
    leaving: bool = False
    nominated: bool = False
    arrival: tuple[int, str] = (0, "")


@dataclass(frozen=True, slots=True)
class Applied:
    """What a batch of events changed: which reasons for waiting may have gone."""

    nodes_changed: bool
    freed: bool
    volumes_changed: bool = False
    spaces_changed: bool = False  # labels of namespaces
    budgets_changed: bool = False
    groups_changed: bool = False


def holds(pod: o.Pod) -> bool:
    """Bound and not ended: a pod keeps its resources until its agent has reported the end."""
    return bool(pod.spec.nodeName) and pod.status.phase not in FINAL_PHASES


def hold_for(pods: PodClass, node: str) -> Hold:
    """What one more pod of the class takes."""
    return Hold(node, pods)


class Snapshot:
    """`alloc`, `left` and `used` (the one less the other) are int64[resource, node]; `resources` names their rows.
    `load` is int64[2, node]: cpu and memory, the first two of them, as the scores count them; `room` is what is
    allocatable less that, and `size` what is allocatable (at least 1), both as float64[2, node] for the shares.
    `gpu_left` is int64[node, device]: the milli that are left of each."""

    def __init__(self, classes: Classes | None = None) -> None:
        self.nodes = Nodes()
        self.resources: list[str] = list(BASE_RESOURCES)
        self.volumes = Volumes()
        self.counts = Counts()
        self.budgets: dict[tuple[str, str], Budget] = {}  # by namespace, name
        self.groups: dict[tuple[str, str], Group] = {}
        self.workload = Workload()  # of the pods with devices
        self.revision = 0  # the newest that was applied
        self.journal: list[int] = []  # rows in the order in which their usage changed
        self.forgotten = 0  # rows that were in the journal before
        self._classes = classes or Classes()
        self._resource_rows = {name: index for index, name in enumerate(self.resources)}
        self._holds: dict[str, Hold] = {}  # by pod uid
        self._by_node: dict[str, dict[str, Hold]] = {}  # node -> uid -> hold
        self.owners = Owners()
        self.nominated: set[str] = set()  # uids of the holds that are nominations
        self._ports: dict[tuple[str, int], dict[str, dict[str, int]]] = {}  # protocol, port -> address -> node -> pods
        self._empty_tables(0)

    def _empty_tables(self, nodes: int) -> None:
        shape = (len(self.resources), nodes)
        self.alloc: Ints = np.zeros(shape, dtype=np.int64)
        self.left: Ints = np.zeros(shape, dtype=np.int64)
        self.load: Ints = np.zeros((2, nodes), dtype=np.int64)
        self.room: Floats = np.zeros((2, nodes), dtype=np.float64)
        self.size: Floats = np.ones((2, nodes), dtype=np.float64)
        self.ready: Bools = np.zeros(nodes, dtype=np.bool_)
        self.unready: Bools | None = None  # the others; None when there are none
        self.gpu_left: Ints = np.zeros((nodes, 0), dtype=np.int64)
        self.scratch: Floats = np.zeros((3, nodes), dtype=np.float64)  # for whoever needs room for a moment

    def clone(self) -> Snapshot:
        """An independent copy, to plan on; the classes that were compiled are shared."""
        made = Snapshot(self._classes)
        made.nodes, made.volumes, made.counts = self.nodes.clone(), self.volumes.clone(), self.counts.clone()
        made.workload = self.workload.clone()
        made.resources, made._resource_rows = list(self.resources), dict(self._resource_rows)
        made.budgets, made.groups, made.revision = dict(self.budgets), dict(self.groups), self.revision
        made._holds = dict(self._holds)
        made._by_node = {node: dict(there) for node, there in self._by_node.items()}
        made.owners, made.nominated = self.owners.clone(), set(self.nominated)
        made._ports = {port: {ip: dict(on) for ip, on in taken.items()} for port, taken in self._ports.items()}
        made._empty_tables(len(self))
        for table in ("alloc", "left", "load", "room", "size", "ready", "gpu_left"):
            setattr(made, table, getattr(self, table).copy())
        made.unready = self.unready
        return made

    # ---- what it says ----
    def __len__(self) -> int:
        return len(self.nodes.names)

    @property
    def names(self) -> list[str]:
        return self.nodes.names

    @property
    def row(self) -> dict[str, int]:
        return self.nodes.row

    @property
    def epoch(self) -> int:
        return self.nodes.epoch

    @property
    def used(self) -> Ints:
        taken: Ints = self.alloc - self.left
        return taken

    @property
    def version(self) -> int:
        """Grows with every change of usage: a position in the journal."""
        return self.forgotten + len(self.journal)

    def facts(self) -> list[NodeFacts]:
        """In the order of the rows."""
        return self.nodes.in_order()

    def places(self) -> list[Place]:
        """The nodes as volumes see them, in the order of the rows."""
        return self.nodes.places()

    def held(self, uid: str) -> Hold | None:
        return self._holds.get(uid)

    def all_holds(self) -> dict[str, Hold]:
        """By uid; a copy."""
        return dict(self._holds)

    def pods_on(self, node: str) -> Mapping[str, Hold]:
        """What the node holds, by uid."""
        return self._by_node.get(node, {})

    def resource_row(self, name: str) -> int | None:
        return self._resource_rows.get(name)

    def taint_rows(self) -> dict[TaintKey, Bools]:
        """For each distinct taint the nodes that carry it."""
        return self.nodes.taint_rows()

    def label_row(self, key: str, value: str) -> Bools:
        """The nodes with this label."""
        return self.nodes.label_mask(Rule(key, "In", (value,)))

    def port_takers(self, protocol: str, port: int) -> Mapping[str, Mapping[str, int]]:
        """Host address -> node -> pods that have this port there."""
        return self._ports.get((protocol, port), {})

    def free(self, resource: str) -> Ints:
        """What is left per node; negative where more is bound than there is. Nothing of what no node has."""
        index = self.resource_row(resource)
        if index is None:
            return np.zeros(len(self), dtype=np.int64)
        left: Ints = self.left[index].copy()
        return left

    # ---- events ----
    def apply(self, events: Iterable[Event]) -> Applied:
        """Objects as committed; the order within the batch does not matter for different objects."""
        changed: dict[str, NodeFacts | None] = {}
        freed = spaces = False
        kinds = set()
        for event in events:
            self.revision = max(self.revision, event.revision)
            kind = event.key.kind
            if kind == "Pod":
                freed = self._apply_pod(event) or freed
                continue
            kinds.add(kind)
            new = event.new.message if event.new else None
            if kind == "Node":
                changed[event.key.name] = facts_of(new) if isinstance(new, o.Node) else None
            elif kind in VOLUME_KINDS:
                self.volumes.apply(event)
            elif kind == "Namespace":
                labels = dict(new.metadata.labels) if new else None
                spaces = self.counts.take_space(event.key.name, labels) or spaces
            else:
                self._apply_policy(event.key, new)
        nodes = self.take_nodes(changed) if changed else False
        policies = ("PodDisruptionBudget" in kinds, "PodGroup" in kinds)
        return Applied(nodes, freed, bool(kinds & VOLUME_KINDS), spaces, *policies)

    def _apply_policy(self, key: Key, new: Object | None) -> None:
        name = key.namespace, key.name
        if isinstance(new, o.PodDisruptionBudget):
            self.budgets[name] = budget_of(new)
        elif isinstance(new, o.PodGroup):
            self.groups[name] = group_of(new)
        elif key.kind == "PodDisruptionBudget":
            self.budgets.pop(name, None)
        elif key.kind == "PodGroup":
            self.groups.pop(name, None)

    def _apply_pod(self, event: Event) -> bool:
        """True when something was freed."""
        old = event.old.message if event.old else None
        new = event.new.message if event.new else None
        freed = False
        if isinstance(old, o.Pod) and (new is None or new.metadata.uid != old.metadata.uid):
            freed = self.undo(old.metadata.uid)
        if event.new is None or not isinstance(new, o.Pod):
            return freed
        uid = new.metadata.uid
        if not holds(new):
            # An unbound pod may be assumed here while its binding is under way: only its end frees that.
            if new.status.phase in FINAL_PHASES:
                return self.undo(uid) or freed
            self._renominate(event.key, event.new.created, new, event.old is None)
            return freed
        known = self._holds.get(uid)
        if known is None or not _same(known, new):
            self.undo(uid)
            self.commit(uid, self.hold_of(new, event.key, event.new.created))
            freed = freed or known is not None
        return freed

    def _renominate(self, key: Key, created: int, pod: o.Pod, is_new: bool) -> None:
        """A pod that had its room kept when the cluster was last looked at has it kept on; later it is the plans that
        say so."""
        node, uid = pod.status.nominatedNodeName, pod.metadata.uid
        if is_new and node and uid not in self._holds and not pod.metadata.HasField("deletionTimestamp"):
            hold = self.hold_of(pod, key, created)
            self.commit(uid, hold._replace(node=node, nominated=True))

    def hold_of(self, pod: o.Pod, key: Key, created: int) -> Hold:
        """What a bound pod takes."""
        leaving = pod.metadata.HasField("deletionTimestamp")
        arrival = arrival_of(created, key.name, pod.metadata.uid)
        return Hold(pod.spec.nodeName, self._classes.of(pod), devices_of(pod), key, leaving, False, arrival)

    # ---- what pods take ----
    def commit(self, uid: str, hold: Hold, state: ClassState | None = None) -> None:
        """The pod takes its part of the node, known or not yet known; `state` is its class's, when that is at hand."""
        assert uid not in self._holds, f"pod {uid} is placed twice"
        self._holds[uid] = hold
        self._by_node.setdefault(hold.node, {})[uid] = hold
        if hold.nominated:
            self.nominated.add(uid)
        self._count(uid, hold, 1, state)

    def undo(self, uid: str) -> bool:
        """Gives back what the pod took; False when it took nothing."""
        hold = self._holds.pop(uid, None)
        if hold is None:
            return False
        self.nominated.discard(uid)
        on_node = self._by_node[hold.node]
        del on_node[uid]
        if not on_node:
            del self._by_node[hold.node]
        self._count(uid, hold, -1)
        return True

    def _count(self, uid: str, hold: Hold, sign: int, state: ClassState | None = None) -> None:
        node, pods = hold.node, hold.pods
        index = self.nodes.row.get(node)
        state = state or self.counts.state(pods)
        self.counts.add(state, node, index, sign, hold.leaving)
        if pods.owner:
            self.owners.add(pods.owner, node, index, sign)
        for protocol, address, port in pods.ports:
            _bump(self._ports.setdefault((protocol, port), {}), address, node, sign)
        if pods.claims and sign > 0:
            self.volumes.use(uid, node, pods.claims)
        elif pods.claims:
            self.volumes.leave(uid, pods.claims)
        if pods.gpu_milli or pods.gpu_count:
            self.workload.count(shape_of(pods), sign)
        if index is not None:
            self._use(state, index, sign)
            if hold.devices:
                self._use_devices(hold, index, sign)

    def _use_devices(self, hold: Hold, index: int, sign: int) -> None:
        """Devices that the node does not have (any more) are not counted."""
        number = min(self.nodes.facts[hold.node].alloc.get(GPU, 0), self.gpu_left.shape[1])
        there = [device for device in hold.devices if device < number]
        milli = Want.of(hold.pods.gpu_milli, hold.pods.gpu_count).milli
        self.gpu_left[index, there] -= sign * milli

    def _use(self, state: ClassState, index: int, sign: int) -> None:
        demand, left = self.demand(state), self.left  # in this order: a new resource replaces the table
        for resource, amount in demand:
            left[resource, index] -= sign * amount
        for resource, amount in enumerate(state.pods.load):
            load = self.load.item(resource, index) + sign * amount
            self.load[resource, index] = load
            self.room[resource, index] = self.alloc.item(resource, index) - load
        self._touch((index,))

    def _touch(self, rows: Iterable[int]) -> None:
        self.journal += rows
        if len(self.journal) > JOURNAL_LIMIT:
            half = len(self.journal) // 2
            del self.journal[:half]
            self.forgotten += half

    def touched(self, since: int) -> list[int] | None:
        """The rows that changed since that version; None when it is too long ago."""
        at = since - self.forgotten
        return self.journal[at:] if at >= 0 else None

    def known_demand(self, state: ClassState) -> tuple[tuple[int, int], ...] | None:
        """The class's requests as (row, amount); None when no node has one of the resources."""
        if state.demand is None:
            row = self._resource_rows
            if not all(name in row for name, _ in state.pods.requests):
                return None
            state.demand = tuple([(row[name], amount) for name, amount in state.pods.requests])
        return state.demand

    def demand(self, state: ClassState) -> tuple[tuple[int, int], ...]:
        """The class's requests as (row, amount); resources that are new get a row."""
        if state.demand is None:
            state.demand = tuple((self._resource(name), amount) for name, amount in state.pods.requests)
        return state.demand

    def commit_batch(self, uids: Sequence[str], hold_list: Sequence[Hold], rows: Sequence[int]) -> None:
        """`commit` of pods of one class that are not leaving and have no claims, devices or host ports, on known
        nodes: the figures are added up first."""
        if len(uids) < 4:
            for uid, hold in zip(uids, hold_list, strict=True):
                self.commit(uid, hold)
            return
        state = self.counts.state(hold_list[0].pods)
        assert self._holds.keys().isdisjoint(uids), "a pod is placed twice"
        self._holds.update(zip(uids, hold_list, strict=True))
        by_node = self._by_node
        nodes = [hold.node for hold in hold_list]
        for node, uid, hold in zip(nodes, uids, hold_list, strict=True):
            there = by_node.get(node)
            if there is None:
                by_node[node] = {uid: hold}
            else:
                there[uid] = hold
        distinct, numbers = np.unique(np.array(rows, dtype=np.int64), return_counts=True)
        self.counts.add_many(state, nodes, distinct, numbers)
        if state.pods.owner:
            self.owners.add_many(state.pods.owner, nodes, distinct, numbers)
        for resource, amount in self.demand(state):
            self.left[resource, distinct] -= numbers * amount
        for resource, amount in enumerate(state.pods.load):
            self.load[resource, distinct] += numbers * amount
            self.room[resource, distinct] = self.alloc[resource, distinct] - self.load[resource, distinct]
        self._touch(distinct.tolist())

    def _resource(self, name: str) -> int:
        """The row of a resource; a new one is appended."""
        found = self._resource_rows.get(name)
        if found is None:
            found = self._resource_rows[name] = len(self.resources)
            self.resources.append(name)
            empty = np.zeros((1, len(self)), dtype=np.int64)
            self.alloc, self.left = (np.vstack([table, empty]) for table in (self.alloc, self.left))
        return found

    # ---- nodes ----
    def take_nodes(self, changed: Mapping[str, NodeFacts | None]) -> bool:
        """Nodes as they are from now on; None: gone. True when placement sees a difference."""
        before = self.nodes.row
        real, reshaped = self.nodes.take(changed)
        if reshaped:
            self._reshape(before)
        for name, facts in real.items():
            if facts is not None:
                self._set_row(self.row[name], facts)
        if real:
            self.unready = None if self.ready.all() else ~self.ready
        return bool(real)

    def _reshape(self, before: Mapping[str, int]) -> None:
        """New rows in the order of names; what stays keeps its figures, what is new counts its pods."""
        come = np.fromiter((before.get(name, -1) for name in self.names), dtype=np.int64, count=len(self))
        new = come < 0
        old = {table: getattr(self, table) for table in ("alloc", "left", "load", "room", "size", "ready")}
        devices = self.gpu_left
        self._empty_tables(len(self))
        self.counts.resize(len(self))
        self.owners.resize()
        if len(before):
            for table, values in old.items():
                getattr(self, table)[..., ~new] = values[..., come[~new]]
            self.gpu_left = np.where(new[:, None], 0, devices[come])
        for index in np.flatnonzero(new).tolist():
            for hold in self.pods_on(self.names[index]).values():
                self._use(self.counts.state(hold.pods), index, 1)

    def _set_row(self, index: int, facts: NodeFacts) -> None:
        for name in facts.alloc:
            self._resource(name)
        alloc = np.array([facts.alloc.get(name, 0) for name in self.resources], dtype=np.int64)
        self.left[:, index] += alloc - self.alloc[:, index]
        self.alloc[:, index] = alloc
        self.ready[index] = facts.ready
        self._set_devices(index, facts)
        self._derive(index)

    def _set_devices(self, index: int, facts: NodeFacts) -> None:
        number = facts.alloc.get(GPU, 0)
        wide = self.gpu_left.shape[1]
        if number > wide:
            self.gpu_left = np.pad(self.gpu_left, ((0, 0), (0, min(number, DEVICES_LIMIT) - wide)))
        if not self.gpu_left.shape[1]:
            return
        self.gpu_left[index] = np.where(np.arange(self.gpu_left.shape[1]) < number, WHOLE, 0)
        for hold in self.pods_on(facts.name).values():
            self._use_devices(hold, index, 1)

    def _derive(self, rows: slice | int) -> None:
        self.room[:, rows] = self.alloc[:2, rows] - self.load[:, rows]
        self.size[:, rows] = np.maximum(self.alloc[:2, rows], 1)


def shape_of(pods: PodClass) -> Shape:
    """What a class of pods with devices looks like to others of its kind."""
    want = Want.of(pods.gpu_milli, pods.gpu_count)
    place: Where = pods.selector, pods.node_terms
    return Shape(dict(pods.requests).get(CPU, 0), want, place)


def _same(hold: Hold, pod: o.Pod) -> bool:
    """Whether the hold still says of the bound pod what there is to say; the rest of its spec never changes."""
    if hold.node != pod.spec.nodeName or hold.nominated or hold.leaving != pod.metadata.HasField("deletionTimestamp"):
        return False
    labels = pod.metadata.labels
    return len(labels) == len(hold.pods.labels) and all(labels.get(key) == value for key, value in hold.pods.labels)


def _bump(table: dict[str, dict[str, int]], first: str, second: str, by: int) -> None:
    inner = table.setdefault(first, {})
    number = inner.get(second, 0) + by
    if number:
        inner[second] = number
        return
    inner.pop(second, None)
    if not inner:
        del table[first]
