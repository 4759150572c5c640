"""When a node runs short of memory, disk or process ids, and which pod has to go. Pure.

The rules are the kubelet's (pkg/kubelet/eviction): thresholds that are met at once or after a grace period, conditions
that stay for a transition period, and a ranking by request, priority and use. Times are of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.agent.machine import Amount, Signals

MEMORY, PODS_MEMORY = "memory.available", "allocatableMemory.available"
DISK, IMAGE_DISK, INODES = "nodefs.available", "imagefs.available", "nodefs.inodesFree"
PIDS, PODS_PIDS = "pid.available", "allocatablePid.available"
KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Kind:
    """One signal: where it is read, the condition that it makes, and what the resource is called."""

    amount: Callable[[Signals], Amount]
    condition: str
    resource: str


# Images lie on the same disk as all the rest. The node's own signals come before those of its pods' share.
KINDS: Mapping[str, Kind] = {
    MEMORY: Kind(lambda s: s.memory, "MemoryPressure", "memory"),
    PODS_MEMORY: Kind(lambda s: s.pods_memory, "MemoryPressure", "memory"),
    DISK: Kind(lambda s: s.disk, "DiskPressure", "ephemeral-storage"),
    IMAGE_DISK: Kind(lambda s: s.disk, "DiskPressure", "ephemeral-storage"),
    INODES: Kind(lambda s: s.inodes, "DiskPressure", "inodes"),
    PIDS: Kind(lambda s: s.pids, "PIDPressure", "pids"),
    PODS_PIDS: Kind(lambda s: s.pods_pids, "PIDPressure", "pids"),
}
CONDITIONS = ("MemoryPressure", "DiskPressure", "PIDPressure")
SHARES = {MEMORY: PODS_MEMORY, PIDS: PODS_PIDS}  # a threshold of the node holds for its pods' share too


@dataclass(frozen=True, slots=True)
class Level:
    """So many, or a share of the capacity."""

    amount: int = 0
    percent: float = 0.0

    def of(self, capacity: int) -> int:
        return self.amount or int(capacity * self.percent / 100)

    def written(self, resource: str) -> str:
        return shown(self.amount, resource) if self.amount or not self.percent else f"{self.percent:g}%"


@dataclass(frozen=True, slots=True)
class Threshold:
    """Met while less than `level` is available; once met, until `reclaim` more than that is. `grace` in seconds: a hard
    one has None."""

    signal: str
    level: Level
    grace: float | None = None
    reclaim: Level = Level()

    @property
    def hard(self) -> bool:
        return self.grace is None

    @property
    def kind(self) -> Kind:
        return KINDS[self.signal]


@dataclass(frozen=True, slots=True)
class Met:
    """A threshold that is met, and what was seen then."""

    threshold: Threshold
    seen: Amount
    since: float

    @property
    def wanted(self) -> int:
        """How much has to become available until it is met no more."""
        threshold, capacity = self.threshold, self.seen.capacity
        return max(threshold.level.of(capacity) + threshold.reclaim.of(capacity) - self.seen.available, 0)

    def due(self, now: float) -> bool:
        return self.threshold.grace is None or now - self.since >= self.threshold.grace

    @property
    def numbers(self) -> str:
        kind, level = self.threshold.kind, self.threshold.level
        left, whole = (shown(number, kind.resource) for number in (self.seen.available, self.seen.capacity))
        return f"{self.threshold.signal} is {left} of {whole}, less than {level.written(kind.resource)}"


@dataclass(frozen=True, slots=True)
class State:
    """What was seen so far. `pressed`: condition -> when a threshold of it was met last, and the first words on it."""

    met: Mapping[Threshold, Met] = field(default_factory=dict)
    pressed: Mapping[str, tuple[float, str]] = field(default_factory=dict)

    def due(self, now: float) -> list[Met]:
        """What asks for action: memory first, as nothing else is so quick; within a resource hard before soft."""
        order = list(KINDS)
        ready = [met for met in self.met.values() if met.due(now)]
        return sorted(ready, key=lambda met: (order.index(met.threshold.signal), not met.threshold.hard))


def observe(state: State, thresholds: Sequence[Threshold], signals: Signals, now: float, transition: float) -> State:
    """The next state. A condition holds while one of its thresholds is due, and for `transition` seconds after."""
    met: dict[Threshold, Met] = {}
    for threshold in thresholds:
        seen, before = threshold.kind.amount(signals), state.met.get(threshold)
        if _met(threshold, seen, before):
            met[threshold] = Met(threshold, seen, now if before is None else before.since)
    fresh = State(met)
    pressed = {kind: last for kind, last in state.pressed.items() if now - last[0] < transition}
    for one in fresh.due(now):
        kind = one.threshold.kind.condition
        pressed[kind] = (now, pressed[kind][1] if kind in pressed else one.numbers)
    return State(met, pressed)


def _met(threshold: Threshold, seen: Amount, before: Met | None) -> bool:
    if not seen.capacity:
        return False
    enough = threshold.level.of(seen.capacity)
    if before is not None:
        enough += threshold.reclaim.of(seen.capacity)
    return seen.available < enough


# ---- who has to go ----
@dataclass(frozen=True, slots=True)
class Use:
    """What a container uses of one resource, and what it has asked for."""

    name: str
    used: int
    request: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pod that runs here, and what it uses of the resource that is short."""

    uid: str
    name: str  # namespace/name
    containers: Sequence[Use]
    rest: int = 0  # used by the pod, but by none of its containers: its volumes
    priority: int = 0
    started: float = 0.0

    @property
    def used(self) -> int:
        return self.rest + sum(one.used for one in self.containers)

    @property
    def request(self) -> int:
        return sum(one.request for one in self.containers)


