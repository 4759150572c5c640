"""Preemption: for a pod that no node takes, the pods of lower priority whose eviction costs least.

All nodes are judged: in the order of lower bounds of what they cost, until no other can be better than the best that
was looked at exactly.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from shoal.master.model import Key
from shoal.master.scheduler import gpus
from shoal.master.scheduler.below import LOWEST, Below
from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.filters import Frame, VolumeFilter
from shoal.master.scheduler.groups import Budget
from shoal.master.scheduler.queue import Waiting
from shoal.master.scheduler.snapshot import Bools, Hold, Ints, Snapshot
from shoal.master.scheduler.tallies import Rules, counts_pods, rules_of
from shoal.proto.rules.resources import GPU

BELOW_LIMIT = 4  # priorities whose tables are kept

Cost = tuple[int, int, int, int, int]  # broken budgets, highest priority, victims, sum of priorities, row
Placed = tuple[str, Hold]  # uid and what it holds


class Victim(NamedTuple):
    uid: str
    key: Key
    priority: int


class Preemption(NamedTuple):
    """The pod is nominated to the node: it holds the room there, and the victims are to go. No victims: it waits for
    pods of lower priority that are leaving already. `breaks`: victims whose eviction no budget allows."""

    waiting: Waiting
    node: str
    victims: tuple[Victim, ...]
    breaks: int


@dataclass(slots=True)
class Option:
    """What room on one node costs; `overtaken` are nominated pods that lose theirs, `devices` what the pod gets."""

    cost: Cost
    victims: list[Placed]
    overtaken: list[Placed]
    devices: tuple[int, ...]


class Preemptor:
    """Keeps the tables of a snapshot between preemptions."""

    def __init__(self) -> None:
        self._below: dict[int, Below] = {}
        self._snapshot: Snapshot | None = None
        self._moved: list[Placed] = []  # in this plan: victims and overtaken pods, as they were before
        self._budgets: dict[tuple[str, str], Budget] = {}  # as they were before

    def begin(self, snapshot: Snapshot) -> None:
        """A plan is made."""
        self._moved, self._budgets = [], dict(snapshot.budgets)

    def take_back(self, snapshot: Snapshot) -> None:
        """The plan has failed: nobody is evicted, and nobody overtaken."""
        for uid, hold in reversed(self._moved):
            snapshot.undo(uid)
            snapshot.commit(uid, hold)
        snapshot.budgets.update(self._budgets)

    def search(self, snapshot: Snapshot, known: Frame) -> Search | None:
        """For pods of one class, one after the other; None when none may have others evicted."""
        if not known.pods.preempts or known.pods.group or known.blocked or known.demand is None or not len(snapshot):
            return None
        return Search(snapshot, known, self._tables(snapshot, known.pods.priority), self._moved)

    def _tables(self, snapshot: Snapshot, priority: int) -> Below:
        if snapshot is not self._snapshot:
            self._snapshot, self._below = snapshot, {}
        found = self._below.pop(priority, None)
        if found is None:
            found = Below(snapshot, priority)
        self._below[priority] = found  # the most recently used is last
        while len(self._below) > BELOW_LIMIT:
            del self._below[next(iter(self._below))]
        return found


class Search:
    """The cheapest nodes for pods of one class. While one is nominated after the other, only what has changed is judged
    anew: nodes whose pods have; all of them when the class looks at other nodes' pods or a budget was taken from."""

    def __init__(self, snapshot: Snapshot, known: Frame, below: Below, moved: list[Placed]) -> None:
        """`moved` takes in who is evicted or overtaken, as they were."""
        self.snapshot, self.known, self.below, self.moved = snapshot, known, below, moved
        self._alone = not counts_pods(known) and not known.pods.claims
        self._fresh = False
        self._version = -1

    def nominate(self, waiting: Waiting) -> Preemption | None:
        """Makes room for the pod where that costs least, and holds it; None when nobody can be evicted for it."""
        self._catch_up()
        found = self._best()
        if found is None:
            return None
        snapshot, node = self.snapshot, self.snapshot.names[found.cost[4]]
        self.moved += found.overtaken + found.victims
        for uid, _ in found.overtaken:
            snapshot.undo(uid)
        for uid, hold in found.victims:
            snapshot.undo(uid)
            snapshot.commit(uid, hold._replace(leaving=True))
        if self._take_from_budgets(found.victims) or not self._alone:
            self._fresh = False
        pods = self.known.pods
        snapshot.commit(waiting.uid, Hold(node, pods, found.devices, waiting.key, False, True, waiting.arrival))
        victims = [
            Victim(uid, hold.key or Key("Pod", hold.pods.namespace, uid), hold.pods.priority)
            for uid, hold in found.victims
        ]
        return Preemption(waiting, node, tuple(victims), found.cost[0])

    def _take_from_budgets(self, victims: Sequence[Placed]) -> bool:
        """True when a budget that had some left has less now."""
        budgets, changed = self.snapshot.budgets, False
        for _, hold in victims:
            for name in self._room.budgets_of(hold) if budgets else ():
                budget = budgets[name]
                changed = changed or budget.allowed > 0
                budgets[name] = replace(budget, allowed=budget.allowed - 1)
        return changed

    # ---- the search ----
    def _catch_up(self) -> None:
        touched = self.snapshot.touched(self._version) if self._fresh else None
        if touched is None:
            self._begin()
            return
        self._version = self.snapshot.version
        for row in set(touched):
            self._todo[row] = False
            self._judge(row)

    def _begin(self) -> None:
        """Bounds for all nodes."""
        snapshot, known = self.snapshot, self.known
        self.below.refresh(snapshot)
        rules = rules_of(snapshot, known) if counts_pods(known) else None
        self._room = Rooms(snapshot, known, rules)
        self._bounds = bounds(snapshot, known, self.below, rules)
        self._todo = self._bounds.possible.copy()
        self._queue: list[int] = []  # rows with the least bounds of those to do, the first last
        self._heap: list[tuple[Cost, int]] = []
        self._options: dict[int, tuple[int, Option]] = {}  # row -> the last judgement's number, and what it was
        self._number = 0
        self._version, self._fresh = snapshot.version, True

    def _judge(self, row: int) -> None:
        self._options.pop(row, None)
        option = self._room.option(row)
        if option is not None:
            self._number += 1
            self._options[row] = self._number, option
            heapq.heappush(self._heap, (option.cost, self._number))

    def _best(self) -> Option | None:
        while True:
            found = self._first()
            row = self._next()
            if row < 0 or (found is not None and found.cost < self._bounds.of(row)):
                return found
            self._todo[row] = False
            self._judge(row)

    def _first(self) -> Option | None:
        """The cheapest of those that were judged, as far as that still holds."""
        while self._heap:
            cost, number = self._heap[0]
            current = self._options.get(cost[4])
            if current is not None and current[0] == number:
                return current[1]
            heapq.heappop(self._heap)
        return None

    def _next(self) -> int:
        """The row with the least bound that was not judged; -1 when all were."""
        while True:
            while self._queue and not self._todo[self._queue[-1]]:
                self._queue.pop()
            if self._queue:
                return self._queue[-1]
            rows = np.flatnonzero(self._todo)
            if not rows.size:
                return -1
            self._queue = self._bounds.first(rows)[::-1]


