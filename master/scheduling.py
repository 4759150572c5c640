"""The scheduler's loop around the pure core: pending pods in, bindings and reasons out."""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.master.controllers.base import Said, seconds, set_condition, terminating
from shoal.master.model import (
    FINAL_PHASES,
    Change,
    Event,
    Fault,
    Modify,
    NotLeader,
    Object,
    Record,
    Unavailable,
    key_of,
)
from shoal.master.recorder import Recorder
from shoal.master.scheduler.classes import Classes
from shoal.master.scheduler.core import Binding, Plan, Refusal, Scheduler, Waiting
from shoal.master.scheduler.explain import same_story
from shoal.master.scheduler.snapshot import Snapshot
from shoal.master.stores import StoreFace
from shoal.master.volumes import SELECTED_NODE
from shoal.proto.v1 import objects_pb2 as o

log = logging.getLogger("shoal.scheduler")

WINDOW = 2000  # pods of one plan: bounds how long the other loops wait
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 10.0
BACKOFF_DOUBLINGS = 7
RESEND_SECONDS = 1.0
WATCHED = ("Node", "StorageClass", "PersistentVolume", "PersistentVolumeClaim", "Pod")


class Meter(Protocol):
    """What the scheduler counts: scheduler_schedule_attempts_total, _sli_duration_seconds, _pending_pods."""

    def observe_schedule(self, result: str, pods: int, seconds: float) -> None:
        """`result`: scheduled, unschedulable, error; `seconds` of deciding, for all of them."""

    def observe_bound(self, seconds: float) -> None:
        """From a pod's creation to its committed binding."""

    def pending_pods(self, active: int, backoff: int, unschedulable: int) -> None:
        """How many wait, and for what."""


class NoMeter:
    """Counts nothing."""

    def observe_schedule(self, result: str, pods: int, seconds: float) -> None:
        """Nothing."""

    def observe_bound(self, seconds: float) -> None:
        """Nothing."""

    def pending_pods(self, active: int, backoff: int, unschedulable: int) -> None:
        """Nothing."""


@dataclass(slots=True)
class Pending:
    """A pod that has no node yet. `arrival` orders the queue."""

    waiting: Waiting
    arrival: tuple[int, str]  # etcd's create revision, uid
    by_usage: bool = False  # refused for lack of room only other pods take
    failures: int = 0


class Queue:
    """Pods by what they wait for: their turn (`ready`), a backoff, or a change in the cluster (`parked`)."""

    def __init__(self) -> None:
        self.pods: dict[str, Pending] = {}
        self.ready: list[tuple[tuple[int, str], str]] = []
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
            heapq.heappush(self.ready, (pending.arrival, uid))

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
        """Up to `limit` pods by arrival."""
        batch: list[Waiting] = []
        while self.ready and len(batch) < limit:
            _, uid = heapq.heappop(self.ready)
            self._queued.discard(uid)
            if uid in self.pods:
                batch.append(self.pods[uid].waiting)
        return batch


