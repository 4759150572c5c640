"""Who matches whom: for each class of held pods where they are, and counts per node of the pods that a term means.

A count is made when a term is first looked at and kept up to date from then on; the least recently used ones are
dropped and made again. The reverse list tells which terms of held pods mean the pods of a class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.nodes import Ints
from shoal.master.scheduler.terms import PodMatch, PodTerm

Counts32 = npt.NDArray[np.int32]
Item = TypeVar("Item")
BUDGET_BYTES = 128 << 20  # for the dense counts of all terms together
KEEP_AT_LEAST = 64  # counts, whatever they cost: those of a run must stay
IDLE_LIMIT = 20_000  # classes without a held pod that are remembered


@dataclass(eq=False, slots=True)
class MatchCount:
    """Pods that all of `matches` mean: int32[2, N], all of them and those that are leaving."""

    matches: tuple[PodMatch, ...]
    counts: Counts32
    dropped: bool = False

    @property
    def everyone(self) -> Counts32:
        found: Counts32 = self.counts[0]
        return found

    @property
    def staying(self) -> Counts32:
        """Without those that are being deleted."""
        result: Counts32 = self.counts[0] - self.counts[1]
        return result


@dataclass(eq=False, slots=True)
class Bearer:
    """A term that held pods have, and which classes have it. `anti`: required anti-affinity; else a weight for the
    company: the preferred terms' own, 1 for required affinity."""

    anti: bool
    weight: int
    term: PodTerm
    classes: dict[ClassState, None] = field(default_factory=dict)

    def rows(self, row: Mapping[str, int]) -> tuple[Ints, Ints]:
        """The rows that hold pods with the term, and how many; rows may come more than once."""
        rows: list[int] = []
        numbers: list[int] = []
        for state in self.classes:
            for name, number in state.on.items():
                index = row.get(name)
                if index is not None:
                    rows.append(index)
                    numbers.append(number)
        return np.array(rows, dtype=np.int64), np.array(numbers, dtype=np.int64)


@dataclass(eq=False, slots=True)
class ClassState:
    """A class and where its pods are, by the names of nodes."""

    pods: PodClass
    labels: dict[str, str]
    on: dict[str, int] = field(default_factory=dict)
    leaving: dict[str, int] = field(default_factory=dict)  # of those
    matches: list[MatchCount] = field(default_factory=list)  # that its pods are counted in
    against: list[Bearer] = field(default_factory=list)  # that mean its pods
    demand: tuple[tuple[int, int], ...] | None = None  # (resource row, amount), from the first pod on
    bears: bool = False  # its own terms are listed


Bucket = tuple[str, str, str]


