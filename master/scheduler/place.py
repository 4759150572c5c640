"""Placing k identical pods one after the other, at the price of one look at all nodes."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from shoal.master.scheduler import scores
from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.filters import Static, fits
from shoal.master.scheduler.snapshot import Snapshot, hold_for


def place_batch(snapshot: Snapshot, pods: PodClass, fixed: Static, uids: list[str]) -> list[str]:
    """Commits as many of the pods as fit, in order; their nodes' names. The same as greedy placement, one by one:
    k placements touch only the k nodes that are best at the start, each node's score changes by its own pods only."""
    possible = np.flatnonzero(fixed.mask & fits(snapshot, pods))
    if not possible.size:
        return []
    value = scores.score(snapshot, pods, fixed)[possible]
    if len(uids) == 1:
        best = snapshot.names[int(possible[int(np.argmax(value))])]
        snapshot.commit(uids[0], hold_for(pods, best))
        return [best]
    order = np.argsort(-value, kind="stable")[: len(uids)]
    heap = [(-float(value[at]), int(possible[at])) for at in order]
    heapq.heapify(heap)
    state: dict[int, _Row] = {}
    placed: list[str] = []
    for uid in uids:
        if not heap:
            break
        _, index = heap[0]
        name = snapshot.names[index]
        snapshot.commit(uid, hold_for(pods, name))
        placed.append(name)
        row = state.get(index) or state.setdefault(index, _Row.of(snapshot, pods, fixed, index))
        if row.take():
            heapq.heapreplace(heap, (-row.score(), index))
        else:
            heapq.heappop(heap)
    return placed


@dataclass(slots=True)
class _Row:
    """One node's figures as plain integers: scalar access to arrays is ten times slower."""

    alloc: tuple[int, int]  # cpu, memory
    load: list[int]
    want: tuple[int, int]
    room: int  # pods of the class that still fit
    siblings: int
    soft: int
    counted: int  # 1 when the class has an owner

    @staticmethod
    def of(snapshot: Snapshot, pods: PodClass, fixed: Static, index: int) -> _Row:
        """As before the first pod of the batch, which is committed already."""
        room = min(
            (int(snapshot.alloc[r, index]) - int(snapshot.used[r, index])) // value + 1
            for name, value in pods.requests
            for r in (snapshot.resources.index(name),)
        )
        return _Row(
            alloc=(int(snapshot.alloc[0, index]), int(snapshot.alloc[1, index])),
            load=[int(snapshot.load[row, index]) - wanted for row, wanted in enumerate(pods.load)],
            want=pods.load,
            room=room,
            siblings=snapshot.sibling_count(pods.owner, index) - 1 if pods.owner else 0,
            soft=int(fixed.soft[index]),
            counted=1 if pods.owner else 0,
        )

    def take(self) -> bool:
        """One more pod is there; True while another fits."""
        self.room -= 1
        self.siblings += self.counted
        self.load[0] += self.want[0]
        self.load[1] += self.want[1]
        return self.room > 0

    def score(self) -> float:
        cpu = scores.part_of(self.alloc[0], self.load[0], self.want[0])
        memory = scores.part_of(self.alloc[1], self.load[1], self.want[1])
        return scores.combine(cpu, memory, self.siblings, self.soft)
