"""No starvation: room is kept for a pod that others keep overtaking.

Small pods that come later can take each bit of room as it becomes free, so that a large one of the same priority would
wait for ever. One that has waited for long, and was overtaken lately, gets a node on which room is kept for it, as for
a nominated pod: nobody of its priority or a lower one goes there before it does. Only a few nodes are kept at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.snapshot import Hold, Snapshot
from shoal.master.scheduling.books import Books
from shoal.master.scheduling.news import News, admits
from shoal.master.scheduling.pending import Pending, Place
from shoal.master.scheduling.queue import Queue

PATIENCE_SECONDS = 30.0  # a pod waits before room is kept for it
TICK_SECONDS = 5.0
KEPT_SECONDS = 300.0  # then it is somebody else's turn
NODES_PER_KEPT = 20  # one of so many nodes may be kept, and one in any case


@dataclass(slots=True)
class Tick:
    """Pods for which room is kept from now on, and what was given up."""

    kept: list[Pending] = field(default_factory=list)
    news: News = field(default_factory=News)


class Reserver:
    """Asked now and then; `at` is when, None: there is no need."""

    def __init__(self, books: Books, queue: Queue, clock: Callable[[], float]) -> None:
        self.books, self.queue, self.clock = books, queue, clock
        self.at: float | None = None
        self.until: dict[str, float] = {}  # uid -> when the room is given up
        self._latest: Place | None = None  # bound since the last tick: the last in the order of the queue

    def bound(self, places: Iterable[Place]) -> None:
        """Pods got their nodes while others wait."""
        self._latest = max([*places, *([self._latest] if self._latest is not None else [])], default=None)
        if self.at is None and self._latest is not None and len(self.queue.lot):
            self.at = self.clock() + TICK_SECONDS

    def tick(self) -> Tick:
        now, done = self.clock(), Tick()
        latest, self._latest = self._latest, None
        for uid, until in list(self.until.items()):
            pending = self.queue.nominated.get(uid)
            if pending is None:  # bound, or it is gone
                del self.until[uid]
            elif now >= until:
                del self.until[uid]
                self._give_up(pending, now, done)
        most = max(1, len(self.books.snapshot) // NODES_PER_KEPT)
        for pending in self._overtaken(latest, now) if latest is not None else ():
            if len(self.until) >= most:
                break
            node = best_node(self.books.snapshot, pending.waiting.pods, {p.node for p in self.queue.nominated.values()})
            if node:
                self._keep(pending, node, now)
                done.kept.append(pending)
        self.at = now + TICK_SECONDS if self.until else None
        return done

    def _overtaken(self, latest: Place, now: float) -> Iterator[Pending]:
        """Those that only lack room, the first in the queue first."""
        found = [one for one in self.queue.lot.short_of_room() if one.place < latest]
        for pending in sorted(found, key=lambda one: one.place):
            if now - pending.since >= PATIENCE_SECONDS:
                yield pending

    def _keep(self, pending: Pending, node: str, now: float) -> None:
        waiting = pending.waiting
        self.queue.lot.leave(waiting.uid)
        pending.node = node
        self.queue.nominated[waiting.uid] = pending
        self.books.commit(
            waiting.uid, Hold(node, waiting.pods, key=waiting.key, nominated=True, arrival=waiting.arrival)
        )
        self.queue.lot.park(pending, (), False, pending.tried)
        self.until[waiting.uid] = now + KEPT_SECONDS

    def _give_up(self, pending: Pending, now: float, done: Tick) -> None:
        hold = self.books.undo(pending.waiting.uid)
        if hold is not None:
            done.news.free(hold.node, hold.pods)
        pending.since = now  # the others' turn
        self.queue.ready(pending.waiting.uid)


def best_node(snapshot: Snapshot, pods: PodClass, taken: set[str]) -> str:
    """Of the nodes that would take the class if they were empty, the one where the largest part of what it asks for
    is free already; "" when there is none."""
    share = np.full(len(snapshot), np.inf)
    for name, value in pods.requests:
        row = snapshot.resource_row(name)
        if row is None:
            return ""
        free = np.maximum(snapshot.alloc[row] - snapshot.used[row], 0)
        share = np.minimum(share, np.where(snapshot.alloc[row] >= value, free / value, -1.0))
    for index in np.argsort(-share, kind="stable"):
        facts = snapshot.nodes.facts[snapshot.names[index]]
        if share[index] >= 0 and facts.name not in taken and admits(facts, pods):
            return facts.name
    return ""
