"""Placing the pods of a run one after the other, at the price of one look at all nodes.

Three ways, all of which decide what a greedy loop over the nodes would:
- *ladder*: a placement changes the score of its own node only. Greedy placement of k pods takes the first k of all
  (node, j) in the order of (-min(score[node, 1..j]), node, j), also where scores are not monotone.
- *zones*: so it is, save for one hard spread constraint that counts the class itself: one such list per domain, and
  the rule of the minimum decides which domains are open.
- *steps*: all else; every pod is a look at all nodes.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.master.scheduler import devices, gpus, scores
from shoal.master.scheduler.filters import (
    Frame,
    Scope,
    VolumeFilter,
    company_found,
    feasible,
    minimum,
    scopes,
    spread_counts,
)
from shoal.master.scheduler.profiles import Profile
from shoal.master.scheduler.queue import Waiting
from shoal.master.scheduler.snapshot import Bools, Floats, Hold, Ints, Snapshot

NOWHERE = -np.inf
UNBOUNDED = 2**62
A_FEW = 16  # pods that are placed one by one
FEW = 16  # nodes of a domain that are looked at, besides its share of the run
SORTED_AT_ONCE = 4096  # nodes; of more the best of each domain are chosen first
ZONES_LIMIT = 64  # domains that are looked at one by one


@dataclass(slots=True)
class Bonds:
    """How pods of a class act on each other. `steps`: on other nodes, too. Else per pod on a node: `pull` is what its
    company there grows by, `crowd` what its soft spread does; `lonely` nodes take one only; `zone` is the one hard
    constraint that counts the class itself."""

    steps: bool
    lonely: Bools | None = None
    pull: Ints | None = None
    crowd: Ints | None = None
    zone: Scope | None = None


def bonds(snapshot: Snapshot, known: Frame, profile: Profile) -> Bonds:
    pods, state, counts = known.pods, known.state, snapshot.counts
    if known.device.number or pods.claims:
        return Bonds(True)
    own = scopes(snapshot, known) if pods.spread else []
    zones = [scope for scope in own if scope.itself and scope.rule.hard]
    apart = [term.key for term in pods.anti_affinity if counts.means((term.match,), state)]
    near = [(1, term) for term in pods.affinity] + [(2 * weight, term) for weight, term in pods.preferred_pods]
    pulls = [(weight, term.key) for weight, term in near if profile.company and counts.means((term.match,), state)]
    crowds = [scope for scope in own if scope.itself and not scope.rule.hard and profile.spread]
    keys = [*apart, *(key for _, key in pulls), *(scope.rule.key for scope in crowds)]
    if len(zones) > 1 or not all(snapshot.nodes.domains(key).single for key in keys):
        return Bonds(True)
    if pods.affinity and company_found(snapshot, known)[1]:
        return Bonds(True)  # the first pod decides where the others may go
    made = Bonds(False, zone=zones[0] if zones else None)
    if pods.ports:
        made.lonely = np.ones(len(snapshot), dtype=np.bool_)
    for key in apart:
        has = snapshot.nodes.domains(key).has
        made.lonely = has if made.lonely is None else made.lonely | has
    for weight, key in pulls:
        more = weight * snapshot.nodes.domains(key).has.astype(np.int64)
        made.pull = more if made.pull is None else made.pull + more
    for scope in crowds:
        more = scope.domains.has.astype(np.int64)
        made.crowd = more if made.crowd is None else made.crowd + more
    return made


@dataclass(slots=True)
class Ladder:
    """Of a run: every node that can take one, with what its scores are made of."""

    snapshot: Snapshot
    known: Frame
    profile: Profile
    bonds: Bonds
    possible: Ints  # rows, ascending
    value: Floats  # of the first pod on each of them
    raw: scores.Raw

    def capacity(self, rows: Ints) -> Ints:
        """How many pods of the class each of these rows still takes."""
        assert self.known.demand is not None
        lonely = None if self.bonds.lonely is None else self.bonds.lonely[rows]
        if lonely is not None and lonely.all():
            return np.ones(rows.size, dtype=np.int64)
        left = self.snapshot.left
        room = np.full(rows.size, np.iinfo(np.int64).max)
        for resource, amount in self.known.demand:
            np.minimum(room, left[resource, rows] // amount, out=room)
        if lonely is not None:
            room[lonely] = 1
        return room

    def rungs(self, rows: Ints, depth: int) -> Floats:
        """float64[rows, depth]: the score of the j-th pod on each row when the others are there."""
        return self.at(rows, np.arange(depth)[None, :])

    def at(self, rows: Ints, j: Ints) -> Floats:
        """float64[rows, ...]: the same of the pods with these numbers, int64[1 or rows, ...]."""
        room, size = self.snapshot.room[:, rows, None], self.snapshot.size[:, rows, None]
        wanted = self.known.want[:, :, None] * (j + 1)
        free = np.maximum(room - wanted, 0.0) / size
        return scores.combine(self.profile, free[0], free[1], self._raw(rows, j))

    def _raw(self, rows: Ints, j: Ints) -> scores.Raw:
        raw, owner = self.raw, self.known.pods.owner
        one = np.ones(rows.size, dtype=np.int64)
        return scores.Raw(
            None if raw.images is None else raw.images[rows, None],
            _more(raw.siblings, rows, one if owner and self.profile.siblings else None, j),
            None if raw.preference is None else raw.preference[rows, None],
            _grown(raw.company, rows, None if self.bonds.pull is None else self.bonds.pull[rows], j),
            _grown(raw.spread, rows, None if self.bonds.crowd is None else self.bonds.crowd[rows], j),
            None if raw.devices is None else devices.run(self.snapshot, self.known, rows, j),
            None if raw.taints is None else raw.taints[rows, None],
        )


def _more(start: Floats | None, rows: Ints, growth: Ints | None, j: Ints) -> Floats | None:
    """`_grown` for siblings, whose numbers are floats."""
    if growth is None:
        return None if start is None else start[rows, None]
    more: Floats = (growth[:, None] * j).astype(np.float64)
    return more if start is None else more + start[rows, None]


def best(value: Floats, number: int) -> Ints:
    """The first `number` by (-value, position), as ascending positions."""
    if number >= value.size:
        return np.arange(value.size)
    limit = np.partition(value, value.size - number)[value.size - number]
    above = np.flatnonzero(value > limit)
    ties = np.flatnonzero(value == limit)[: number - above.size]
    return np.sort(np.concatenate([above, ties]))


def _grown(start: Ints | None, rows: Ints, growth: Ints | None, j: Ints) -> Ints | None:
    """What is there already plus `growth` for each of the j pods before."""
    if growth is None:
        return None if start is None else start[rows, None]
    more: Ints = growth[:, None] * j
    return more if start is None else more + start[rows, None]


def ladder(snapshot: Snapshot, known: Frame, profile: Profile, how: Bonds) -> Ladder:
    zone = None if how.zone is None else how.zone.rule  # its domains open again while the run is placed
    possible = np.flatnonzero(feasible(snapshot, known, None, zone))
    f, g = scores.shares(snapshot, known)
    raw = scores.raw_parts(snapshot, known, profile)
    return Ladder(snapshot, known, profile, how, possible, scores.combine(profile, f, g, raw)[possible], raw)


@dataclass(slots=True)
class Items:
    """(row, j) pairs in the order in which greedy placement takes them among the listed nodes, with their scores and
    the minimum of these so far. Past the first `deep` of them another pod on a listed node might come before."""

    rows: Ints
    value: Floats
    least: Floats
    deep: int


def items(made: Ladder, at: Ints, depth: int) -> Items:
    """Of the nodes at these positions, `depth` pods each."""
    rows = made.possible[at]
    room = made.capacity(rows)
    highest = int(room.max())
    depth = min(depth, highest)
    if depth == 1:
        value = made.value[at][:, None]
    else:
        value = made.rungs(rows, depth)
        value[np.arange(depth)[None, :] >= room[:, None]] = NOWHERE
    least = np.minimum.accumulate(value, axis=1).ravel()
    order = falling(least)
    if depth > 1:
        order = order[: np.count_nonzero(least > NOWHERE)]
    node = order // depth
    deep = order.size
    if highest > depth:
        cut = np.flatnonzero((order % depth == depth - 1) & (room[node] > depth))
        deep = int(cut[0]) + 1 if cut.size else deep
        return Items(rows[node], value.ravel()[order], least[order], deep if cut.size else UNBOUNDED)
    return Items(rows[node], value.ravel()[order], least[order], UNBOUNDED)


def falling(value: Floats) -> Ints:
    """Positions by (-value, position). Sorting without regard to ties, and then each row of ties, is five times
    faster than a stable sort."""
    order = np.argsort(-value)
    ranked = value[order]
    differs = ranked[1:] != ranked[:-1]
    if not differs.all():
        rank = np.concatenate([[0], np.cumsum(differs)])
        order = order[np.argsort(rank * value.size + order)]
    result: Ints = order
    return result


def climb(made: Ladder, number: int) -> list[int]:
    """The rows of up to `number` pods, in order, where each touches its own node only: at most `number` nodes are
    touched, and those are the best ones."""
    if not made.possible.size:
        return []
    if number == 1:
        return [int(made.possible[int(np.argmax(made.value))])]
    at = best(made.value, number)
    depth = 2 * (-(-number // at.size))
    while (found := items(made, at, depth)).deep < number:
        depth *= 4
    rows: list[int] = found.rows[:number].tolist()
    return rows


def by_zone(made: Ladder, scope: Scope, number: int) -> list[int]:
    """The same under a hard spread constraint that counts the class itself."""
    if not made.possible.size:
        return []
    counts = spread_counts(made.snapshot, scope)
    each = min(number, number // max(1, scope.domains.size) * 2 + FEW)
    listed, depth = Listed.of(made, scope, each), 2
    while True:
        found = items(made, listed.at, depth)
        rows = level(scope, counts, Ahead.of(scope, found, listed, each), number)
        if rows is not None:
            return rows
        listed, each, depth = Listed.all(made), number + 1, depth * 4


@dataclass(slots=True)
class Listed:
    """The nodes that are looked at first, by positions, and which domains have others besides. The first k items of a
    domain's k best nodes are the first k of all its items."""

    at: Ints
    partial: Bools | None = None

    @staticmethod
    def all(made: Ladder) -> Listed:
        return Listed(np.arange(made.possible.size))

    @staticmethod
    def of(made: Ladder, scope: Scope, each: int) -> Listed:
        """The best `each` of every domain."""
        if made.possible.size <= SORTED_AT_ONCE or scope.domains.size > ZONES_LIMIT:
            return Listed.all(made)
        slots = scope.domains.slots[made.possible].astype(np.int16)
        number = np.bincount(slots, minlength=scope.domains.size)
        parts = np.split(np.argsort(slots, kind="stable"), np.cumsum(number)[:-1])
        kept = [part[best(made.value[part], each)] if part.size > each else part for part in parts]
        return Listed(np.sort(np.concatenate(kept)), number > each)


