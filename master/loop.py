"""The one loop that runs every controller: watch, coalesce, call, commit, requeue with backoff."""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from shoal.master.controllers.base import Controller, Outcome, Watch
from shoal.master.model import Change, Create, Event, Fault, Key, NotFound, NotLeader, Record, Unavailable
from shoal.master.recorder import Recorder
from shoal.master.stores import StoreFace

log = logging.getLogger("shoal.controllers")

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 60.0
BACKOFF_DOUBLINGS = 10
SETTLE_SECONDS = 1.0  # between attempts to learn what became of creates
CALLS_PER_CYCLE = 1000  # beyond it the rest waits for the next write
CHANGES_PER_CYCLE = 5000
COSTLY_SECONDS = 0.001  # a call that took longer is not made again at once
REST_FACTOR = 4  # times what the call took: one busy object with thousands of dependents leaves time for the others
RESTS_LIMIT = 1000  # then those that are over are forgotten
CALLS_PER_BREATH = 64  # then the other loops get a turn


class LoopMeter(Protocol):
    """What the loop counts."""

    def reconciled(self, controller: str, result: str, seconds: float) -> None: ...
    def queue_depth(self, depth: int) -> None: ...


class NoLoopMeter:
    """Counts nothing."""

    def reconciled(self, controller: str, result: str, seconds: float) -> None:
        """Nothing."""

    def queue_depth(self, depth: int) -> None:
        """Nothing."""


class Item(NamedTuple):
    controller: str
    key: Key


@dataclass(slots=True)
class Work:
    """What one call wants, and where its changes lie in the cycle's write."""

    item: Item
    outcome: Outcome
    start: int


