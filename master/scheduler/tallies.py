"""The filters that count other pods, as preemption asks for them: what becomes of a class's ports, spread, affinity and
anti-affinity on a node once some of the node's pods have gone. One formula for a single node and for all of them.

A tally counts the pods that one rule means, by domains. A `Count` is a number or int64[rows], a `Flag` bool or
bool[rows].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.master.scheduler.affinity import ANY_ADDRESS
from shoal.master.scheduler.below import HIGHEST, LOWEST, Below, Passing, Share, nominated_below
from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.counts import ClassState
from shoal.master.scheduler.filters import Frame, Scope, scopes, spread_counts
from shoal.master.scheduler.nodes import Domains
from shoal.master.scheduler.snapshot import Bools, Ints, Snapshot
from shoal.master.scheduler.terms import PodMatch

Marks: TypeAlias = Callable[[ClassState], int]  # how many times a tally counts a pod of the class
Count: TypeAlias = Ints | np.int64 | int
Flag: TypeAlias = Bools | np.bool_ | bool
Row: TypeAlias = Ints | slice | int
ALL = slice(None)


@dataclass(slots=True)
class Tally:
    """`sums` is int64[domains + 1]; `lower` int64[N]: the part of it that is pods of lower priority on the node;
    `real` and `highest` are how many of these it would cost, and their highest priority."""

    slots: Ints
    has: Bools
    sums: Ints
    marks: Marks
    lower: Ints
    real: Ints
    highest: Ints
    each: int = 1  # as often is one pod counted at most

    def without(self, row: Row) -> Count:
        """The count in the node's domain when all pods of lower priority there have gone."""
        found: Count = self.sums[self.slots[row]] - self.lower[row]
        return found