@dataclass(slots=True)
class Ahead:
    """What each domain has to offer, the next first, as flat lists: `start` to `end` are a domain's. `more` says that
    what follows is not listed."""

    value: list[float]
    row: list[int]
    start: list[int]
    end: list[int]
    more: list[bool]

    @staticmethod
    def of(scope: Scope, found: Items, listed: Listed, each: int) -> Ahead:
        """At most `each` of a domain, and only what is sure to come in this order."""
        size = scope.domains.size
        slots = scope.domains.slots[found.rows]
        more = np.zeros(size, dtype=np.bool_) if listed.partial is None else listed.partial.copy()
        if found.deep < UNBOUNDED:
            more |= np.bincount(slots, minlength=size) > 0
            slots = slots[: found.deep]
        grouped = np.argsort(slots if size > ZONES_LIMIT else slots.astype(np.int16), kind="stable")
        number = np.bincount(slots, minlength=size)
        more |= number > each
        if grouped.size > each:
            rank = np.arange(grouped.size) - np.repeat(np.cumsum(number) - number, number)
            grouped, number = grouped[rank < each], np.minimum(number, each)
        end: list[int] = np.cumsum(number).tolist()
        value: list[float] = (-found.value[grouped]).tolist()
        return Ahead(value, found.rows[grouped].tolist(), [0, *end[:-1]], end, more.tolist())


