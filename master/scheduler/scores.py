"""Scores, absolute: a placement changes only its own node's. Higher is better; ties go to the first name.

One canonical formula, on arrays and on numbers alike: exact integers in, one division each, the same order of
operations, so that a batch and a loop over nodes decide the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.filters import Static
from shoal.master.scheduler.snapshot import Snapshot

SOFT_TAINT = 65536.0  # one PreferNoSchedule taint outweighs any crowd of siblings
SIBLING = 1.0  # one replica of the same owner outweighs any difference in load
SHARES = 4.0  # the load's part stays below one half

Floats = npt.NDArray[np.float64]


def score(snapshot: Snapshot, pods: PodClass, fixed: Static) -> Floats:
    """Of every node for one more of the class, before it is there."""
    cpu, memory = (part(snapshot, row, wanted) for row, wanted in enumerate(pods.load))
    siblings = snapshot.owner_counts(pods.owner) if pods.owner else np.zeros(len(snapshot), dtype=np.int64)
    result: Floats = (cpu + memory) / SHARES - siblings * SIBLING - fixed.soft * SOFT_TAINT
    return result


def part(snapshot: Snapshot, row: int, wanted: int) -> Floats:
    """The share of cpu (row 0) or memory (row 1) that stays free; 0 where there is none or too little."""
    alloc = snapshot.alloc[row]
    left = np.maximum(alloc - snapshot.load[row] - wanted, 0)
    result: Floats = np.where(alloc > 0, left / np.maximum(alloc, 1), 0.0)
    return result


def part_of(alloc: int, load: int, wanted: int) -> float:
    """`part` of a single node."""
    return max(alloc - load - wanted, 0) / alloc if alloc > 0 else 0.0


def combine(cpu: float, memory: float, siblings: int, soft: int) -> float:
    """`score` of a single node."""
    return (cpu + memory) / SHARES - siblings * SIBLING - soft * SOFT_TAINT