class SchedulingLoop:
    """Runs until leadership is lost or the task is cancelled. While one window is being bound the next one forms."""

    def __init__(
        self,
        store: StoreFace,
        recorder: Recorder,
        now: Callable[[], float],
        rng: random.Random,
        meter: Meter | None = None,
    ) -> None:
        self.store = store
        self.recorder = recorder
        self.now = now
        self.rng = rng
        self.meter: Meter = meter or NoMeter()
        self.snapshot = Snapshot()
        self.queue = Queue()
        self._classes = Classes()
        self._scheduler = Scheduler()
        self._events: list[Event] = []
        self._wake = asyncio.Event()
        self._unsure: list[Binding] = []

    async def run(self) -> None:
        subscription = self.store.subscribe(set(WATCHED))
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
            async for _revision, events in subscription:
                self._events += events
                self._wake.set()
        finally:
            self._wake.set()

    # ---- events ----
    def _take_events(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.key.kind == "Pod":
                self._take_pod(event)
        applied = self.snapshot.apply(events)
        self.queue.wake(applied.nodes_changed, applied.freed, applied.volumes_changed)

    def _take_pod(self, event: Event) -> None:
        old = event.old.message if event.old else None
        record = event.new
        pod = record.message if record else None
        if old is not None and (pod is None or pod.metadata.uid != old.metadata.uid):
            self.queue.drop(old.metadata.uid)
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
            self.queue.put(Pending(waiting, (record.created, uid)))

    def _give_back(self, uid: str) -> None:
        """The room of a binding that did not come about: others may want it."""
        if self.snapshot.undo(uid):
            self.queue.wake(nodes_changed=False, freed=True)

    # ---- one window ----
    async def _step(self) -> None:
        events, self._events = self._events, []
        self._take_events(events)
        loop = asyncio.get_running_loop()
        if self._unsure:
            await self._resend()
            return
        self.queue.due(loop.time())
        batch = self.queue.take(WINDOW)
        if not batch:
            await self._wait()
            return
        started = loop.time()
        plan = self._scheduler.schedule(self.snapshot, batch)
        spent = loop.time() - started
        self._park(plan.refusals)
        self._count(plan, spent)
        await self._carry_out(plan)

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

    def _park(self, refusals: Iterable[Refusal]) -> None:
        for waiting, story in refusals:
            self.queue.park(waiting.uid, story.by_usage)

    def _count(self, plan: Plan, spent: float) -> None:
        total = len(plan.bindings) + len(plan.refusals)
        for result, number in (("scheduled", len(plan.bindings)), ("unschedulable", len(plan.refusals))):
            if number:
                self.meter.observe_schedule(result, number, spent * number / total)
        queue = self.queue
        self.meter.pending_pods(len(queue.ready), len(queue.later), len(queue.parked))

    async def _carry_out(self, plan: Plan) -> None:
        """Binds, and writes the reasons that are new; what the store refuses is undone and tried again."""
        now = self.now()
        news = [refusal for refusal in plan.refusals if self._is_news(refusal)]
        changes: list[Change] = [bind(binding, now) for binding in plan.bindings]
        changes += [tell(refusal, now) for refusal in news]
        if not changes:
            return
        nodes = self._claims_nodes(plan.bindings)
        try:
            results = (await self.store.write([*nodes, *changes]))[len(nodes) :]
        except NotLeader:
            self._undo(plan.bindings)
            raise
        except Unavailable as fault:
            log.warning("the store does not answer (%s); %d bindings are sent again", fault, len(plan.bindings))
            self._unsure = list(plan.bindings)
            for refusal in news:
                self._back_off(refusal.waiting.uid)
            return
        bound = self._settle(plan.bindings, results)
        for refusal, result in zip(news, results[len(plan.bindings) :], strict=True):
            if isinstance(result, Record):
                self._say(result.message, "Warning", "FailedScheduling", refusal.explanation.message)
            elif isinstance(result, Fault):
                self._back_off(refusal.waiting.uid)  # the reason was not written: looked at, and told, again
        if bound or news:
            log.info("scheduler: %s", sentence(bound, [refusal.explanation.message for refusal in news]))

    def _claims_nodes(self, bindings: Iterable[Binding]) -> list[Change]:
        """Writes down, before the pods are bound, where the claims without a volume are to have one: it must not be
        forgotten when the pod ends before the volume is made."""
        changes: dict[str, Change] = {}
        for binding in bindings:
            for claim in self.snapshot.volumes.undecided(binding.waiting.pods.claims):
                changes.setdefault(claim.metadata.uid, select_node(claim, binding.node))
        return list(changes.values())

    def _is_news(self, refusal: Refusal) -> bool:
        pod = self.store.view.get(*refusal.waiting.key)
        if not isinstance(pod, o.Pod) or pod.metadata.uid != refusal.waiting.uid:
            return False
        return not told(pod, refusal.explanation.message)

    def _settle(self, bindings: Sequence[Binding], results: Sequence[Record | Fault | None]) -> int:
        """Compares what was asked with what is committed; the number of pods bound."""
        bound = 0
        for binding, result in zip(bindings, results, strict=False):
            uid = binding.waiting.uid
            if isinstance(result, NotLeader):
                raise result
            if isinstance(result, Unavailable):
                self._unsure.append(binding)
                continue
            pod = result.message if isinstance(result, Record) else None
            if isinstance(pod, o.Pod) and pod.metadata.uid == uid and pod.spec.nodeName == binding.node:
                bound += 1
                self.queue.drop(uid)
                self.meter.observe_bound(max(0.0, self.now() - seconds(pod.metadata.creationTimestamp)))
                continue
            self._undo([binding])
            if isinstance(pod, o.Pod) and pod.spec.nodeName:
                continue  # somebody else bound it: its event says where
            self._back_off(uid)
            self.meter.observe_schedule("error", 1, 0.0)
        return bound

    async def _resend(self) -> None:
        """Bindings whose outcome is not known keep their room, else it could be given away twice; the edit of a pod
        that was bound after all changes nothing. Nothing else is placed before they are settled."""
        unsure, self._unsure = self._unsure, []
        now = self.now()
        try:
            nodes = self._claims_nodes(unsure)
            results = await self.store.write([*nodes, *(bind(binding, now) for binding in unsure)])
            self._settle(unsure, results[len(nodes) :])
        except Unavailable as fault:
            log.warning("the store still does not answer: %s", fault)
            self._unsure = unsure
        if self._unsure:
            await asyncio.sleep(RESEND_SECONDS * (0.5 + self.rng.random() / 2))

    def _undo(self, bindings: Iterable[Binding]) -> None:
        """Gives back what was assumed, unless an event has said meanwhile that it is bound."""
        for binding in bindings:
            pod = self.store.view.get(*binding.waiting.key)
            if isinstance(pod, o.Pod) and pod.metadata.uid == binding.waiting.uid and pod.spec.nodeName:
                hold = self.snapshot.held(binding.waiting.uid)
                if hold is not None and hold.node == pod.spec.nodeName:
                    continue
            self._give_back(binding.waiting.uid)

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


# ---- changes ----
def wants_node(pod: o.Pod) -> bool:
    return not pod.spec.nodeName and not terminating(pod) and pod.status.phase not in FINAL_PHASES


def bind(binding: Binding, now: float) -> Change:
    """Sets the node, on a pod that still wants one."""
    node = binding.node
    condition = o.Condition(type="PodScheduled", status="True")

    def edit(found: Object) -> bool:
        if not isinstance(found, o.Pod) or not wants_node(found):
            return False
        found.spec.nodeName = node
        set_condition(found.status.conditions, condition, now)
        return True

    return Modify(binding.waiting.key, edit, uid=binding.waiting.uid)


def select_node(claim: o.PersistentVolumeClaim, node: str) -> Change:
    """Ties a claim that has no volume yet to a node."""

    def edit(found: Object) -> bool:
        if not isinstance(found, o.PersistentVolumeClaim) or found.spec.volumeName:
            return False
        if SELECTED_NODE in found.metadata.annotations:
            return False
        found.metadata.annotations[SELECTED_NODE] = node
        return True

    return Modify(key_of(claim), edit, uid=claim.metadata.uid)


def tell(refusal: Refusal, now: float) -> Change:
    """Writes why the pod waits; only when the set of reasons is another than the one it says already."""
    message = refusal.explanation.message
    condition = o.Condition(type="PodScheduled", status="False", reason="Unschedulable", message=message)

    def edit(found: Object) -> bool:
        if not isinstance(found, o.Pod) or not wants_node(found) or told(found, message):
            return False
        return set_condition(found.status.conditions, condition, now)

    return Modify(refusal.waiting.key, edit, uid=refusal.waiting.uid)


def told(pod: o.Pod, message: str) -> bool:
    for condition in pod.status.conditions:
        if condition.type == "PodScheduled":
            return condition.status == "False" and same_story(condition.message, message)
    return False


def sentence(bound: int, waiting: Sequence[str]) -> str:
    """One cycle for the log: what was bound, how many wait anew, and why the first of them does."""
    parts = [f"bound {bound} {'pod' if bound == 1 else 'pods'}"] if bound else []
    if waiting:
        parts.append(f"{len(waiting)} {'pod waits' if len(waiting) == 1 else 'pods wait'} ({waiting[0]})")
    return ", ".join(parts)
