"""Copies of the cluster that questions are answered on, in steps between which the master does its other work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

from shoal.master.api.faults import Timeout
from shoal.master.model import KINDS, Event, Unavailable
from shoal.master.planning.overlay import Overlay
from shoal.master.planning.rehearsal import Rehearsal
from shoal.master.ports import ReadFace
from shoal.master.scheduler.core import Scheduler
from shoal.master.scheduler.profiles import Profile
from shoal.master.scheduler.snapshot import Snapshot

AT_ONCE = 2  # questions that are worked on
WAITING = 8  # questions that wait for their turn
PATIENCE_SECONDS = 60.0  # for one answer
SEED = 1  # the same question gets the same answer
STEP = 500  # objects that the snapshot takes between two breaths
# What the scheduler's snapshot is made from, what others need first.
SEEN = (
    "Namespace",
    "Node",
    "StorageClass",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "PodGroup",
    "Pod",
)

T = TypeVar("T")


class Copies:
    """Gives out copies, a few at a time."""

    def __init__(self, store: ReadFace, now: Callable[[], float], profiles: Mapping[str, Profile]) -> None:
        self._store, self._now, self._profiles = store, now, profiles
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._asked = 0

    @asynccontextmanager
    async def copy(self) -> AsyncIterator[Rehearsal]:
        """A copy of what is committed now. Raises Unavailable when too many ask, Timeout when it takes too long."""
        await self._store.readable()
        if self._asked >= AT_ONCE + WAITING:
            raise Unavailable(f"{self._asked} plans are being made: ask again later")
        self._asked += 1
        try:
            async with self._gate, asyncio.timeout(PATIENCE_SECONDS):
                yield await self._copied()
        except TimeoutError:
            raise Timeout(f"this takes longer than {PATIENCE_SECONDS:g} s to work out: ask for less at once") from None
        finally:
            self._asked -= 1

    async def _copied(self) -> Rehearsal:
        overlay, snapshot = Overlay(), Snapshot()
        await breathe(overlay.capture(self._store.view))
        await breathe(fed(snapshot, overlay))
        rng = random.Random(SEED)  # noqa: S311  (names and uids that nobody keeps)
        return Rehearsal(overlay, snapshot, Scheduler(self._profiles), self._now(), rng)


def fed(snapshot: Snapshot, overlay: Overlay) -> Iterator[None]:
    """The snapshot takes all that there is, in steps."""
    for kind in SEEN:
        records = list(overlay.records(kind)) if kind in KINDS else []
        for start in range(0, len(records), STEP):
            snapshot.apply(Event(one.key, one.revision, None, one) for one in records[start : start + STEP])
            yield


async def breathe(steps: Iterator[None] | Generator[None, None, T]) -> T:
    """Goes through all steps, with a turn for everybody else after each; gives what a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            result: T = ended.value
            return result
        await asyncio.sleep(0)
