"""The loop: events in, one window after the other decided and carried out."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

from shoal.master.controllers.base import Said, terminating
from shoal.master.model import Change, Event, Fault, NotLeader, Object, Record, Unavailable, key_of
from shoal.master.recorder import Recorder
from shoal.master.scheduler.classes import Classes, PodClass
from shoal.master.scheduler.core import Plan, Preemption, Refusal, Scheduler
from shoal.master.scheduler.queue import order
from shoal.master.scheduler.snapshot import Hold, Snapshot
from shoal.master.scheduling.binder import Binder, Settled
from shoal.master.scheduling.books import Books
from shoal.master.scheduling.changes import SCHEDULER_ERROR, nominate, sentence, tell, told, wants_node
from shoal.master.scheduling.decisions import Decision, Decisions, Observer
from shoal.master.scheduling.evictor import Evictor
from shoal.master.scheduling.gangs import GangWatch
from shoal.master.scheduling.intake import Intake
from shoal.master.scheduling.judge import Judge, Judged
from shoal.master.scheduling.meter import Meter, NoMeter
from shoal.master.scheduling.news import News
from shoal.master.scheduling.queue import Queue
from shoal.master.scheduling.reserve import Reserver
from shoal.master.stores import StoreFace
from shoal.proto.v1 import objects_pb2 as o

log = logging.getLogger("shoal.scheduler")

WINDOW = 5000  # pods of one plan: bounds how long the other loops wait
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 10.0
BACKOFF_DOUBLINGS = 7
REFRESH_SECONDS = 1.0  # how old the reasons get that pods tell when the cluster has changed ...
REFRESHED_AT_ONCE = 500  # ... as long as no more than these wait
WATCHED = (
    "Namespace", "Node", "StorageClass", "PersistentVolume", "PersistentVolumeClaim", "PodDisruptionBudget",
    "PodGroup", "Pod",
)  # fmt: skip


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
        refresh: bool = True,
        core: Scheduler | None = None,
    ) -> None:
        """`core` decides; without it one with the built-in profiles. `refresh`: pods that no event can help are looked
        at now and then, so that the reasons that they tell are true; tests leave it out to see what events alone do."""
        self.store, self.recorder, self.now, self.rng = store, recorder, now, rng
        self.meter: Meter = meter or NoMeter()
        classes = Classes()
        self.books = Books(Snapshot(classes), observer)
        self.queue = Queue(self.snapshot)
        self.decisions = Decisions()
        self.windows = 0  # plans made in this term
        self._intake = Intake(self.books, self.queue, classes, self.decisions, self._time)
        self._judge = Judge(self.snapshot, core)
        self._binder = Binder(store, self.books, now, rng, self.meter)
        self._evictor = Evictor(store, self._say, now, rng)
        self._reserver = Reserver(self.books, self.queue, self._time)
        self._gang_watch = GangWatch(self._time)
        self._events: list[Event] = []
        self._revision = 0  # of the newest event that came
        self._wake = asyncio.Event()
        self._refresh = refresh
        self._refresh_at: float | None = None
        self._news_window = -1  # that was the last when there were news

    @property
    def snapshot(self) -> Snapshot:
        return self.books.snapshot

    def _time(self) -> float:
        return asyncio.get_running_loop().time()

    async def run(self) -> None:
        subscription = self.store.subscribe(set(WATCHED))
        self._revision = self.store.view.revision
        self._take_events(self._existing())
        self._intake.restore()
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
        self._hear(self._intake.take(self._revision, events))
        added, self._intake.added = self._intake.added, 0
        if added:
            self.meter.incoming("PodAdd", added)

    def _hear(self, news: News) -> None:
        """Events that could change a refused pod's fate give it another turn."""
        if not news:
            return
        self._news_window = self.windows
        if self._refresh and self._refresh_at is None:
            self._refresh_at = self._time() + REFRESH_SECONDS
        woken = self.queue.lot.hear(news, self.windows, self.snapshot.counts.spaces)
        if number := self.queue.ready_all([*woken, *self.queue.lot.room()]):
            self.meter.incoming(news.name(), number)

    # ---- one window ----
    async def _step(self) -> None:
        events, self._events = self._events, []
        if events:
            self._take_events(events)
        if self._binder.unsure:
            self._settle(await self._binder.resend())
            return
        await self._evictor.resend()
        await self._reserve()
        self.queue.due(self._time())
        self._look_again()
        batch = order(self.queue.take(WINDOW))
        if not batch and not self._intake.odd:
            self._count_pending()
            await self._wait()
            return
        started = self._time()
        judged = self._judge.decide(batch)
        self.windows += 1
        self.books.observer.planned(self.books.revision, self.windows, batch, judged.plan)
        if judged.failed:
            self._recover(judged.plan)
        judged.failed += self._intake.take_odd()
        self._note(judged, started)
        fresh = self._fresh(judged.plan)
        news = self._park(judged.plan, fresh)
        self._count(judged, self._time() - started)
        await self._carry_out(judged)
        self._hear(news)
        self._go_on(judged.plan, fresh)

    async def _reserve(self) -> None:
        """Keeps room for whom others overtake."""
        if self._reserver.at is None or self._time() < self._reserver.at:
            return
        done = self._reserver.tick()
        self._hear(done.news)
        try:
            results = await self.store.write([nominate(one.waiting, one.node) for one in done.kept])
        except Unavailable as fault:
            log.warning("nominations are not written down: %s", fault)  # they hold all the same
            return
        for pending, result in zip(done.kept, results, strict=True):
            if isinstance(result, Record):
                waited = f"{self._time() - pending.since:.0f} s"
                message = f"Waited {waited} while others were placed: room is kept for it on node {pending.node}"
                self._say(result.message, "Normal", "RoomReserved", message)

    def _look_again(self) -> None:
        """Reasons age: whoever was refused before the last news tells anew why it waits, some at a time."""
        if self._refresh_at is None or self._time() < self._refresh_at:
            return
        uids = self.queue.lot.stalest(self._news_window, REFRESHED_AT_ONCE)
        self._refresh_at = self._time() + REFRESH_SECONDS if len(uids) == REFRESHED_AT_ONCE else None
        if number := self.queue.ready_all(uids):
            self.meter.incoming("UnschedulableTimeout", number)

    async def _wait(self) -> None:
        if self._events:
            return
        self._wake.clear()
        until = self.queue.later[0][0] if self.queue.later else None
        for other in (self._refresh_at, self._reserver.at):
            until = other if until is None or (other is not None and other < until) else until
        try:
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _fresh(self, plan: Plan) -> list[Preemption]:
        """Those that change something. A pod that is nominated again to the same node is no news, else two of them
        would give each other turns for ever."""
        pods = self.queue.pods
        return [one for one in plan.preemptions if one.victims or pods[one.waiting.uid].node != one.node]

    def _park(self, plan: Plan, fresh: Sequence[Preemption]) -> News:
        """The refused wait for news; what the plan itself changes is some already."""
        queue, news = self.queue, News()
        nominated = {one.waiting.uid: one.node for one in plan.preemptions}
        for waiting, story in plan.refusals:
            pending = queue.pods[waiting.uid]
            self._nominate(waiting.uid, nominated.get(waiting.uid, ""), news)
            evicts = not pending.node and self._intake.evicts(waiting.pods)
            queue.lot.park(pending, story.reasons, evicts, self.windows)
        if queue.lot.gangs:
            self.recorder.say_all(self._gang_watch.due(self.store.view, plan.refusals), "scheduler")
        for binding in plan.bindings if queue.nominated else ():
            if queue.pods[binding.waiting.uid].node != binding.node:
                self._nominate(binding.waiting.uid, "", news)
        if plan.preemptions:
            for uid in list(queue.nominated):
                if self.snapshot.held(uid) is None:  # somebody of higher priority has its room
                    self._nominate(uid, "", news)
                    queue.ready(uid)
        if len(queue.lot):
            news.came += {id(one.waiting.pods): one.waiting.pods for one in plan.bindings}.values()
            news.came += {id(one.waiting.pods): one.waiting.pods for one in fresh}.values()
            news.left += self._leaving(fresh)
        return news

    def _recover(self, plan: Plan) -> None:
        """A plan that failed half-way may have marked victims that nobody will evict, and pushed nominated pods out."""
        sure = {victim.uid for one in plan.preemptions for victim in one.victims}
        sure |= {one.uid for one in self._evictor.due}
        for name in self.snapshot.names:
            for uid, hold in list(self.snapshot.pods_on(name).items()):
                if hold.leaving and uid not in sure and hold.key is not None:
                    pod = self.store.view.get(*hold.key)
                    if pod is not None and pod.metadata.uid == uid and not terminating(pod):
                        self.books.undo(uid)
                        self.books.commit(uid, hold._replace(leaving=False))
        for uid in list(self.queue.nominated):
            self.queue.ready(uid)

    def _nominate(self, uid: str, node: str, news: News) -> None:
        """`node` "": not any more."""
        pending = self.queue.pods[uid]
        if pending.node and pending.node != node:
            news.free(pending.node, pending.waiting.pods)
        pending.node = node
        if node:
            self.queue.nominated[uid] = pending
        else:
            self.queue.nominated.pop(uid, None)

    def _leaving(self, preemptions: Sequence[Preemption]) -> list[PodClass]:
        holds = (self.snapshot.held(victim.uid) for one in preemptions for victim in one.victims)
        return [hold.pods for hold in holds if hold is not None]

    def _go_on(self, plan: Plan, fresh: Sequence[Preemption]) -> None:
        """Where one of a class found a place, the next may too."""
        if not len(self.queue.lot):
            return
        placed = Counter(id(one.waiting.pods) for one in plan.bindings)
        placed.update(id(one.waiting.pods) for one in fresh)
        woken = [*self.queue.lot.after(placed, self.windows), *self.queue.lot.room()]
        if number := self.queue.ready_all(woken):
            self.meter.incoming("AssignedPodAdd", number)

    def _note(self, judged: Judged, time: float) -> None:
        revision, window, at = self.books.revision, self.windows, self.now()
        pods, accounts = self.queue.pods, judged.accounts
        made = []
        for waiting, node in judged.plan.bindings:
            one = pods[waiting.uid]
            said = accounts.get(waiting.pods)
            waited = time - one.since
            made.append(Decision(waiting.uid, revision, window, at, waited, one.attempts, node, None, (), False, said))
        nominated = {one.waiting.uid: one for one in judged.plan.preemptions}
        for waiting, why in judged.plan.refusals:
            one, plan = pods[waiting.uid], nominated.get(waiting.uid)
            node, victims = (plan.node, plan.victims) if plan else ("", ())
            said, waited = accounts.get(waiting.pods), time - one.since
            made.append(
                Decision(waiting.uid, revision, window, at, waited, one.attempts, node, why, victims, False, said)
            )
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
        self.meter.pending_pods(queue.active, len(queue.later), len(queue.lot), len(queue.gated))

    # ---- carrying it out ----
    async def _carry_out(self, judged: Judged) -> None:
        """Binds, nominates, writes the reasons that are new; then victims go. What the store refuses is undone and
        tried again."""
        plan, now = judged.plan, self.now()
        pods = self.queue.pods
        news = [refusal for refusal in plan.refusals if self._is_news(refusal)]
        changes: list[Change] = [
            tell(one.waiting, one.explanation.message, now, pods[one.waiting.uid].node) for one in news
        ]
        for waiting, error in judged.failed:
            self._back_off(waiting.uid)
            changes.append(tell(waiting, f"internal error: {error}", now, reason=SCHEDULER_ERROR))
        if changes or plan.bindings:
            try:
                settled, results = await self._binder.write(plan.bindings, changes)
            except Unavailable:
                for refusal in news:
                    self._back_off(refusal.waiting.uid)
                self._hear(freed(self.books.spare(plan.preemptions)))
                return
            self._settle(settled)
            self._told(news, results)
            if settled.bound or news:
                log.info("scheduler: %s", sentence(len(settled.bound), [one.explanation.message for one in news]))
        if plan.preemptions:
            await self._evict(plan.preemptions)

    async def _evict(self, preemptions: Sequence[Preemption]) -> None:
        """The victims of those whose nomination is written down; the others keep theirs, and their place."""
        good = [one for one in preemptions if self._is_nominated(one)]
        if len(good) < len(preemptions):
            sure = {one.waiting.uid for one in good}
            failed = [one for one in preemptions if one.waiting.uid not in sure]
            for one in failed:
                self._back_off(one.waiting.uid)
            self._hear(freed(self.books.spare(failed)))
        for one in good:
            if one.victims:
                self.meter.preempted(len(one.victims))
        await self._evictor.evict(good)

    def _is_nominated(self, preemption: Preemption) -> bool:
        pod = self.store.view.get(*preemption.waiting.key)
        return (
            isinstance(pod, o.Pod)
            and pod.metadata.uid == preemption.waiting.uid
            and wants_node(pod)
            and pod.status.nominatedNodeName == preemption.node
        )

    def _told(self, news: Sequence[Refusal], results: Sequence[object]) -> None:
        for refusal, result in zip(news, results, strict=False):
            if isinstance(result, Record):
                self._say(result.message, "Warning", "FailedScheduling", refusal.explanation.message)
            elif isinstance(result, Fault):
                self._back_off(refusal.waiting.uid)  # the reason was not written: looked at, and told, again

    def _is_news(self, refusal: Refusal) -> bool:
        waiting = refusal.waiting
        pod = self.store.view.get(*waiting.key)
        if not isinstance(pod, o.Pod) or pod.metadata.uid != waiting.uid:
            return False
        return not told(pod, refusal.explanation.message, self.queue.pods[waiting.uid].node)

    def _settle(self, settled: Settled) -> None:
        if settled.bound and len(self.queue.lot):
            pods = self.queue.pods
            self._reserver.bound(pods[one.waiting.uid].place for one in settled.bound if one.waiting.uid in pods)
        for binding in settled.bound:
            self.queue.drop(binding.waiting.uid)
            self.decisions.commit(binding.waiting.uid)
        for binding in settled.failed:
            self._back_off(binding.waiting.uid)
        self._hear(freed(settled.freed))

    def _back_off(self, uid: str) -> None:
        pending = self.queue.pods.get(uid)
        if pending is None:
            return
        wait = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(pending.failures, BACKOFF_DOUBLINGS))
        pending.failures += 1
        jittered = wait * (0.5 + self.rng.random() / 2)
        self.queue.delay(uid, self._time() + jittered)

    def _say(self, pod: Object, grave: str, reason: str, message: str) -> None:
        self.recorder.say(Said(pod, grave, reason, message), "scheduler")


def freed(holds: Sequence[Hold]) -> News:
    news = News()
    for hold in holds:
        news.free(hold.node, hold.pods)
    return news
