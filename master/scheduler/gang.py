"""Gangs: the pending members of a pod group are placed together, within one domain if asked, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TypeAlias

import numpy as np

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.explain import Explanation, explain, nowhere
from shoal.master.scheduler.filters import Frame, VolumeFilter, feasible
from shoal.master.scheduler.groups import Group
from shoal.master.scheduler.nodes import Domains
from shoal.master.scheduler.place import NOWHERE, Ladder, bonds, ladder, place, take
from shoal.master.scheduler.queue import Run, Waiting
from shoal.master.scheduler.scores import score
from shoal.master.scheduler.snapshot import Bools, Floats, Ints, Snapshot

FrameOf: TypeAlias = Callable[[PodClass], Frame]


@dataclass(slots=True)
class Outcome:
    """Of each member: its node, or why it waits. Those with a node are committed."""

    placed: list[tuple[Waiting, str]] = field(default_factory=list)
    refused: list[tuple[Waiting, Explanation]] = field(default_factory=list)


def place_gang(snapshot: Snapshot, frame_of: FrameOf, run: Run) -> Outcome:
    """All members that find a place, when with those that hold a node they are enough; else none."""
    space, name, members = run.pods.namespace, run.group, run.waiting
    group = snapshot.groups.get((space, name))
    if group is None:
        return _all_wait(members, nowhere(snapshot, f"pod group {name} does not exist"))
    held = held_rows(snapshot, space, name)
    present = sum(held.values())
    if present + len(members) < group.members:
        why = f"pod group {name} has {present + len(members)} of {group.members} members"
        return _all_wait(members, nowhere(snapshot, why))
    inside, rows = _inside(snapshot, frame_of, group, held, members) if group.key else (None, [])
    outcome = settled(snapshot, frame_of, members, inside, rows) if rows else fill(snapshot, frame_of, members, inside)
    if present + len(outcome.placed) >= group.members:
        return outcome
    for one, _ in outcome.placed:
        snapshot.undo(one.uid)
    story = outcome.refused[0][1]
    fit = present + len(outcome.placed)
    why = f"pod group {name} needs {group.members} members placed together, but {fit} fit; for the next {story.message}"
    return _all_wait(members, replace(story, message=why))


def _all_wait(members: Sequence[Waiting], story: Explanation) -> Outcome:
    return Outcome(refused=[(one, story) for one in members])


def held_rows(snapshot: Snapshot, space: str, name: str) -> dict[int, int]:
    """Row -> members that hold it and are not being deleted."""
    found: dict[int, int] = {}
    for state in snapshot.counts.in_group(space, name):
        for node, number in state.on.items():
            staying = number - state.leaving.get(node, 0)
            row = snapshot.row.get(node)
            if staying and row is not None:
                found[row] = found.get(row, 0) + staying
    return found


def fill(snapshot: Snapshot, frame_of: FrameOf, members: Sequence[Waiting], inside: Bools | None) -> Outcome:
    """Each in its turn, class by class; `inside` are the nodes of the gang's domain."""
    outcome = Outcome()
    for pods, row in groupby(members, key=lambda one: one.pods):
        batch, known = list(row), frame_of(pods)
        nodes = place(snapshot, known if inside is None else narrowed(known, inside), batch)
        outcome.placed += zip(batch, nodes, strict=False)
        if len(nodes) < len(batch):
            story = explain(snapshot, known, inside)
            outcome.refused += [(one, story) for one in batch[len(nodes) :]]
    return outcome


def settled(
    snapshot: Snapshot, frame_of: FrameOf, members: Sequence[Waiting], inside: Bools | None, rows: Sequence[int]
) -> Outcome:
    """Members of one class whose first ones take these rows; that is all that there is room for."""
    known, batch = frame_of(members[0].pods), list(members)
    outcome = Outcome(list(zip(batch, take(snapshot, known, batch, rows), strict=False)))
    if len(rows) < len(batch):
        story = explain(snapshot, known, inside)
        outcome.refused = [(one, story) for one in batch[len(rows) :]]
    return outcome


def narrowed(known: Frame, inside: Bools) -> Frame:
    mask = known.mask & inside
    return replace(known, mask=mask, closed=~mask)


# ---- the domain ----
def _inside(
    snapshot: Snapshot, frame_of: FrameOf, group: Group, held: Mapping[int, int], members: Sequence[Waiting]
) -> tuple[Bools, list[int]]:
    """The nodes of the gang's domain, none when no node has the key; and where the members go, if that is known."""
    domains = snapshot.nodes.domains(group.key)
    if not domains.size:
        return np.zeros(len(snapshot), dtype=np.bool_), []
    there = np.zeros(domains.size + 1, dtype=np.int64)
    for row, number in held.items():
        there[domains.slots[row]] += number
    rows: list[int] = []
    if there[:-1].any():
        best = int(np.argmax(there[:-1]))
    elif made := _simple(snapshot, frame_of, members):
        best, rows = _best(domains, made, len(members))
    else:
        best = _best_tried(snapshot, frame_of, domains, members)
    inside: Bools = domains.slots == best
    return inside, rows


