"""The loop: events in, one window after the other decided and carried out."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence

from shoal.master.controllers.base import Said, terminating
from shoal.master.model import Change, Event, Fault, NotLeader, Object, Record, Unavailable, key_of
from shoal.master.recorder import Recorder
from shoal.master.scheduler.classes import Classes
from shoal.master.scheduler.core import Refusal, Waiting
from shoal.master.scheduler.snapshot import Snapshot
from shoal.master.scheduling.binder import Binder, Settled
from shoal.master.scheduling.books import Books
from shoal.master.scheduling.changes import SCHEDULER_ERROR, sentence, tell, told, wants_node
from shoal.master.scheduling.decisions import Decision, Decisions, Observer
from shoal.master.scheduling.judge import Failed, Judge, Judged
from shoal.master.scheduling.meter import Meter, NoMeter
from shoal.master.scheduling.queue import Pending, Queue
from shoal.master.stores import StoreFace
from shoal.proto.v1 import objects_pb2 as o

log = logging.getLogger("shoal.scheduler")

WINDOW = 5000  # pods of one plan: bounds how long the other loops wait
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 10.0
BACKOFF_DOUBLINGS = 7
WATCHED = ("Namespace", "Node", "StorageClass", "PersistentVolume", "PersistentVolumeClaim", "PodDisruptionBudget", "PodGroup", "Pod")


class SchedulingLoop:
    """Runs until leadership is lost or the task is cancelled. While one window is being bound the next one forms."""

    def __init__(
        self,
        store: StoreFace,
        recorder: Recorder,
        now: Callable[[], float],
        rng: random.Random,
        meter: Meter | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.store, self.recorder, self.now, self.rng = store, recorder, now, rng
        self.meter: Meter = meter or NoMeter()
        self.books = Books(observer)
        self.queue = Queue()
        self.decisions = Decisions()
        self.windows = 0  # plans made in this term
        self._classes = Classes()
        self._judge = Judge(self.books.snapshot)
        self._binder = Binder(store, self.books, now, rng, self.meter)
        self._events: list[Event] = []
        self._revision = 0  # of the newest event that came
        self._wake = asyncio.Event()

    @property
    def snapshot(self) -> Snapshot:
        return self.books.snapshot

    async def run(self) -> None:
        subscription = self.store.subscribe(set(WATCHED))
        self._revision = self.store.view.revision
        self._take_events(self._existing())
        pump = asyncio.create_task(self._pump(subscription), name="scheduler: watch")
        try:
            while not pump.done():
                await self._step()
            pump.result()
        except NotLeader:
            log.info("scheduler stops: leadership is lost")
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            close = getattr(subscription, "close", None)
            if close is not None:
                close()

    def _existing(self) -> list[Event]:
        events = []
        for kind in WATCHED:
            for obj in self.store.view.all(kind):
                record = self.store.view.record(key_of(obj))
                if record is not None:
                    events.append(Event(record.key, record.revision, None, record))
        return events

    async def _pump(self, subscription: AsyncIterator[tuple[int, list[Event]]]) -> None:
        try:
            async for revision, events in subscription:
                self._events += events
                self._revision = revision
                self._wake.set()
        finally:
            self._wake.set()

    # ---- events ----
    def _take_events(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.key.kind == "Pod":
                self._take_pod(event)
        applied = self.books.apply(self._revision, events)
        self.queue.wake(applied.nodes_changed, applied.freed, applied.volumes_changed)

    def _take_pod(self, event: Event) -> None:
        old = event.old.message if event.old else None
        record = event.new
        pod = record.message if record else None
        if old is not None and (pod is None or pod.metadata.uid != old.metadata.uid):
            self.queue.drop(old.metadata.uid)
            self.decisions.forget(old.metadata.uid)
        if record is None or not isinstance(pod, o.Pod):
            return
        uid = pod.metadata.uid
        if not wants_node(pod):
            self.queue.drop(uid)
            if terminating(pod) and not pod.spec.nodeName:
                self._give_back(uid)
            return
        waiting = Waiting(uid, record.key, self._classes.of(pod))
        known = self.queue.pods.get(uid)
        new = known is None or known.waiting.pods != waiting.pods
        if new and self.snapshot.held(uid) is None:  # else its binding is under way
            self.queue.put(Pending(waiting, (record.created, uid), asyncio.get_running_loop().time()))
            self.meter.incoming("PodAdd" if known is None else "PodUpdate", 1)

    def _give_back(self, uid: str) -> None:
        """The room of a binding that did not come about: others may want it."""
        if self.books.undo(uid) is not None:
            self.queue.wake(nodes_changed=False, freed=True)

    # ---- one window ----
    async def _step(self) -> None:
        events, self._events = self._events, []
        if events:
            self._take_events(events)
        loop = asyncio.get_running_loop()
        if self._binder.unsure:
            self._settle(await self._binder.resend())
            return
        self.queue.due(loop.time())
        batch = self.queue.take(WINDOW)
        if not batch:
            self._count_pending()
            await self._wait()
            return
        started = loop.time()
        judged = self._judge.decide(batch)
        self.windows += 1
        self.books.observer.planned(self.books.revision, self.windows, batch, judged.plan)
        self._note(judged, started)
        for waiting, story in judged.plan.refusals:
            self.queue.park(waiting.uid, story.by_usage)
        self._count(judged, loop.time() - started)
        await self._carry_out(judged)

    async def _wait(self) -> None:
        if self._events:
            return
        self._wake.clear()
        until = self.queue.later[0][0] if self.queue.later else None
        try:
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _note(self, judged: Judged, time: float) -> None:
        revision, window, at = self.books.revision, self.windows, self.now()
        pods = self.queue.pods
        made = []
        for waiting, node in judged.plan.bindings:
            one = pods[waiting.uid]
            made.append(Decision(waiting.uid, revision, window, at, time - one.since, one.attempts, node))
        for waiting, why in judged.plan.refusals:
            one = pods[waiting.uid]
            made.append(Decision(waiting.uid, revision, window, at, time - one.since, one.attempts, "", why))
        self.decisions.note(made)

    def _count(self, judged: Judged, spent: float) -> None:
        plan = judged.plan
        results = (
            ("scheduled", len(plan.bindings)), ("unschedulable", len(plan.refusals)), ("error", len(judged.failed)),
        )  # fmt: skip
        total = sum(number for _, number in results)
        for result, number in results:
            if number:
                self.meter.observe_schedule(result, number, spent * number / total)
        self._count_pending()

    def _count_pending(self) -> None:
        queue = self.queue
        self.meter.pending_pods(len(queue.ready), len(queue.later), len(queue.parked), 0)

    async def _carry_out(self, judged: Judged) -> None:
        """Binds, and writes the reasons that are new; what the store refuses is undone and tried again."""
        plan, now = judged.plan, self.now()
        news = [refusal for refusal in plan.refusals if self._is_news(refusal)]
        changes: list[Change] = [tell(refusal.waiting, refusal.explanation.message, now) for refusal in news]
        changes += [self._tell_failure(failed, now) for failed in judged.failed]
        if not changes and not plan.bindings:
            return
        try:
            settled, results = await self._binder.write(plan.bindings, changes)
        except Unavailable:
            for refusal in news:
                self._back_off(refusal.waiting.uid)
            return
        self._settle(settled)
        for refusal, result in zip(news, results, strict=False):
            if isinstance(result, Record):
                self._say(result.message, "Warning", "FailedScheduling", refusal.explanation.message)
            elif isinstance(result, Fault):
                self._back_off(refusal.waiting.uid)  # the reason was not written: looked at, and told, again
        if settled.bound or news:
            log.info("scheduler: %s", sentence(len(settled.bound), [one.explanation.message for one in news]))

    def _tell_failure(self, failed: Failed, now: float) -> Change:
        self._back_off(failed.waiting.uid)
        return tell(failed.waiting, f"internal error: {failed.error}", now, SCHEDULER_ERROR)

    def _is_news(self, refusal: Refusal) -> bool:
        pod = self.store.view.get(*refusal.waiting.key)
        if not isinstance(pod, o.Pod) or pod.metadata.uid != refusal.waiting.uid:
            return False
        return not told(pod, refusal.explanation.message)

    def _settle(self, settled: Settled) -> None:
        for binding in settled.bound:
            self.queue.drop(binding.waiting.uid)
            self.decisions.commit(binding.waiting.uid)
        if settled.freed:
            self.queue.wake(nodes_changed=False, freed=True)
        for binding in settled.failed:
            self._back_off(binding.waiting.uid)

    def _back_off(self, uid: str) -> None:
        pending = self.queue.pods.get(uid)
        if pending is None:
            return
        wait = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(pending.failures, BACKOFF_DOUBLINGS))
        pending.failures += 1
        jittered = wait * (0.5 + self.rng.random() / 2)
        self.queue.delay(uid, asyncio.get_running_loop().time() + jittered)

    def _say(self, pod: Object, grave: str, reason: str, message: str) -> None:
        self.recorder.say(Said(pod, grave, reason, message), "scheduler")