class Counts:
    """The states of classes and what links them; owned by a Snapshot, which tells it of pods and nodes."""

    def __init__(self) -> None:
        self.spaces: dict[str, dict[str, str]] = {}  # labels of namespaces
        self._states: dict[PodClass, ClassState] = {}
        self._alike: dict[Bucket, dict[ClassState, None]] = {}  # by namespace and each label; ("", "") for all there
        self._by_group: dict[tuple[str, str], dict[ClassState, None]] = {}
        self._counts: dict[tuple[PodMatch, ...], MatchCount] = {}
        self._bearers: dict[tuple[bool, int, PodTerm], Bearer] = {}
        self._counted: dict[Bucket, list[MatchCount]] = {}
        self._borne: dict[Bucket, list[Bearer]] = {}
        self.version = 0  # grows with every change of a namespace's labels
        self._size = 0  # nodes
        self._limit = 2 * IDLE_LIMIT  # classes, before idle ones are forgotten

    def clone(self) -> Counts:
        made = Counts()
        made.spaces, made.version, made._size = dict(self.spaces), self.version, self._size
        for pods, state in self._states.items():
            if state.on:
                copy = made.state(pods)
                copy.on, copy.leaving, copy.demand = dict(state.on), dict(state.leaving), state.demand
                made._list(copy)
        return made

    def __len__(self) -> int:
        """How many classes are remembered."""
        return len(self._states)

    # ---- classes ----
    def state(self, pods: PodClass) -> ClassState:
        found = self._states.get(pods)
        if found is None:
            found = self._states[pods] = ClassState(pods, dict(pods.labels))
            for bucket in _places(found):
                self._alike.setdefault(bucket, {})[found] = None
            if pods.group:
                self._by_group.setdefault((pods.namespace, pods.group), {})[found] = None
            self._link(found)
        return found

    def below(self, priority: int) -> list[ClassState]:
        """The classes of lower priority that have pods somewhere."""
        return [state for state in self._states.values() if state.on and state.pods.priority < priority]

    def tidy(self) -> None:
        """Forgets classes without pods when they have become many. Between plans: a plan holds on to its states."""
        if len(self._states) < self._limit:
            return
        for pods, state in list(self._states.items()):
            if not state.on:
                del self._states[pods]
                for bucket in _places(state):
                    del self._alike[bucket][state]
                    if not self._alike[bucket]:
                        del self._alike[bucket]
                self._leave_group(state)
                self._unlist(state)
        self._limit = 2 * max(IDLE_LIMIT, len(self._states))

    def _leave_group(self, state: ClassState) -> None:
        name = state.pods.namespace, state.pods.group
        if name in self._by_group:
            del self._by_group[name][state]
            if not self._by_group[name]:
                del self._by_group[name]

    def in_group(self, namespace: str, group: str) -> Iterable[ClassState]:
        """The classes of a pod group's members, as far as known."""
        return self._by_group.get((namespace, group), ())

    def _link(self, state: ClassState) -> None:
        if self._counted:
            state.matches = [found for found in _looked_up(self._counted, state) if self.means(found.matches, state)]
        if self._borne:
            state.against = [one for one in _looked_up(self._borne, state) if self.means((one.term.match,), state)]

    def means(self, matches: Iterable[PodMatch], state: ClassState) -> bool:
        space = self.spaces.get(state.pods.namespace, {})
        return all(match.matches(state.pods.namespace, state.labels, space) for match in matches)

    def _states_for(self, match: PodMatch) -> Iterable[ClassState]:
        if match.spaces is not None:
            return list(self._states.values())
        return [state for bucket in buckets(match) for state in self._alike.get(bucket, ())]

    # ---- pods ----
    def add(self, state: ClassState, node: str, row: int | None, sign: int, leaving: bool) -> None:
        """One pod more (1) or less (-1)."""
        _bump(state.on, node, sign)
        if leaving:
            _bump(state.leaving, node, sign)
        if not state.bears:
            self._list(state)
        if row is None or not state.matches:
            return
        for found in self._live(state):
            found.counts[0, row] += sign
            if leaving:
                found.counts[1, row] += sign

    def add_many(self, state: ClassState, nodes: Sequence[str], rows: Ints, numbers: Ints) -> None:
        """One pod more on each of `nodes`; `rows` are distinct, with their numbers of pods. None is leaving."""
        count_up(state.on, nodes)
        if not state.bears:
            self._list(state)
        for found in self._live(state):
            found.counts[0][rows] += numbers.astype(np.int32)

    def _live(self, state: ClassState) -> list[MatchCount]:
        if any(found.dropped for found in state.matches):
            state.matches = [found for found in state.matches if not found.dropped]
        return state.matches

    # ---- terms of held pods ----
    def _list(self, state: ClassState) -> None:
        state.bears = True
        if not (state.pods.affinity or state.pods.anti_affinity or state.pods.preferred_pods):
            return
        for anti, weight, term in terms_of(state.pods):
            one = self._bearers.get((anti, weight, term))
            if one is None:
                one = self._bearers[anti, weight, term] = Bearer(anti, weight, term)
                for bucket in buckets(term.match):
                    self._borne.setdefault(bucket, []).append(one)
                for other in self._states_for(term.match):
                    if self.means((term.match,), other):
                        other.against.append(one)
            one.classes[state] = None

    def _unlist(self, state: ClassState) -> None:
        for key in terms_of(state.pods) if state.bears else ():
            one = self._bearers[key]
            one.classes.pop(state, None)
            if not one.classes:
                del self._bearers[key]
                for bucket in buckets(one.term.match):
                    self._borne[bucket].remove(one)
                for other in self._states_for(one.term.match):
                    if one in other.against:
                        other.against.remove(one)

    # ---- counts ----
    def count(self, matches: tuple[PodMatch, ...], row: Mapping[str, int]) -> MatchCount:
        """Of the pods that all of these mean, per node."""
        found = self._counts.pop(matches, None)
        if found is None:
            self._make_room()
            found = self._made(matches, row)
        self._counts[matches] = found  # the most recently used is last
        return found

    def _made(self, matches: tuple[PodMatch, ...], row: Mapping[str, int]) -> MatchCount:
        found = MatchCount(matches, np.zeros((2, self._size), dtype=np.int32))
        for bucket in buckets(matches[0]):
            self._counted.setdefault(bucket, []).append(found)
        for state in self._states_for(matches[0]):
            if not self.means(matches, state):
                continue
            state.matches.append(found)
            for which, on in enumerate((state.on, state.leaving)):
                for name, number in on.items():
                    index = row.get(name)
                    if index is not None:
                        found.counts[which, index] += number
        return found

    def _make_room(self) -> None:
        each = 8 * max(1, self._size)
        limit = max(KEEP_AT_LEAST, BUDGET_BYTES // each)
        while len(self._counts) >= limit:
            self._drop(next(iter(self._counts)))

    def _drop(self, matches: tuple[PodMatch, ...]) -> None:
        found = self._counts.pop(matches)
        found.dropped = True
        for bucket in buckets(matches[0]):
            self._counted[bucket].remove(found)
            if not self._counted[bucket]:
                del self._counted[bucket]

    def resize(self, size: int) -> None:
        """Rows have moved: counts are made anew when they are asked for."""
        self._size = size
        for matches in list(self._counts):
            self._drop(matches)

    def take_space(self, name: str, labels: Mapping[str, str] | None) -> bool:
        """A namespace came, changed or went; True when its labels did: then terms that select namespaces are looked
        at anew."""
        if dict(labels or {}) == self.spaces.get(name, {}):
            return False
        if labels:
            self.spaces[name] = dict(labels)
        else:
            self.spaces.pop(name, None)
        self.version += 1
        for matches in list(self._counts):
            if any(match.spaces is not None for match in matches):
                self._drop(matches)
        for state in list(self._alike.get((name, "", ""), ())):
            self._link(state)
        return True


def terms_of(pods: PodClass) -> Iterable[tuple[bool, int, PodTerm]]:
    """What a held pod's terms mean for others, each once per time it is said: (anti, weight, term)."""
    merged: dict[PodTerm, int] = {}
    for weight, term in (*pods.preferred_pods, *((1, term) for term in pods.affinity)):
        merged[term] = merged.get(term, 0) + weight
    return [
        *((True, 0, term) for term in dict.fromkeys(pods.anti_affinity)),
        *((False, w, t) for t, w in merged.items()),
    ]


def buckets(match: PodMatch) -> list[Bucket]:
    """Where to look for pods that the selector may mean: (namespace, label key, value); "" for any."""
    spaces = [""] if match.spaces is not None else list(match.namespaces)
    if match.selector is None:
        return []
    for rule in match.selector.rules:
        if rule.operator == "In" and len(rule.values) == 1:
            return [(space, rule.key, rule.values[0]) for space in spaces]
    return [(space, "", "") for space in spaces]


def _looked_up(table: Mapping[Bucket, list[Item]], state: ClassState) -> list[Item]:
    found: list[Item] = []
    for space in (state.pods.namespace, ""):
        found += table.get((space, "", ""), ())
        for key, value in state.pods.labels:
            found += table.get((space, key, value), ())
    return found


def _places(state: ClassState) -> list[Bucket]:
    space = state.pods.namespace
    return [(space, "", ""), *((space, key, value) for key, value in state.pods.labels)]


def count_up(on: dict[str, int], nodes: Sequence[str]) -> None:
    """One more for each of the nodes."""
    more = Counter(nodes)
    if on.keys().isdisjoint(more):
        on.update(more)
        return
    for node, number in more.items():
        on[node] = on.get(node, 0) + number


def _bump(table: dict[str, int], key: str, by: int) -> None:
    number = table.get(key, 0) + by
    if number:
        table[key] = number
    else:
        table.pop(key, None)
