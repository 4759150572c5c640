"""What pods below a priority take of each node, in steps of their priorities: from this come lower bounds on what room
for a pod of that priority costs, on all nodes at once. Kept up to date by the snapshot's journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.counts import ClassState
from shoal.master.scheduler.groups import Budget
from shoal.master.scheduler.snapshot import Bools, Hold, Ints, Snapshot
from shoal.master.scheduler.terms import Selector

STEPS_LIMIT = 8  # priorities that are told apart: more are taken together, by the lowest of each lot
ROWS_AT_ONCE = 8  # one of so many rows that have changed: then all are counted anew
LOWEST = -(2**63)  # below every priority: nobody is evicted
HIGHEST = 2**62
Passing = Mapping[PodClass, Mapping[str, int]]


def nominated_below(snapshot: Snapshot, priority: int) -> Passing:
    """Class -> node -> pods that are nominated there and not leaving."""
    found: dict[PodClass, dict[str, int]] = {}
    for uid in snapshot.nominated:
        hold = snapshot.held(uid)
        if hold is not None and not hold.leaving and hold.pods.priority < priority:
            on = found.setdefault(hold.pods, {})
            on[hold.node] = on.get(hold.node, 0) + 1
    return found


@dataclass(slots=True)
class Share:
    """Where pods of a class are: rows, how many there, and of these the ones that cost nothing, by kind."""

    rows: Ints
    everyone: Ints
    leaving: Ints
    nominated: Ints

    @property
    def real(self) -> Ints:
        """Those whose eviction counts."""
        found: Ints = self.everyone - self.leaving - self.nominated
        return found

    @staticmethod
    def of(state: ClassState, row: Mapping[str, int], nominated: Passing) -> Share:
        names = [name for name in state.on if name in row]
        free = nominated.get(state.pods, {})
        return Share(
            np.array([row[name] for name in names], dtype=np.int64),
            np.array([state.on[name] for name in names], dtype=np.int64),
            np.array([state.leaving.get(name, 0) for name in names] if state.leaving else 0, dtype=np.int64),
            np.array([free.get(name, 0) for name in names] if free else 0, dtype=np.int64),
        )


class Below:
    """`used` is int64[step, resource, node], of the real pods; `steps` are the lowest priorities of each, ascending.
    `passing` is int64[resource, node], of those that are leaving or nominated; `most` what the largest real pod takes;
    `exposed` what the real pods take that no spent budget covers (None: of all); `lowest` is their lowest priority."""

    def __init__(self, snapshot: Snapshot, priority: int) -> None:
        self.priority = priority
        self.version = -1
        self._made_for: object = None
        self.refresh(snapshot)

    def refresh(self, snapshot: Snapshot) -> None:
        """Takes in what has changed since."""
        now = (snapshot.epoch, len(snapshot), len(snapshot.resources), spent(snapshot.budgets))
        touched = snapshot.touched(self.version) if now == self._made_for else None
        rows = set(touched) if touched is not None else None
        self.version = snapshot.version
        if rows is None or len(rows) * ROWS_AT_ONCE > len(snapshot):
            self._made_for = now
            self._count_all(snapshot)
            return
        for row in rows:
            self._count_row(snapshot, row)

    def _empty(self, steps: list[int], resources: int, nodes: int) -> None:
        self.steps = steps
        self.used: Ints = np.zeros((len(steps), resources, nodes), dtype=np.int64)
        self.passing: Ints = np.zeros((resources, nodes), dtype=np.int64)
        self.most: Ints = np.zeros((resources, nodes), dtype=np.int64)
        self.exposed: Ints | None = np.zeros((resources, nodes), dtype=np.int64) if self._spent else None
        self.lowest: Ints = np.full(nodes, HIGHEST, dtype=np.int64)
        self.some: Bools = np.zeros(nodes, dtype=np.bool_)  # nodes with a pod of lower priority, of whatever kind

    def _count_all(self, snapshot: Snapshot) -> None:
        self._spent = spent(snapshot.budgets)
        self._covered: dict[PodClass, bool] = {}
        states = snapshot.counts.below(self.priority)
        self._empty(steps_of({state.pods.priority for state in states}), len(snapshot.resources), len(snapshot))
        nominated = nominated_below(snapshot, self.priority)
        for state in states:
            share = Share.of(state, snapshot.row, nominated)
            if share.rows.size:
                self._add(snapshot, state, share)

    def _add(self, snapshot: Snapshot, state: ClassState, share: Share) -> None:
        rows, real = share.rows, share.real
        step, covered = self._step(state.pods.priority), self._is_covered(state)
        there = real > 0
        held = rows[there]
        self.some[rows] = True
        self.lowest[held] = np.minimum(self.lowest[held], state.pods.priority)
        for resource, amount in snapshot.demand(state):
            self.used[step, resource, rows] += real * amount
            self.passing[resource, rows] += (share.everyone - real) * amount
            self.most[resource, held] = np.maximum(self.most[resource, held], amount)
            if self.exposed is not None and not covered:
                self.exposed[resource, rows] += real * amount

    def _count_row(self, snapshot: Snapshot, row: int) -> None:
        self.used[:, :, row] = self.passing[:, row] = self.most[:, row] = 0
        if self.exposed is not None:
            self.exposed[:, row] = 0
        self.lowest[row], self.some[row] = HIGHEST, False
        for hold in snapshot.pods_on(snapshot.names[row]).values():
            if hold.pods.priority < self.priority:
                self._add_one(snapshot, row, hold)

    def _add_one(self, snapshot: Snapshot, row: int, hold: Hold) -> None:
        self.some[row] = True
        state = snapshot.counts.state(hold.pods)
        demand = snapshot.demand(state)
        if hold.leaving or hold.nominated:
            for resource, amount in demand:
                self.passing[resource, row] += amount
            return
        step, covered = self._step(hold.pods.priority), self._is_covered(state)
        self.lowest[row] = min(self.lowest[row], hold.pods.priority)
        for resource, amount in demand:
            self.used[step, resource, row] += amount
            self.most[resource, row] = max(self.most[resource, row], amount)
            if self.exposed is not None and not covered:
                self.exposed[resource, row] += amount

    def _step(self, priority: int) -> int:
        """The last step that is not above it; the first one is lowered when it has to be."""
        if not self.steps:
            self.steps = [priority]
            self.used = np.zeros((1, *self.passing.shape), dtype=np.int64)
        self.steps[0] = min(self.steps[0], priority)
        return max(index for index, lowest in enumerate(self.steps) if lowest <= priority)

    def _is_covered(self, state: ClassState) -> bool:
        found = self._covered.get(state.pods)
        if found is None:
            labels, space = state.labels, state.pods.namespace
            found = any(namespace == space and one.matches(labels) for namespace, one in self._spent)
            self._covered[state.pods] = found
        return found


def spent(budgets: Mapping[tuple[str, str], Budget]) -> frozenset[tuple[str, Selector]]:
    """(namespace, selector) of those that allow no eviction of any of their pods."""
    return frozenset(
        (one.namespace, one.selector)
        for one in budgets.values()
        if one.allowed <= 0 and one.selector is not None and not one.disrupted
    )


def steps_of(priorities: set[int]) -> list[int]:
    """At most so many of them, ascending, the lowest among them."""
    found = sorted(priorities)
    each = -(-len(found) // STEPS_LIMIT) or 1
    return found[::each]