def _simple(snapshot: Snapshot, frame_of: FrameOf, members: Sequence[Waiting]) -> Ladder | None:
    """When the members are alike and each changes the score of its own node only."""
    pods = members[0].pods
    known = frame_of(pods)
    profile = known.profile
    if profile is None or known.demand is None or any(one.pods != pods for one in members):
        return None
    how = bonds(snapshot, known, profile)
    return None if how.steps or how.zone is not None else ladder(snapshot, known, profile, how)


def _best(domains: Domains, made: Ladder, number: int) -> tuple[int, list[int]]:
    """The domain, and the rows that its members take: one more of them is placed in all domains at a time."""
    among = np.flatnonzero(domains.has[made.possible])
    if not among.size:
        return 0, []
    slots = domains.slots[made.possible[among]]
    order = np.argsort(slots.astype(np.int32), kind="stable")
    slots, rows, value = slots[order], made.possible[among[order]], made.value[among[order]]
    starts = np.flatnonzero(np.concatenate([[True], slots[1:] != slots[:-1]]))
    sizes = np.diff(np.append(starts, slots.size))
    label = np.repeat(np.arange(starts.size), sizes)
    counts, totals = np.zeros(starts.size, dtype=np.int64), np.zeros(starts.size, dtype=np.float64)
    taken = np.zeros(rows.size, dtype=np.int64)
    turns: list[Ints] = []  # of each turn the positions that it took, -1 where none is left
    for turn in range(number):
        top = np.maximum.reduceat(value, starts)
        hits = np.flatnonzero(value == top[label])
        first = hits[np.concatenate([[True], label[hits[1:]] != label[hits[:-1]]])]
        able = top > NOWHERE
        if not able.any():
            break
        counts += able
        totals[able] += top[able]
        turns.append(np.where(able, first, -1))
        if turn + 1 < number:
            at = first[able]
            taken[at] += 1
            value[at] = _next(made, rows[at], taken[at])
    ahead = np.flatnonzero(counts == counts.max())
    best = int(ahead[np.argmax(totals[ahead])])
    return int(slots[starts[best]]), [int(rows[turn[best]]) for turn in turns if turn[best] >= 0]


def _next(made: Ladder, rows: Ints, taken: Ints) -> Floats:
    """The scores of one more pod on each row beside those that were taken there; NOWHERE where it has no room."""
    value = made.at(rows, taken[:, None])[:, 0]
    value[made.capacity(rows) <= taken] = NOWHERE
    return value


def _best_tried(snapshot: Snapshot, frame_of: FrameOf, domains: Domains, members: Sequence[Waiting]) -> int:
    """Domain by domain, those that may hold most first; a domain that cannot hold as many as another is not tried."""
    bound = _bounds(snapshot, frame_of, domains, members)
    best = (1, 0.0, 0)  # minus the placed, minus the sum, the domain: worse than any
    for slot in np.argsort(-bound, kind="stable").tolist():
        if -int(bound[slot]) > best[0]:
            break
        placed, total = tried(snapshot, frame_of, members, domains.slots == slot)
        best = min(best, (-placed, -total, slot))
    return best[2]


def _bounds(snapshot: Snapshot, frame_of: FrameOf, domains: Domains, members: Sequence[Waiting]) -> Ints:
    """int64[domains]: at most so many members can be placed in each, by what is left of cpu, memory and the like."""
    total = np.zeros(domains.size + 1, dtype=np.int64)
    for pods in dict.fromkeys(one.pods for one in members):
        known = frame_of(pods)
        if known.demand is None:
            continue
        number = sum(one.pods == pods for one in members)
        room = np.full(len(snapshot), number, dtype=np.int64)
        for resource, amount in known.demand:
            np.minimum(room, np.maximum(snapshot.left[resource], 0) // amount, out=room)
        per = np.bincount(domains.slots, weights=np.where(known.mask, room, 0), minlength=domains.size + 1)
        total += np.minimum(per.astype(np.int64), number)
    return total[:-1]


def tried(snapshot: Snapshot, frame_of: FrameOf, members: Sequence[Waiting], inside: Bools) -> tuple[int, float]:
    """How many members find a place there and the sum of their scores; nothing stays committed."""
    placed: list[str] = []
    total = 0.0
    for pods, row in groupby(members, key=lambda one: one.pods):
        known = narrowed(frame_of(pods), inside)
        for one in row:
            at, value = _chosen(snapshot, known)
            if at < 0:
                break
            take(snapshot, known, [one], [at])
            placed.append(one.uid)
            total += value
    for uid in placed:
        snapshot.undo(uid)
    return len(placed), total


def _chosen(snapshot: Snapshot, known: Frame) -> tuple[int, float]:
    """The best row for one more pod and its score; -1 for none."""
    if known.profile is None or known.demand is None:
        return -1, 0.0
    volumes = VolumeFilter.of(snapshot, known.pods) if known.pods.claims else None
    rows = np.flatnonzero(feasible(snapshot, known, volumes))
    if not rows.size:
        return -1, 0.0
    value = score(snapshot, known, known.profile)[rows]
    at = int(np.argmax(value))
    return int(rows[at]), float(value[at])