# ---- bounds ----
@dataclass(slots=True)
class Bounds:
    """int64[N] each: no node can cost less than this, in the order of `Cost`."""

    possible: Bools
    breaks: Ints
    highest: Ints
    number: Ints
    total: Ints

    def of(self, row: int) -> Cost:
        return int(self.breaks[row]), int(self.highest[row]), int(self.number[row]), int(self.total[row]), row

    def first(self, rows: Ints) -> list[int]:
        """Those with the least broken budgets and the least highest priority, in the order of their bounds."""
        for part in (self.breaks, self.highest):
            value = part[rows]
            rows = rows[value == value.min()]
        found: list[int] = rows[np.lexsort((self.total[rows], self.number[rows]))].tolist()
        return found


def bounds(snapshot: Snapshot, known: Frame, below: Below, rules: Rules | None) -> Bounds:
    """By what pods take, and by the rules that count them; devices and volumes are left to the exact look."""
    assert known.demand is not None
    nodes = len(snapshot)
    possible = known.mask & below.some
    if known.device.number:
        row = snapshot.resource_row(GPU)
        possible &= snapshot.alloc[row] >= known.device.number if row is not None else False
    if known.pods.claims and not any(state.pods.claims for state in snapshot.counts.below(known.pods.priority)):
        possible = VolumeFilter.of(snapshot, known.pods).mask(possible)
    if rules is not None:
        possible &= rules.holds(rules.without(slice(None)), slice(None))
    lack = {row: amount - snapshot.left[row] - below.passing[row] for row, amount in known.demand}
    breaks, number = np.zeros(nodes, dtype=np.int64), np.zeros(nodes, dtype=np.int64)
    for row, missing in lack.items():
        np.maximum(number, -(-missing // np.maximum(below.most[row], 1)), out=number)
        if below.exposed is not None:
            np.maximum(breaks, missing > below.exposed[row], out=breaks)
    highest = _highest(below, lack, possible)
    for rule in rules.alone if rules is not None else ():
        more, priority = rule.cost(below)
        np.maximum(number, more, out=number)
        np.maximum(highest, priority, out=highest)
    total = np.where(number > 0, highest + (number - 1) * np.where(number > 1, below.lowest, 0), 0)
    return Bounds(possible, breaks, highest, number, total)


def _highest(below: Below, lack: dict[int, Ints], possible: Bools) -> Ints:
    """Of each node, the lowest priority up to which pods must go for their resources; nodes where even all of them are
    not enough are taken out of `possible`."""
    highest = np.full(possible.size, LOWEST, dtype=np.int64)
    enough = np.ones(possible.size, dtype=np.bool_)
    for missing in lack.values():
        enough &= missing <= 0
    given = {row: np.zeros(possible.size, dtype=np.int64) for row in lack}
    for step, priority in enumerate(below.steps):
        before, enough = enough, np.ones(possible.size, dtype=np.bool_)
        for row, missing in lack.items():
            given[row] += below.used[step, row]
            enough &= missing <= given[row]
        highest[enough & ~before] = priority
    possible &= enough
    return highest


# ---- one node, exactly ----
@dataclass(slots=True)
class Facts:
    """What matters of the pods of a class: what they take of the resources asked for, and which budgets mean them."""

    takes: tuple[int, ...]
    marks: tuple[int, ...]
    budgets: list[tuple[str, str]]


@dataclass(slots=True)
class Rooms:
    """Looks at single nodes: who can be given back once all pods of lower priority are away."""

    snapshot: Snapshot
    known: Frame
    rules: Rules | None
    _facts: dict[PodClass, Facts] = field(default_factory=dict)

    def option(self, row: int) -> Option | None:
        snapshot, priority = self.snapshot, self.known.pods.priority
        node = snapshot.names[row]
        lower = [one for one in snapshot.pods_on(node).items() if one[1].pods.priority < priority]
        if not lower or not self.known.mask[row]:
            return None
        if not self.known.pods.claims:
            return self._option(row, lower)
        volumes = snapshot.volumes
        for uid, hold in lower:
            volumes.leave(uid, hold.pods.claims)
        try:
            return self._option(row, lower)
        finally:
            for uid, hold in lower:
                volumes.use(uid, node, hold.pods.claims)

    def _option(self, row: int, lower: list[Placed]) -> Option | None:
        room = Room.without(self, row, lower)
        if not room.takes():
            return None
        lower.sort(key=_importance)
        real = [one for one in lower if not one[1].leaving and not one[1].nominated]
        breaking = self._breaking(real)
        victims = [one for one in real if one[0] in breaking and not room.gives_back(*one)] if breaking else []
        breaks = len(victims)
        victims += [one for one in real if one[0] not in breaking and not room.gives_back(*one)]
        overtaken = [one for one in lower if one[1].nominated and not one[1].leaving and not room.gives_back(*one)]
        priorities = [hold.pods.priority for _, hold in victims]
        cost = breaks, max(priorities, default=LOWEST), len(priorities), sum(priorities), row
        device = self.known.device
        return Option(cost, victims, overtaken, gpus.choose(room.devices, device) if device.number else ())

    def facts(self, pods: PodClass) -> Facts:
        found = self._facts.get(pods)
        if found is None:
            state = self.snapshot.counts.state(pods)
            takes = dict(self.snapshot.demand(state))
            marks = self.rules.marks(state) if self.rules is not None else ()
            budgets = [name for name, one in self.snapshot.budgets.items() if _selects(one, pods, state.labels)]
            found = Facts(tuple(takes.get(row, 0) for row, _ in self.known.demand or ()), marks, budgets)
            self._facts[pods] = found
        return found

    # ---- budgets ----
    def budgets_of(self, hold: Hold) -> Iterator[tuple[str, str]]:
        """Those from which the eviction takes one: not the ones that have counted it already."""
        budgets = self.snapshot.budgets
        for name in self.facts(hold.pods).budgets:
            if hold.key is None or hold.key.name not in budgets[name].disrupted:
                yield name

    def _breaking(self, real: Sequence[Placed]) -> set[str]:
        """Those whose eviction a budget does not allow, when all are evicted in the order of their importance."""
        found: set[str] = set()
        if not self.snapshot.budgets:
            return found
        left: dict[tuple[str, str], int] = {}
        for uid, hold in real:
            for name in self.budgets_of(hold):
                left[name] = left.get(name, self.snapshot.budgets[name].allowed) - 1
                if left[name] < 0:
                    found.add(uid)
        return found


@dataclass(slots=True)
class Room:
    """What is left on a node while pods are given back. `spare`: of each resource asked for, beyond what is asked."""

    rooms: Rooms
    row: int
    spare: list[int]
    counts: list[int]
    devices: list[int]

    @staticmethod
    def without(rooms: Rooms, row: int, lower: Sequence[Placed]) -> Room:
        """When all of these have gone."""
        snapshot, known = rooms.snapshot, rooms.known
        spare = [int(snapshot.left[resource, row]) - amount for resource, amount in known.demand or ()]
        for _, hold in lower:
            spare = [have + more for have, more in zip(spare, rooms.facts(hold.pods).takes, strict=True)]
        counts = [int(count) for count in rooms.rules.without(row)] if rooms.rules is not None else []
        number = snapshot.nodes.facts[snapshot.names[row]].alloc.get(GPU, 0) if known.device.number else 0
        room = Room(rooms, row, spare, counts, snapshot.gpu_left[row, :number].tolist())
        for _, hold in lower:
            room._move_devices(hold, 1)
        return room

    def _move_devices(self, hold: Hold, sign: int) -> None:
        for device in hold.devices if self.devices else ():
            if device < len(self.devices):
                self.devices[device] += sign * gpus.Want.of(hold.pods.gpu_milli, hold.pods.gpu_count).milli

    def takes(self) -> bool:
        """Whether the pod passes every filter now."""
        if any(amount < 0 for amount in self.spare):
            return False
        want = self.rooms.known.device
        if want.number and sum(left >= max(want.milli, 1) for left in self.devices) < want.number:
            return False
        rules = self.rooms.rules
        if rules is not None and not rules.holds(self.counts, self.row):
            return False
        return not self.rooms.known.pods.claims or self._volumes()

    def _volumes(self) -> bool:
        snapshot, claims = self.rooms.snapshot, self.rooms.known.pods.claims
        volumes, place = snapshot.volumes, snapshot.places()[self.row]
        rule = volumes.rule(claims)
        return (
            not rule.blocked
            and all(place.name in allowed for allowed, _ in rule.limits)
            and volumes.reachable(claims, place)
            and not volumes.missing(rule.unmade, place)
        )

    def gives_back(self, uid: str, hold: Hold) -> bool:
        """Whether the pod still passes with this one there, which then stays."""
        facts = self.rooms.facts(hold.pods)
        for have, amount in zip(self.spare, facts.takes, strict=True):
            if have < amount:
                return False
        self._put(uid, hold, facts, 1)
        if self._plain or self.takes():
            return True
        self._put(uid, hold, facts, -1)
        return False

    @property
    def _plain(self) -> bool:
        """Resources alone decide."""
        return not self.devices and not self.counts and not self.rooms.known.pods.claims

    def _put(self, uid: str, hold: Hold, facts: Facts, sign: int) -> None:
        self.spare = [have - sign * amount for have, amount in zip(self.spare, facts.takes, strict=True)]
        self.counts = [count + sign * mark for count, mark in zip(self.counts, facts.marks, strict=True)]
        self._move_devices(hold, -sign)
        if self.rooms.known.pods.claims and hold.pods.claims:
            if sign > 0:
                self.rooms.snapshot.volumes.use(uid, hold.node, hold.pods.claims)
            else:
                self.rooms.snapshot.volumes.leave(uid, hold.pods.claims)


def _importance(one: Placed) -> tuple[int, tuple[int, str], str]:
    """What is to be kept first sorts first."""
    uid, hold = one
    return -hold.pods.priority, hold.arrival, uid


def _selects(budget: Budget, pods: PodClass, labels: dict[str, str]) -> bool:
    return budget.namespace == pods.namespace and budget.selector is not None and budget.selector.matches(labels)
