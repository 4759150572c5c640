"""The account of a decision: what became of every node when a pod's turn came, and the best with their scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shoal.master.scheduler.explain import Explanation, explain
from shoal.master.scheduler.filters import Frame, VolumeFilter, feasible
from shoal.master.scheduler.scores import score, score_parts
from shoal.master.scheduler.snapshot import Snapshot

BEST = 3  # nodes that are told with their scores


class Part(NamedTuple):
    name: str
    weight: float
    value: float


class Candidate(NamedTuple):
    """A node that could take the pod; the score is the sum of weight x value."""

    node: str
    score: float
    parts: tuple[Part, ...]


class Account(NamedTuple):
    """As things were when the run began, in which the pod was one of `alike`. `open` nodes could take it."""

    nodes: int
    open: int
    alike: int
    best: tuple[Candidate, ...]
    rejected: Explanation


def account(snapshot: Snapshot, known: Frame, alike: int = 1) -> Account:
    """Of a pod of this class, if its turn came now."""
    ok = feasible(snapshot, known, VolumeFilter.of(snapshot, known.pods) if known.pods.claims else None)
    rows = np.flatnonzero(ok)
    return Account(len(snapshot), int(rows.size), alike, _best(snapshot, known, rows), explain(snapshot, known))


def _best(snapshot: Snapshot, known: Frame, rows: np.typing.NDArray[np.int64]) -> tuple[Candidate, ...]:
    profile = known.profile
    if profile is None or not rows.size:
        return ()
    value = score(snapshot, known, profile)[rows]
    parts = score_parts(snapshot, known, profile)
    found = []
    for _ in range(min(BEST, rows.size)):
        at = int(np.argmax(value))
        row = int(rows[at])
        each = tuple(Part(name, getattr(profile, name), float(values[row])) for name, values in parts.items())
        found.append(Candidate(snapshot.names[row], float(value[at]), each))
        value[at] = -np.inf
    return tuple(found)