@dataclass(slots=True)
class Apart:
    """None of the pods that the tally means may be in the domain."""

    tally: Tally

    def holds(self, count: Count, row: Row) -> Flag:
        found: Flag = (count == 0) | ~self.tally.has[row]
        return found

    def cost(self, below: Below) -> tuple[Ints, Ints]:
        """At least so many evictions on each node, and one of such a priority: all that are in the way must go."""
        tally = self.tally
        number = np.where(tally.has, -(-tally.real // tally.each), 0)
        return number, np.where(number > 0, tally.highest, LOWEST)


@dataclass(slots=True)
class Even:
    """A hard spread constraint; `others` is int64[domains + 1]: the minimum over the other eligible domains."""

    tally: Tally
    scope: Scope
    others: Ints | None  # None: the minimum is 0, since there are too few domains

    def holds(self, count: Count, row: Row) -> Flag:
        least = 0 if self.others is None else np.minimum(self.others[self.tally.slots[row]], count)
        found: Flag = (count + int(self.scope.itself) - least <= self.scope.rule.max_skew) & self.tally.has[row]
        return found

    def cost(self, below: Below) -> tuple[Ints, Ints]:
        """At least so many of the domain's pods must go, whether or not the minimum sinks with that."""
        tally = self.tally
        staying = tally.sums[tally.slots] - (tally.lower - tally.real)
        least = 0 if self.others is None else self.others[tally.slots]
        number = np.maximum(staying + int(self.scope.itself) - self.scope.rule.max_skew - least, 0)
        return number, np.where(number > 0, below.lowest, LOWEST)


@dataclass(slots=True)
class Near:
    """Required affinity: the terms' tallies count the same pods, by different keys."""

    tallies: list[Tally]
    itself: bool  # the pod is what it asks for
    rest: list[Ints]  # int64[domains + 1] of each tally: what the other domains hold

    def holds(self, counts: Sequence[Count], row: Row) -> Flag:
        has: Flag = True
        every: Flag = True
        some: Flag = np.bool_(False)
        for tally, count, rest in zip(self.tallies, counts, self.rest, strict=True):
            has = has & tally.has[row]
            every = every & (count > 0)
            some = some | (rest[tally.slots[row]] + count > 0)
        if self.itself:
            every = every | np.logical_not(some)
        return has & every


@dataclass(slots=True)
class Rules:
    """All rules of a class that count pods; the tallies of `alone` come first, then those of `near`."""

    alone: list[Apart | Even]
    near: Near | None
    tallies: list[Tally]
    _marks: dict[PodClass, tuple[int, ...]]

    def holds(self, counts: Sequence[Count], row: Row) -> Flag:
        found: Flag = True
        for rule, count in zip(self.alone, counts, strict=False):
            found = found & rule.holds(count, row)
        return found if self.near is None else found & self.near.holds(counts[len(self.alone) :], row)

    def without(self, row: Row) -> list[Count]:
        return [tally.without(row) for tally in self.tallies]

    def marks(self, state: ClassState) -> tuple[int, ...]:
        """What one pod of the class, that is not leaving, adds to the count of each tally."""
        found = self._marks.get(state.pods)
        if found is None:
            found = self._marks[state.pods] = tuple(int(tally.marks(state)) for tally in self.tallies)
        return found


def rules_of(snapshot: Snapshot, known: Frame) -> Rules | None:
    """None when the class has no such rule."""
    maker = _Maker.of(snapshot, known)
    alone: list[Apart | Even] = [Apart(tally) for tally in maker.apart()]
    alone += [maker.even(scope) for scope in scopes(snapshot, known) if scope.rule.hard] if known.pods.spread else []
    near = maker.near() if known.pods.affinity else None
    if not alone and near is None:
        return None
    return Rules(alone, near, [one.tally for one in alone] + (near.tallies if near is not None else []), {})


@dataclass(slots=True)
class _Maker:
    snapshot: Snapshot
    known: Frame
    lower: list[ClassState]
    nominated: Passing

    @staticmethod
    def of(snapshot: Snapshot, known: Frame) -> _Maker:
        priority = known.pods.priority
        return _Maker(snapshot, known, snapshot.counts.below(priority), nominated_below(snapshot, priority))

    def tally(self, domains: Domains, sums: Ints, marks: Marks, staying: bool = False) -> Tally:
        """`staying`: pods that are leaving are not counted."""
        nodes = len(self.snapshot)
        made = Tally(
            domains.slots,
            domains.has,
            sums,
            marks,
            np.zeros(nodes, dtype=np.int64),
            np.zeros(nodes, dtype=np.int64),
            np.full(nodes, LOWEST, dtype=np.int64),
        )
        for state in self.lower:
            if times := int(marks(state)):
                self._take(made, state, times, staying)
        return made

    def _take(self, made: Tally, state: ClassState, times: int, staying: bool) -> None:
        share = Share.of(state, self.snapshot.row, self.nominated)
        made.each = max(made.each, times)
        made.lower[share.rows] += times * (share.everyone - share.leaving if staying else share.everyone)
        made.real[share.rows] += times * share.real
        held = share.rows[share.real > 0]
        made.highest[held] = np.maximum(made.highest[held], state.pods.priority)

    def _by_domain(self, domains: Domains, on: Ints) -> Ints:
        sums = np.bincount(domains.slots, weights=on, minlength=domains.size + 1).astype(np.int64)
        sums[domains.size] = 0
        return sums

    def _meaning(self, matches: tuple[PodMatch, ...]) -> Marks:
        return lambda state: self.snapshot.counts.means(matches, state)

    # ---- the rules ----
    def apart(self) -> list[Tally]:
        """Of host ports, own anti-affinity, and others' that means the class."""
        counts, row = self.snapshot.counts, self.snapshot.row
        found = [self._ports()] if self.known.pods.ports else []
        for term in self.known.pods.anti_affinity:
            domains = self.snapshot.nodes.domains(term.key)
            sums = _by_domain(domains, ALL, counts.count((term.match,), row).everyone)
            found.append(self.tally(domains, sums, self._meaning((term.match,))))
        for one in self.known.state.against:
            if one.anti:
                domains = self.snapshot.nodes.domains(one.term.key)
                found.append(self.tally(domains, _by_domain(domains, *one.rows(row)), one.classes.__contains__))
        return found

    def _ports(self) -> Tally:
        """Every node is a domain; a pod counts once for each pair of ports that clash."""
        snapshot, own = self.snapshot, self.known.pods.ports
        nodes = len(snapshot)
        taken = np.zeros(nodes + 1, dtype=np.int64)
        for protocol, address, port in own:
            for other, on in snapshot.port_takers(protocol, port).items():
                for name, number in on.items() if _same_address(address, other) else ():
                    taken[snapshot.row.get(name, nodes)] += number
        taken[nodes] = 0
        everywhere = Domains(snapshot.names, np.arange(nodes), np.ones(nodes, dtype=np.bool_), True)
        return self.tally(everywhere, taken, lambda state: clashes(own, state.pods.ports))

    def even(self, scope: Scope) -> Even:
        sums = spread_counts(self.snapshot, scope)
        tally = self.tally(scope.domains, sums, self._meaning((scope.rule.match,)), staying=True)
        return Even(tally, scope, _others(scope, sums))

    def near(self) -> Near:
        snapshot, counts = self.snapshot, self.snapshot.counts
        matches = tuple(term.match for term in self.known.pods.affinity)
        everyone = counts.count(matches, snapshot.row).everyone
        tallies = []
        for term in self.known.pods.affinity:
            domains = snapshot.nodes.domains(term.key)
            tallies.append(self.tally(domains, _by_domain(domains, ALL, everyone), self._meaning(matches)))
        rest = [tally.sums.sum() - tally.sums for tally in tallies]
        return Near(tallies, counts.means(matches, self.known.state), rest)


def _by_domain(domains: Domains, rows: Row, numbers: npt.NDArray[np.integer[Any]]) -> Ints:
    """int64[domains + 1]; what lies in no domain is left out."""
    sums = np.bincount(domains.slots[rows], weights=numbers, minlength=domains.size + 1).astype(np.int64)
    sums[domains.size] = 0
    return sums


def _others(scope: Scope, sums: Ints) -> Ints | None:
    places = np.flatnonzero(scope.places)
    if places.size < scope.rule.min_domains or not places.size:
        return None
    among = sums[places]
    first = int(np.argmin(among))
    least = np.full(sums.size, among[first], dtype=np.int64)
    least[places[first]] = np.delete(among, first).min(initial=HIGHEST)
    return least


def clashes(own: Sequence[tuple[str, str, int]], others: Sequence[tuple[str, str, int]]) -> int:
    """How many pairs of host ports cannot both be had."""
    return sum(
        protocol == protocol2 and port == port2 and _same_address(address, address2)
        for protocol, address, port in own
        for protocol2, address2, port2 in others
    )


def _same_address(one: str, other: str) -> bool:
    return one == other or ANY_ADDRESS in (one, other)


def counts_pods(known: Frame) -> bool:
    """Whether the class has a rule that counts pods."""
    pods = known.pods
    return bool(
        pods.ports
        or pods.affinity
        or pods.anti_affinity
        or any(rule.hard for rule in pods.spread)
        or any(one.anti for one in known.state.against)
    )
