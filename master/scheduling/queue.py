"""The pods that have no node yet, by what they wait for."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from shoal.master.scheduler.core import Waiting


@dataclass(slots=True)
class Pending:
    """A pod that has no node yet. `arrival` orders those of one priority."""

    waiting: Waiting
    arrival: tuple[int, str]  # etcd's create revision, uid
    since: float = 0.0  # the loop's time when it came
    by_usage: bool = False  # refused for lack of room only other pods take
    attempts: int = 0
    failures: int = 0


class Queue:
    """Pods by what they wait for: their turn (`ready`), a backoff (`later`), or a change in the cluster (`parked`)."""

    def __init__(self) -> None:
        self.pods: dict[str, Pending] = {}
        self.ready: list[tuple[int, tuple[int, str], str]] = []
        self.later: list[tuple[float, str]] = []
        self.parked: set[str] = set()
        self.claiming: set[str] = set()  # pods that use claims
        self._queued: set[str] = set()

    def put(self, pending: Pending) -> None:
        """New, or with a changed spec: its turn comes at once."""
        self.pods[pending.waiting.uid] = pending
        if pending.waiting.pods.claims:
            self.claiming.add(pending.waiting.uid)
        self._ready(pending)

    def _ready(self, pending: Pending) -> None:
        uid = pending.waiting.uid
        self.parked.discard(uid)
        if uid not in self._queued:
            self._queued.add(uid)
            heapq.heappush(self.ready, (-pending.waiting.pods.priority, pending.arrival, uid))

    def drop(self, uid: str) -> None:
        self.pods.pop(uid, None)
        self.parked.discard(uid)
        self.claiming.discard(uid)

    def park(self, uid: str, by_usage: bool) -> None:
        pending = self.pods.get(uid)
        if pending is not None:
            pending.by_usage = by_usage
            self.parked.add(uid)

    def delay(self, uid: str, when: float) -> None:
        if uid in self.pods:
            heapq.heappush(self.later, (when, uid))

    def wake(self, nodes_changed: bool, freed: bool, volumes_changed: bool = False) -> None:
        """Events that could change a refused pod's fate give it another turn."""
        for uid in list(self.parked) if nodes_changed or freed else []:
            pending = self.pods[uid]
            if nodes_changed or pending.by_usage:
                self._ready(pending)
        for uid in sorted(self.claiming & self.parked) if freed or volumes_changed else []:
            self._ready(self.pods[uid])

    def due(self, time: float) -> None:
        while self.later and self.later[0][0] <= time:
            _, uid = heapq.heappop(self.later)
            if uid in self.pods:
                self._ready(self.pods[uid])

    def take(self, limit: int) -> list[Waiting]:
        """Up to `limit` pods by priority, then arrival."""
        batch: list[Waiting] = []
        while self.ready and len(batch) < limit:
            _, _, uid = heapq.heappop(self.ready)
            self._queued.discard(uid)
            if uid in self.pods:
                self.pods[uid].attempts += 1
                batch.append(self.pods[uid].waiting)
        return batch