def level(scope: Scope, counts: Ints, ahead: Ahead, number: int) -> list[int] | None:
    """Takes the best of the open domains' next items; None when items that are not listed may be needed."""
    low = Lowest.of(scope, counts)
    number_of: list[int] = counts.tolist()
    slack = scope.rule.max_skew - 1
    value, rows, following, end = ahead.value, ahead.row, ahead.start, ahead.end
    heap: list[tuple[float, int, int]] = []
    closed: dict[int, list[int]] = {}
    chosen: list[int] = []
    todo: list[int] = np.flatnonzero(scope.places).tolist()
    while True:
        for zone in todo:
            if number_of[zone] > low.value + slack:
                closed.setdefault(number_of[zone], []).append(zone)
                continue
            item = following[zone]
            if item < end[zone]:
                following[zone] = item + 1
                heapq.heappush(heap, (value[item], rows[item], zone))
            elif ahead.more[zone]:
                return None
        if not heap or len(chosen) == number:
            return chosen
        _, row, zone = heapq.heappop(heap)
        chosen.append(row)
        there = number_of[zone] = number_of[zone] + 1
        todo = [zone]
        if low.grow(there):
            todo += closed.pop(low.value + slack, ())


@dataclass(slots=True)
class Lowest:
    """The minimum over the eligible domains while they grow by one at a time."""

    value: int
    fixed: bool  # too few domains: it stays 0
    at: dict[int, int]  # how many domains have this number of pods

    @staticmethod
    def of(scope: Scope, counts: Ints) -> Lowest:
        among = counts[:-1][scope.places].tolist()
        return Lowest(minimum(scope, counts), len(among) < scope.rule.min_domains, Counter(among))

    def grow(self, number: int) -> bool:
        """A domain has come to this number; True when the minimum has grown with that."""
        at = self.at
        at[number] = at.get(number, 0) + 1
        left = at[number - 1] = at[number - 1] - 1
        if left or number - 1 != self.value or self.fixed:
            return False
        self.value = number
        return True