def ranked(candidates: Sequence[Candidate], resource: str) -> list[Candidate]:
    """Who goes first: who uses more than it has asked for, then by priority, then by how much more; of equals the
    youngest. Process ids cannot be asked for: there the number alone counts. A pod that uses nothing frees nothing."""

    def order(one: Candidate) -> Any:
        request = 0 if resource == "pids" else one.request
        return (not one.used > request, one.priority, request - one.used, -one.started, one.uid)

    return sorted((one for one in candidates if one.used > 0), key=order)


def evicted(met: Met, chosen: Candidate) -> str:
    """Why, in the kubelet's words."""
    resource = met.threshold.kind.resource
    level = shown(met.threshold.level.of(met.seen.capacity), resource)
    left = shown(met.seen.available, resource)
    text = f"The node was low on resource: {resource}. Threshold quantity: {level}, available: {left}."
    if resource == "pids":
        return f"{text} The pod has {chosen.used} processes."
    for one in chosen.containers:
        if one.used > one.request:
            used, request = shown(one.used, resource), shown(one.request, resource)
            text += f" Container {one.name} was using {used}, request is {request},"
            text += f" has larger consumption of {resource}."
    if chosen.rest:
        text += f" Its volumes hold {shown(chosen.rest, resource)}."
    return text


def refusal(pressed: Mapping[str, tuple[float, str]], best_effort: bool) -> str:
    """Why a new pod cannot begin on this node now; "" when it can. Memory that was asked for is there."""
    against = [kind for kind in CONDITIONS if kind in pressed and (best_effort or kind != "MemoryPressure")]
    if not against:
        return ""
    why = "; ".join(pressed[kind][1] for kind in against)
    return f"The node had condition: [{', '.join(against)}]: {why}."


def shown(amount: int, resource: str) -> str:
    """Short enough to read: bytes in whole Mi or Ki."""
    if resource in ("inodes", "pids"):
        return str(amount)
    return f"{amount // MIB}Mi" if amount >= MIB else f"{amount // KIB}Ki" if amount >= KIB else str(amount)


def image_bytes(disk: Amount, high: float, low: float) -> int:
    """How many bytes of images have to go: once more than `high` percent is used, down to `low` percent."""
    used = disk.capacity - disk.available
    if not disk.capacity or used * 100 < disk.capacity * high:
        return 0
    return max(used - int(disk.capacity * low / 100), 0)
