"""Rebalancing: pods of full nodes that, were they evicted, the scheduler would place on emptier ones.

The load of a node is the larger of its shares of cpu and memory in use, as the scores count them. A move takes one pod
away, lets the scheduler place its replacement as it always does, and counts only when the fuller of the two nodes is
then less full than the source was, by MIN_GAIN or more. So no move makes a fuller node, the sorted loads only fall, and
planning ends. Without constraints, on one resource, with a scoring that prefers empty nodes, the fullest node ends at
most MIN_GAIN and the largest pod's mean share above the optimum of the linear program (docs/planning.md).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.master.scheduler.core import Scheduler, Waiting
from shoal.master.scheduler.snapshot import Snapshot

MIN_GAIN = 0.05  # of a node's capacity: an eviction must be worth its while
TRIES = 16  # full nodes that are looked at for a move


class Candidate(NamedTuple):
    """A pod that may be moved, and where it is."""

    waiting: Waiting
    node: str


class Move(NamedTuple):
    """`before`: the load of `source`; `after`: that of the fuller of both nodes."""

    uid: str
    source: str
    target: str
    before: float
    after: float


@dataclass(slots=True)
class Moves:
    """In the order in which they are to be made."""

    moves: list[Move] = field(default_factory=list)
    stopped: str = ""


def loads(snapshot: Snapshot) -> npt.NDArray[np.float64]:
    """float64[node]: the larger share of cpu and memory in use; 0 for nodes that are not ready."""
    alloc = np.maximum(snapshot.alloc[:2], 1)
    shares = np.where(snapshot.alloc[:2] > 0, snapshot.load / alloc, 0.0)
    result: npt.NDArray[np.float64] = np.where(snapshot.ready, shares.max(axis=0, initial=0.0), 0.0)
    return result


def plan_rebalance(
    snapshot: Snapshot, scheduler: Scheduler, candidates: Sequence[Candidate], limit: int
) -> Generator[None, None, Moves]:
    """At most `limit` moves, one after the other, in steps; each pod moves once. The snapshot has them at the end."""
    found = Moves()
    left: dict[str, list[Waiting]] = {}
    for waiting, node in candidates:
        left.setdefault(node, []).append(waiting)
    while len(found.moves) < limit:
        move = yield from _next_move(snapshot, scheduler, left)
        if move is None:
            found.stopped = f"no further move makes a full node less full by {MIN_GAIN:.0%} or more"
            return found
        found.moves.append(move)
        left[move.source] = [waiting for waiting in left[move.source] if waiting.uid != move.uid]
    found.stopped = "that is the one move that was asked for" if limit == 1 else f"{limit} moves were asked for"
    return found


def _next_move(
    snapshot: Snapshot, scheduler: Scheduler, left: dict[str, list[Waiting]]
) -> Generator[None, None, Move | None]:
    """The best move off the fullest node that has one."""
    load = loads(snapshot)
    fullest = [snapshot.names[int(at)] for at in np.argsort(-load, kind="stable")]
    for name in [name for name in fullest if left.get(name)][:TRIES]:
        best: tuple[float, Waiting] | None = None
        seen = set()
        for waiting in left[name]:
            if waiting.pods in seen:
                continue
            seen.add(waiting.pods)
            after = _tried(snapshot, scheduler, waiting, name, keep=False)
            yield
            if after is not None and (best is None or after[0] < best[0]):
                best = after[0], waiting
        before = float(load[snapshot.row[name]])
        if best is not None and best[0] <= before - MIN_GAIN:
            made = _tried(snapshot, scheduler, best[1], name, keep=True)
            assert made is not None, "what was tried a moment ago comes out the same"
            return Move(best[1].uid, name, made[1], before, made[0])
    return None


def _tried(
    snapshot: Snapshot, scheduler: Scheduler, waiting: Waiting, source: str, keep: bool
) -> tuple[float, str] | None:
    """The load of the fuller node, and the target, when the replacement lands elsewhere; else None."""
    hold = snapshot.held(waiting.uid)
    if hold is None or hold.node != source:
        return None
    snapshot.undo(waiting.uid)
    plan = scheduler.schedule(snapshot, [waiting])
    target = plan.bindings[0].node if plan.bindings else source
    elsewhere = target != source and not plan.preemptions
    load = loads(snapshot)
    after = max(float(load[snapshot.row[name]]) for name in (source, target))
    if not (keep and elsewhere):
        snapshot.undo(waiting.uid)
        snapshot.commit(waiting.uid, hold)
    return (after, target) if elsewhere else None