def step(snapshot: Snapshot, known: Frame, profile: Profile) -> int:
    """The row for one more pod; -1 for none."""
    volumes = VolumeFilter.of(snapshot, known.pods) if known.pods.claims else None
    ok = feasible(snapshot, known, volumes)
    value = np.where(ok, scores.score(snapshot, known, profile), NOWHERE)
    best = int(np.argmax(value)) if value.size else -1
    return best if best >= 0 and ok[best] else -1


def few(snapshot: Snapshot, known: Frame, profile: Profile, batch: Sequence[Waiting]) -> list[str]:
    """Commits a few pods of a class that nothing binds to other pods. The best node of all is looked for first, and
    only when it has no room which nodes have: most often it has."""
    raw = scores.raw_parts(snapshot, known, profile)
    f, g = scores.shares(snapshot, known)
    value = scores.combine(profile, f, g, raw, snapshot.scratch[2])
    if known.closed is not None:
        value[known.closed] = NOWHERE
    placed: list[str] = []
    screened = False
    while len(placed) < len(batch):
        row = int(value.argmax())
        if value[row] == NOWHERE:
            break
        if not _has_room(snapshot, known, row):
            if screened:
                value[row] = NOWHERE
            else:
                value[~feasible(snapshot, known)] = NOWHERE
            screened = True
            continue
        one = batch[len(placed)]
        name = snapshot.names[row]
        snapshot.commit(one.uid, Hold(name, known.pods, (), one.key, False, False, one.arrival), known.state)
        placed.append(name)
        if len(placed) < len(batch):
            if raw.siblings is None and known.pods.owner and profile.siblings:
                raw.siblings = snapshot.owners.counts(known.pods.owner, snapshot.row)
            if raw.devices is not None:
                raw.devices = devices.part(snapshot, known)
            value[row] = scores.score_at(snapshot, known, profile, raw, row)
    return placed


def _has_room(snapshot: Snapshot, known: Frame, row: int) -> bool:
    left = snapshot.left
    for resource, amount in known.demand or ():  # noqa: SIM110  (a generator takes twice as long)
        if left.item(resource, row) < amount:
            return False
    return True


def place(snapshot: Snapshot, known: Frame, batch: Sequence[Waiting]) -> list[str]:
    """Commits as many of the pods as fit, in order; their nodes' names."""
    profile = known.profile
    if profile is None or known.demand is None or not len(snapshot):
        return []
    if known.free and not known.state.against and len(batch) <= A_FEW:
        return few(snapshot, known, profile, batch)
    placed: list[str] = []
    while len(placed) < len(batch):
        how = bonds(snapshot, known, profile)
        rest = batch[len(placed) :]
        if how.steps or (how.zone is not None and len(rest) == 1):
            row = step(snapshot, known, profile)
            rows = [row] if row >= 0 else []
        else:
            made = ladder(snapshot, known, profile, how)
            rows = climb(made, len(rest)) if how.zone is None else by_zone(made, how.zone, len(rest))
        placed += take(snapshot, known, rest, rows)
        if not how.steps or not rows:
            break
    return placed


def take(snapshot: Snapshot, known: Frame, batch: Sequence[Waiting], rows: Sequence[int]) -> list[str]:
    """The first pods of the batch take these rows."""
    names, pods = snapshot.names, known.pods
    nodes = [names[row] for row in rows]
    holds = [
        Hold(node, pods, _devices(snapshot, known, row), one.key, False, False, one.arrival)
        for one, node, row in zip(batch, nodes, rows, strict=False)
    ]
    uids = [one.uid for one, _ in zip(batch, rows, strict=False)]
    if pods.ports or pods.claims or known.device.number:
        for uid, hold in zip(uids, holds, strict=True):
            snapshot.commit(uid, hold)
    else:
        snapshot.commit_batch(uids, holds, rows)
    return nodes


def _devices(snapshot: Snapshot, known: Frame, row: int) -> tuple[int, ...]:
    return gpus.choose(snapshot.gpu_left[row].tolist(), known.device) if known.device.number else ()