class ControllerLoop:
    """Runs until leadership is lost (write says NotLeader) or the task is cancelled; one write is in flight at a time
    and what happens meanwhile becomes the next batch."""

    def __init__(
        self,
        store: StoreFace,
        controllers: Sequence[Controller],
        recorder: Recorder,
        now: Callable[[], float],
        rng: random.Random,
        meter: LoopMeter | None = None,
    ) -> None:
        self.store = store
        self.controllers = {controller.name: controller for controller in controllers}
        self._watches: dict[str, list[tuple[str, Watch]]] = {}
        for controller in controllers:
            for kind, watch in controller.watches.items():
                self._watches.setdefault(kind, []).append((controller.name, watch))
        self.recorder = recorder
        self.now = now
        self.rng = rng
        self.meter: LoopMeter = meter or NoLoopMeter()
        self._dirty: dict[Item, None] = {}
        self._later: list[tuple[float, int, Item]] = []
        self._due: dict[Item, float] = {}
        self._failures: dict[Item, int] = {}
        self._rests: dict[Item, float] = {}  # costly items, until when
        self._order = 0
        self._wake = asyncio.Event()
        self._unsure: list[Create] = []
        self._ended = False
        self.calls = 0  # reconciles since the start

    def poke(self, controller: str, key: Key) -> None:
        """Calls the controller for this key at once: something that no watch shows has changed."""
        self._rests.pop(Item(controller, key), None)
        self._add(Item(controller, key))

    async def run(self) -> None:
        kinds = {kind for controller in self.controllers.values() for kind in controller.watches}
        subscription = self.store.subscribe(kinds)
        self._enqueue(self._existing(kinds))
        pump = asyncio.create_task(self._pump(subscription), name="controllers: watch")
        try:
            while True:
                await self._wait()
                if pump.done():
                    pump.result()  # its failure is ours
                    return
                await self._cycle()
        except NotLeader:
            log.info("controllers stop: leadership is lost")
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            close = getattr(subscription, "close", None)
            if close is not None:
                close()

    # ---- what there is to do ----
    def _existing(self, kinds: Iterable[str]) -> list[Event]:
        """Everything that is there, as if it had just been added."""
        events = []
        for kind in sorted(kinds):
            for obj in self.store.view.all(kind):
                key = Key(kind, obj.metadata.namespace, obj.metadata.name)
                record = self.store.view.record(key)
                if record is not None:
                    events.append(Event(key, record.revision, None, record))
        return events

    async def _pump(self, subscription: AsyncIterator[tuple[int, list[Event]]]) -> None:
        try:
            async for _revision, events in subscription:
                self._enqueue(events)
        finally:
            self._ended = True
            self._wake.set()

    def _enqueue(self, events: Iterable[Event]) -> None:
        view = self.store.view
        for event in events:
            for name, watch in self._watches.get(event.key.kind, ()):
                try:
                    for key in watch(view, event):
                        self._add(Item(name, key))
                except Exception:
                    # One object that a watch trips over must not blind the controllers to all others.
                    log.exception("%s: its watch failed on %s", name, event.key)

    def _add(self, item: Item) -> None:
        if item in self._rests and (left := self._rest_of(item)) > 0:
            self._add_later(item, left)
            return
        self._dirty[item] = None
        self._wake.set()

    def _rest_of(self, item: Item) -> float:
        """Seconds until a costly item may be called again."""
        left = self._rests.get(item, 0.0) - asyncio.get_running_loop().time()
        if left <= 0:
            self._rests.pop(item, None)
        return left

    def _add_later(self, item: Item, seconds: float) -> None:
        when = asyncio.get_running_loop().time() + seconds
        if when >= self._due.get(item, float("inf")):
            return
        self._due[item] = when
        self._order += 1
        heapq.heappush(self._later, (when, self._order, item))
        self._wake.set()

    def _take_due(self) -> None:
        time = asyncio.get_running_loop().time()
        while self._later and self._later[0][0] <= time:
            when, _, item = heapq.heappop(self._later)
            if self._due.get(item) == when:
                del self._due[item]
                self._dirty[item] = None

    async def _wait(self) -> None:
        """Until something is to be done; idle means no timer but the nearest appointment."""
        while True:
            self._take_due()
            if self._dirty or self._ended:
                return
            self._wake.clear()
            until = self._later[0][0] if self._later else None
            try:
                async with asyncio.timeout_at(until):
                    await self._wake.wait()
            except TimeoutError:
                pass

    # ---- one cycle ----
    async def _cycle(self) -> None:
        """Calls what is dirty on the newest view and commits what it wants in one write."""
        if self._unsure:
            await self._settle()
            return
        items = list(islice(self._dirty, CALLS_PER_CYCLE))
        self.meter.queue_depth(len(self._dirty))
        works: list[Work] = []
        changes: list[Change] = []
        for number, item in enumerate(items, start=1):
            if len(changes) >= CHANGES_PER_CYCLE:
                break
            self._dirty.pop(item, None)
            outcome = self._call(item)
            if outcome is not None:
                works.append(Work(item, outcome, len(changes)))
                changes += outcome.changes
            if number % CALLS_PER_BREATH == 0:
                await asyncio.sleep(0)
        if changes:
            results = await self._write(changes, works)
            if results is None:
                return
            self._remember_unsure(changes, results)
        else:
            results = []
        for work in works:
            self._finish(work, results[work.start : work.start + len(work.outcome.changes)])

    def _call(self, item: Item) -> Outcome | None:
        started = asyncio.get_running_loop().time()
        self.calls += 1
        try:
            outcome = self.controllers[item.controller].reconcile(self.store.view, item.key, self.now())
        except Exception:
            # A bug that one object brings to light must not stop the others.
            log.exception("%s: the controller failed on it; it will be called again", spell(item))
            self.meter.reconciled(item.controller, "error", asyncio.get_running_loop().time() - started)
            self._back_off(item)
            return None
        ended = asyncio.get_running_loop().time()
        self.meter.reconciled(item.controller, "ok", ended - started)
        if ended - started > COSTLY_SECONDS:
            self._rest(item, ended, REST_FACTOR * (ended - started))
        return outcome

    def _rest(self, item: Item, time: float, seconds: float) -> None:
        if len(self._rests) >= RESTS_LIMIT:
            self._rests = {other: until for other, until in self._rests.items() if until > time}
        self._rests[item] = time + seconds

    async def _write(self, changes: list[Change], works: list[Work]) -> Sequence[Record | Fault | None] | None:
        """The results, or None when the whole was refused and is to be decided anew."""
        try:
            return await self.store.write(changes)
        except Unavailable as fault:
            # A decision that counts objects must not be made again before these are known to be there or not.
            self._unsure = [change for change in changes if isinstance(change, Create)]
            log.warning("the store does not answer (%s); %d objects are looked at again", fault, len(works))
            for work in works:
                self._back_off(work.item)
            return None

    async def _settle(self) -> None:
        """Sends creates of unknown outcome again: the same uid makes that a success when they were committed."""
        unsure, self._unsure = self._unsure, []
        try:
            self._remember_unsure(unsure, await self.store.write(unsure))
        except Unavailable as fault:
            log.warning("the store still does not answer: %s", fault)
            self._unsure = unsure
        if self._unsure:
            await asyncio.sleep(self._jittered(SETTLE_SECONDS))

    def _remember_unsure(self, changes: Sequence[Change], results: Sequence[Record | Fault | None]) -> None:
        for change, result in zip(changes, results, strict=False):
            if isinstance(change, Create) and isinstance(result, Unavailable):
                self._unsure.append(change)

    def _finish(self, work: Work, results: Sequence[Record | Fault | None]) -> None:
        faults = [result for result in results if isinstance(result, Fault) and not isinstance(result, NotFound)]
        if faults:
            for lost in faults:
                if isinstance(lost, NotLeader):
                    raise lost
            log.info("%s: will be called again: %s", spell(work.item), faults[0])
            self._back_off(work.item)
            return
        self._failures.pop(work.item, None)
        if work.outcome.did:
            log.info("%s: %s", spell(work.item), work.outcome.did)
        self.recorder.say_all(work.outcome.said, work.item.controller)
        if work.outcome.again is not None:
            self._add_later(work.item, max(0.0, work.outcome.again))

    def _back_off(self, item: Item) -> None:
        failures = self._failures.get(item, 0)
        self._failures[item] = failures + 1
        wait = BACKOFF_FIRST_SECONDS * 2 ** min(failures, BACKOFF_DOUBLINGS)
        self._add_later(item, self._jittered(min(BACKOFF_MAX_SECONDS, wait)))

    def _jittered(self, seconds: float) -> float:
        return seconds * (0.5 + self.rng.random() / 2)


def spell(item: Item) -> str:
    """ "replicaset default/web": what a log sentence begins with."""
    place = f"{item.key.namespace}/{item.key.name}" if item.key.namespace else item.key.name
    kind = item.key.kind.lower()
    return f"{item.controller} {place}" if item.controller == kind else f"{item.controller} {kind} {place}"
