"""What if: nodes come, fail or are drained, workloads change their size."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

from shoal.master.controllers.base import active, controller_of, seconds, set_condition
from shoal.master.controllers.eviction import tolerated_seconds
from shoal.master.controllers.node import NOT_READY, UNREACHABLE
from shoal.master.model import Create, Delete, Invalid, Key, Modify, NotFound, Object, key_of
from shoal.master.planning import budgets
from shoal.master.planning.rehearsal import Rehearsal, end
from shoal.master.scheduler.classes import BASE_RESOURCES
from shoal.master.scheduler.snapshot import Snapshot
from shoal.proto.errors import nearest
from shoal.proto.references import HOSTNAME
from shoal.proto.v1 import objects_pb2 as o

UNSCHEDULABLE = "node.kubernetes.io/unschedulable"  # the taint of a node that is drained
PASSING = frozenset({NOT_READY, UNREACHABLE, UNSCHEDULABLE})  # taints that a new node does not have
MOST_NODES = 5000  # added
MOST_REPLICAS = 10_000
MOST_NAMES = 10  # that a message lists


@dataclass(frozen=True, slots=True)
class Room:
    """What is free of a resource on nodes that take pods, in all and on the emptiest; milli-CPU, bytes, counts."""

    free: int = 0
    largest: int = 0


@dataclass(frozen=True, slots=True)
class Blocked:
    """A pod that a drain cannot evict."""

    pod: Key
    node: str
    budget: Key
    reason: str


@dataclass(frozen=True, slots=True)
class Question:
    """All at once: what is added is there first, then nodes fail, then nodes are drained, then sizes change."""

    add: Sequence[tuple[int, str]] = ()
    fail: Sequence[str] = ()
    drain: Sequence[str] = ()
    scale: Sequence[tuple[Key, int]] = ()


@dataclass(slots=True)
class Answer:
    """`lost` holds the pods whose node fails: uid and node."""

    lost: dict[str, str] = field(default_factory=dict)
    blocked: list[Blocked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def headroom(snapshot: Snapshot) -> dict[str, Room]:
    """By resource; of nodes that are ready and not closed to new pods."""
    rooms: dict[str, Room] = {}
    open_ = snapshot.ready.copy()
    for taint, rows in snapshot.taint_rows().items():
        if taint.key == UNSCHEDULABLE:
            open_ &= ~rows
    for name in [*BASE_RESOURCES, *sorted(set(snapshot.resources) - set(BASE_RESOURCES))]:
        free = snapshot.free(name)[open_]
        free = free[free > 0]
        rooms[name] = Room(int(free.sum()), int(free.max())) if free.size else Room()
    return rooms


def check(rehearsal: Rehearsal, question: Question) -> None:
    """Raises NotFound and Invalid before anything is tried."""
    for name in (*question.fail, *question.drain, *(like for _, like in question.add)):
        _node(rehearsal, name)
    if both := sorted({*question.fail} & {*question.drain}):
        raise Invalid(f"node {both[0]} cannot both fail and be drained: choose one")
    if not all(count > 0 for count, _ in question.add):
        raise Invalid("add at least one node")
    if sum(count for count, _ in question.add) > MOST_NODES:
        raise Invalid(f"at most {MOST_NODES} nodes can be added at once")
    seen: set[Key] = set()
    for key, replicas in question.scale:
        if key in seen:
            raise Invalid(f"{key} is scaled twice: say one number")
        seen.add(key)
        _scalable(rehearsal, key)
        if not 0 <= replicas <= MOST_REPLICAS:
            raise Invalid(f"{key}: {replicas} replicas: give 0 to {MOST_REPLICAS}")


def answer(rehearsal: Rehearsal, question: Question) -> Generator[None, None, Answer]:
    """Carries it out on the copy, in steps."""
    found = Answer()
    for count, like in question.add:
        rehearsal.write([Create(node) for node in _copies(rehearsal, like, count)])
    yield from rehearsal.run()
    for name in question.fail:
        _fail(rehearsal, name, found)
    yield from rehearsal.run()
    if question.drain:
        yield from _drain(rehearsal, question.drain, found)
    rehearsal.write([Modify(key, _sized(replicas)) for key, replicas in question.scale])
    yield from rehearsal.run()
    return found


def _node(rehearsal: Rehearsal, name: str) -> o.Node:
    found = rehearsal.overlay.get("Node", "", name)
    if isinstance(found, o.Node):
        return found
    names = [node.metadata.name for node in rehearsal.overlay.all("Node")]
    raise NotFound(f"no node is called {name[:80]!r}: {_advice(name, names)}")


def _advice(name: str, names: list[str]) -> str:
    meant = nearest(name, names)
    if meant or not names:
        return f"did you mean {meant!r}?" if meant else "there is none at all"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"there are {', '.join(sorted(names)[:MOST_NAMES])}{more}"


def _scalable(rehearsal: Rehearsal, key: Key) -> None:
    if key.kind not in ("Deployment", "ReplicaSet"):
        raise Invalid(f"a {key.kind} has no replicas: only a Deployment or a ReplicaSet can be scaled")
    found = rehearsal.overlay.get(*key)
    if found is None:
        names = [obj.metadata.name for obj in rehearsal.overlay.all(key.kind, key.namespace)]
        raise NotFound(f"{key} not found: {_advice(key.name, names)}")
    if key.kind == "ReplicaSet" and controller_of(found) is not None:
        raise Invalid(f"{key} belongs to a Deployment, which would scale it back: scale that")


# ---- nodes come ----
def _copies(rehearsal: Rehearsal, like: str, count: int) -> Iterator[o.Node]:
    model = _node(rehearsal, like)
    number = 0
    for _ in range(count):
        number += 1
        while rehearsal.overlay.get("Node", "", f"{like}-copy-{number}") is not None:
            number += 1
        node = o.Node()
        node.CopyFrom(model)
        node.metadata.name = node.metadata.uid = f"{like}-copy-{number}"
        node.metadata.ClearField("deletionTimestamp")
        if HOSTNAME in node.metadata.labels:
            node.metadata.labels[HOSTNAME] = node.metadata.name
        kept = [taint for taint in model.spec.taints if taint.key not in PASSING]
        node.spec.ClearField("taints")
        node.spec.ClearField("unschedulable")
        node.spec.taints.extend(kept)
        node.status.ClearField("images")
        set_condition(node.status.conditions, o.Condition(type="Ready", status="True"), rehearsal.now)
        yield node


# ---- nodes go ----
def _fail(rehearsal: Rehearsal, name: str, found: Answer) -> None:
    """The node is not ready any more, and its pods are given up save those that tolerate that for ever."""
    cause = f"its node {name} fails"
    unreachable = o.Taint(key=UNREACHABLE, effect="NoExecute")
    kept = 0
    for pod in _residents(rehearsal, name):
        uid = pod.metadata.uid
        if tolerated_seconds(pod, unreachable) is None:
            kept += 1
            continue
        found.lost[uid] = name
        rehearsal.causes[uid] = cause
        _mourn(pod, found, "is lost with its node")
        rehearsal.write([Delete(key_of(pod), uid=uid)])
    if kept:
        found.notes.append(f"{_pods(kept)} of {name} tolerate that their node is unreachable: they are not replaced")

    def silent(node: Object) -> bool:
        assert isinstance(node, o.Node)
        return set_condition(node.status.conditions, o.Condition(type="Ready", status="Unknown"), rehearsal.now)

    rehearsal.write([Modify(Key("Node", "", name), silent)])


def _mourn(pod: o.Pod, found: Answer, what: str) -> None:
    if controller_of(pod) is None:
        found.notes.append(f"pod {pod.metadata.namespace}/{pod.metadata.name} {what}: nobody makes another")


def _drain(rehearsal: Rehearsal, names: Sequence[str], found: Answer) -> Iterator[None]:
    """No new pods there; then evictions in rounds, as many at once as the budgets allow, until none is allowed."""
    rehearsal.write([Modify(Key("Node", "", name), _closed) for name in names])
    yield from rehearsal.run()
    guards = budgets.Guards(rehearsal.overlay)
    refused: list[Blocked] = []
    while True:
        refused, evicted = [], 0
        for name in names:
            for pod in _residents(rehearsal, name):
                blocked = _evict(rehearsal, guards, pod, name)
                if blocked is None:
                    evicted += 1
                    _mourn(pod, found, "ends with the drain")
                else:
                    refused.append(blocked)
        yield from rehearsal.run()
        if not evicted:
            found.blocked = refused
            return


def _evict(rehearsal: Rehearsal, guards: budgets.Guards, pod: o.Pod, node: str) -> Blocked | None:
    """What forbids it, or None when it is on its way."""
    counting = guards.of(pod)
    for budget in counting:
        if why := budgets.forbids(budget, pod):
            return Blocked(key_of(pod), node, key_of(budget), why)
    uid = pod.metadata.uid
    rehearsal.causes[uid] = f"its node {node} is drained"
    grants = [budgets.grant(one, pod, rehearsal.now) for one in counting if not budgets.bypasses(one, pod)]
    rehearsal.write([*grants, end(key_of(pod), uid, rehearsal.now)])
    return None


def _closed(node: Object) -> bool:
    assert isinstance(node, o.Node)
    if any(taint.key == UNSCHEDULABLE for taint in node.spec.taints):
        return False
    node.spec.unschedulable = True
    node.spec.taints.add(key=UNSCHEDULABLE, effect="NoSchedule")
    return True


def _residents(rehearsal: Rehearsal, node: str) -> list[o.Pod]:
    """The node's pods that go on, oldest first."""
    pods = [pod for pod in rehearsal.overlay.pods_on(node) if active(pod)]
    return sorted(pods, key=lambda pod: (seconds(pod.metadata.creationTimestamp), pod.metadata.name))


# ---- sizes ----
def _sized(replicas: int) -> Callable[[Object], bool]:
    def edit(found: Object) -> bool:
        assert isinstance(found, o.Deployment | o.ReplicaSet)
        if found.spec.HasField("replicas") and found.spec.replicas == replicas:
            return False
        found.spec.replicas = replicas
        found.metadata.generation += 1
        return True

    return edit


def _pods(count: int) -> str:
    return f"{count} {'pod' if count == 1 else 'pods'}"
