"""The pods that have no node yet, by what they wait for."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from shoal.master.scheduler.core import Waiting
from shoal.master.scheduler.snapshot import Snapshot
from shoal.master.scheduling.lot import Lot
from shoal.master.scheduling.pending import Pending, Place


class Queue:
    """Pods wait for their turn (`ready`), for a backoff to end (`later`), for a change in the cluster (`lot`), or for
    the end of their gates. Members of a gang get their turns together."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.pods: dict[str, Pending] = {}
        self.lot = Lot(snapshot)
        self.later: list[tuple[float, str]] = []
        self.gated: set[str] = set()
        self.nominated: dict[str, Pending] = {}
        self._ready: list[tuple[Place, str]] = []
        self._queued: set[str] = set()
        self._gangs: dict[tuple[str, str], dict[str, Pending]] = {}

    # ---- in and out ----
    def put(self, pending: Pending) -> None:
        """New, or with a changed spec: its turn comes at once."""
        uid = pending.waiting.uid
        if uid in self.pods:
            self.drop(uid)
        self.pods[uid] = pending
        if pending.node:
            self.nominated[uid] = pending
        if pending.gang is not None:
            self._gangs.setdefault(pending.gang, {})[uid] = pending
        self.gated.discard(uid)
        self.ready(uid)

    def drop(self, uid: str) -> None:
        self.gated.discard(uid)
        pending = self.pods.pop(uid, None)
        if pending is None:
            return
        self.lot.leave(uid)
        self._queued.discard(uid)
        self.nominated.pop(uid, None)
        if pending.gang is not None:
            members = self._gangs[pending.gang]
            del members[uid]
            if not members:
                del self._gangs[pending.gang]

    def gate(self, uid: str) -> None:
        self.drop(uid)
        self.gated.add(uid)

    # ---- turns ----
    def ready(self, uid: str) -> None:
        """It gets a turn, and so does its gang."""
        pending = self.pods.get(uid)
        if pending is None or uid in self._queued:
            return
        for one in (pending,) if pending.gang is None else self._gangs[pending.gang].values():
            self._push(one)

    def ready_all(self, uids: Iterable[str]) -> int:
        """How many are ready by it."""
        before = len(self._queued)
        for uid in uids:
            self.ready(uid)
        return len(self._queued) - before

    def _push(self, pending: Pending) -> None:
        uid = pending.waiting.uid
        self.lot.leave(uid)
        if uid not in self._queued:
            self._queued.add(uid)
            heapq.heappush(self._ready, (pending.place, uid))

    def delay(self, uid: str, when: float) -> None:
        """No event brings it back sooner: what failed may fail again."""
        if uid in self.pods:
            self.lot.leave(uid)
            heapq.heappush(self.later, (when, uid))

    def due(self, time: float) -> None:
        while self.later and self.later[0][0] <= time:
            _, uid = heapq.heappop(self.later)
            self.ready(uid)

    def take(self, limit: int) -> list[Waiting]:
        """Up to `limit` pods by priority, then arrival; a gang comes whole, with its first."""
        batch: list[Waiting] = []
        while self._ready and len(batch) < limit:
            _, uid = heapq.heappop(self._ready)
            pending = self.pods.get(uid)
            if uid not in self._queued or pending is None:
                continue  # it came with its gang, or has gone
            if pending.gang is None:
                members = [pending]
            else:
                found = self._gangs[pending.gang].values()
                members = sorted((one for one in found if one.waiting.uid in self._queued), key=lambda one: one.place)
            for one in members:
                self._queued.discard(one.waiting.uid)
                one.attempts += 1
                batch.append(one.waiting)
        return batch

    # ---- counts ----
    @property
    def active(self) -> int:
        return len(self._queued)
