"""Both loops on the real store over the in-memory etcd: from a Deployment to running pods, and through its faults."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from shoal.master.controllers.base import Controller, Outcome, own_key, ready, set_condition, terminating
from shoal.master.controllers.node import SWEEP, Beats
from shoal.master.controllers.registry import all_controllers
from shoal.master.loop import ControllerLoop
from shoal.master.model import (
    Change,
    Create,
    Delete,
    Event,
    Fault,
    Key,
    Modify,
    NoSpace,
    Object,
    Record,
    Unavailable,
    View,
    key_of,
)
from shoal.master.recorder import Recorder
from shoal.master.scheduling import SchedulingLoop
from shoal.master.scheduling.changes import Bind
from shoal.master.store.memory import Faults, MemoryEtcd
from shoal.master.store.store import Store
from shoal.master.store.watch import Subscription
from shoal.master.stores import StoreFace
from shoal.master.volumes import SELECTED_NODE
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import World, claim, deployment, made_class, namespace, node, pod, replicaset
from tests.unit.store_support import Clock, leading
from tests.virtual_loop import VirtualLoop, virtual

DEADLINE_SECONDS = 20.0


class Master:
    """Controllers, scheduler and recorder on a leading store, and agents that start and end what they are given."""

    def __init__(self, store: Store | World, controllers: Sequence[Controller] | None = None) -> None:
        self.store = store
        self.alive: set[str] = set()
        self.agents_work = True
        now, rng = Clock(), random.Random(11)
        self.recorder = Recorder(store, now, rng)
        chosen = controllers if controllers is not None else all_controllers(rng, self.beats, deaths_kept_s=3600.0)
        self.loop = ControllerLoop(store, chosen, self.recorder, now, rng)
        self.scheduling = SchedulingLoop(store, self.recorder, now, rng)

    def beats(self) -> Beats:
        time = asyncio.get_running_loop().time()
        return Beats(time, dict.fromkeys(self.alive, time), time - 1000.0)

    async def agents(self) -> None:
        async for _revision, events in self.store.subscribe({"Pod"}):
            pods = [e.new.message for e in events if e.new is not None]
            changes = [c for p in pods if isinstance(p, o.Pod) and self.agents_work and (c := agent(p)) is not None]
            if changes:
                await self.store.write(changes)

    async def create(self, *objects: Object) -> None:
        for result in await self.store.write([Create(obj) for obj in objects]):
            assert isinstance(result, Record), result

    async def join(self, *names: str, cpu: str = "4") -> None:
        self.alive |= set(names)
        await self.create(*(node(name, is_ready=False, cpu=cpu) for name in names))

    def pods(self) -> list[o.Pod]:
        return [p for p in self.store.view.all("Pod") if isinstance(p, o.Pod)]

    async def until(self, what: Callable[[], bool], kinds: Iterable[str] | None = None) -> None:
        """Waits for a condition on the view; checks after every commit."""
        subscription = self.store.subscribe(None if kinds is None else set(kinds))
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not what():
                    await anext(subscription)
        finally:
            if isinstance(subscription, Subscription):
                subscription.close()


def agent(p: o.Pod) -> Change | None:
    if not p.spec.nodeName:
        return None
    if terminating(p):
        return Delete(key_of(p), uid=p.metadata.uid)
    if ready(p) or p.status.phase in ("Succeeded", "Failed"):
        return None

    def edit(found: Object) -> bool:
        assert isinstance(found, o.Pod)
        found.status.phase = "Running"
        return set_condition(found.status.conditions, o.Condition(type="Ready", status="True"), 0.0)

    return Modify(key_of(p), edit, uid=p.metadata.uid)


@asynccontextmanager
async def master(
    faults: Faults | None = None, controllers: Sequence[Controller] | None = None
) -> AsyncGenerator[Master]:
    async with leading(MemoryEtcd(), faults) as (store, _port, _leadership), at_work(Master(store, controllers)) as m:
        yield m


@asynccontextmanager
async def at_work(m: Master) -> AsyncGenerator[Master]:
    """Its loops run; none of them may fail."""
    parts = [m.loop.run(), m.scheduling.run(), m.recorder.run(), m.agents()]
    tasks = [asyncio.create_task(part) for part in parts]
    await m.create(namespace())
    try:
        yield m
        assert not [t for t in tasks if t.done() and not t.cancelled() and t.exception()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def available(m: Master, count: int) -> bool:
    found = m.store.view.get("Deployment", "default", "web")
    return isinstance(found, o.Deployment) and found.status.availableReplicas == count == found.status.updatedReplicas


async def test_from_a_deployment_to_pods_on_three_nodes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with master() as m:
            await m.join("n0", "n1", "n2")
            await m.create(deployment(replicas=3))
            await m.until(lambda: available(m, 3))
            assert sorted(p.spec.nodeName for p in m.pods()) == ["n0", "n1", "n2"]
            await m.until(lambda: len(list(m.store.view.all("Event"))) >= 3)
            reasons = {e.reason for e in m.store.view.all("Event") if isinstance(e, o.Event)}
            assert {"SuccessfulCreate", "ScalingReplicaSet", "AgentReady"} <= reasons
    assert any("created 3 pods" in record.message for record in caplog.records)
    assert any("bound" in record.message for record in caplog.records)


async def test_a_pending_pod_says_why_and_goes_when_a_node_comes() -> None:
    async with master() as m:
        await m.create(pod("p", cpu="6"))
        await m.until(lambda: "no nodes" in scheduled(m, "p").message)
        await m.join("small")
        await m.until(lambda: "1 Insufficient cpu (short of 2000m at best)" in scheduled(m, "p").message)
        record = m.store.view.record(Key("Pod", "default", "p"))
        assert record is not None
        await m.join("small2")
        await m.until(
            lambda: all(e.waiting.uid in m.scheduling.queue.lot.where for e in m.scheduling.queue.pods.values())
        )
        again = m.store.view.record(Key("Pod", "default", "p"))
        assert again is not None and again.revision == record.revision  # the same set of reasons: no write
        await m.join("big", cpu="8")
        await m.until(lambda: scheduled(m, "p").status == "True")
        assert m.pods()[0].spec.nodeName == "big"


def scheduled(m: Master, name: str) -> o.Condition:
    found = m.store.view.get("Pod", "default", name)
    assert isinstance(found, o.Pod)
    return next((c for c in found.status.conditions if c.type == "PodScheduled"), o.Condition())


async def test_claims_classes_and_volumes_wake_who_waits_for_them() -> None:
    async with master() as m:
        await m.join("n0", "n1")
        one = pod("p")
        one.spec.volumes.add(name="v").persistentVolumeClaim.claimName = "data"
        await m.create(one)
        await m.until(lambda: "claim data does not exist" in scheduled(m, "p").message)
        await m.create(claim("data"))
        await m.until(lambda: "claim data is not bound yet" in scheduled(m, "p").message)
        await m.create(made_class("local"))
        await m.until(lambda: scheduled(m, "p").status == "True")
        home = m.pods()[0].spec.nodeName
        await m.until(lambda: bool(m.store.view.volumes_on(home)))

        def bound() -> bool:
            found = m.store.view.get("PersistentVolumeClaim", "default", "data")
            assert isinstance(found, o.PersistentVolumeClaim)
            return found.status.phase == "Bound" and found.metadata.annotations[SELECTED_NODE] == home

        await m.until(bound)


async def test_room_that_becomes_free_wakes_who_waits_for_it() -> None:
    async with master() as m:
        await m.join("n0")
        await m.create(pod("a", cpu="3"))
        await m.until(lambda: scheduled(m, "a").status == "True")
        await m.create(pod("b", cpu="3"))
        await m.until(lambda: scheduled(m, "b").status == "False")
        await m.store.write([Delete(Key("Pod", "default", "a"))])
        await m.until(lambda: scheduled(m, "b").status == "True")


@pytest.mark.parametrize("seed", range(3))
async def test_lost_and_refused_answers_double_nothing_and_oversell_nothing(seed: int) -> None:
    faults = Faults(rng=random.Random(seed))
    async with master(faults) as m:
        await m.join("n0", "n1", cpu="2")
        faults.lose_rate, faults.refuse_rate = 0.3, 0.2
        web = deployment(replicas=6)
        web.spec.template.spec.containers[0].resources.requests["cpu"].text = "600m"
        await m.create(web)
        seen: list[int] = []

        def settled() -> bool:
            seen.append(len(m.pods()))
            for name in ("n0", "n1"):
                assert len(m.store.view.pods_on(name)) <= 3
            return len(m.pods()) == 6 == sum(map(ready, m.pods()))

        await m.until(settled)
        assert max(seen) == 6


class Late(World):
    """A store whose answers get lost: what was committed shows in the view only with the next call that is answered,
    as when etcd is away from the moment it has committed."""

    def __init__(self, losses: int, kind: str) -> None:
        super().__init__()
        self.losses, self.kind = losses, kind
        self.hidden: list[Change] = []
        self.meanwhile: list[Change] = []  # committed by others, and seen, while the answer is on its way

    async def write(self, changes: Sequence[Change], *, low_priority: bool = False) -> list[Record | Fault | None]:
        await asyncio.sleep(0)
        concerned = any(self._concerns(change) for change in changes)
        if self.losses and concerned and not low_priority:
            self.losses -= 1
            self.hidden = self.hidden or list(changes)
            self.apply(self.meanwhile)
            raise Unavailable("the answer was lost", "unknown")
        hidden, self.hidden = self.hidden, []
        self.apply(hidden)
        return await super().write(changes, low_priority=low_priority)

    def _concerns(self, change: Change) -> bool:
        if self.kind == "create":
            return isinstance(change, Create) and bool(change.object.metadata.ownerReferences)
        return isinstance(change, Modify) and isinstance(change.edit, Bind)


@pytest.mark.parametrize("losses", [1, 2])
async def test_creates_of_unknown_outcome_are_sent_again_before_anything_is_counted(losses: int) -> None:
    world = Late(losses, "create")
    async with at_work(Master(world)) as m:
        await m.join("n0")
        await m.create(replicaset(replicas=3))
        await m.until(lambda: len(m.pods()) == 3 == sum(map(ready, m.pods())))
    created = [e for e in world.events if e.key.kind == "Pod" and e.old is None]
    assert len(created) == 3
    assert world.losses == 0


async def test_bindings_of_unknown_outcome_keep_their_room() -> None:
    world = Late(1, "bind")
    world.meanwhile = [Create(pod("late", cpu="1"))]
    async with at_work(Master(world)) as m:
        await m.join("n0", cpu="2")
        await m.create(*(pod(f"a{i}", cpu="1") for i in range(2)))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while world.losses:
                await asyncio.sleep(0)
        await m.until(lambda: scheduled(m, "late").status == "False")
        assert sorted(p.metadata.name for p in m.store.view.pods_on("n0")) == ["a0", "a1"]


class FullOnce:
    """A store whose etcd has no room for the scheduler's first write."""

    def __init__(self, store: StoreFace) -> None:
        self._store, self.refused = store, 0

    @property
    def view(self) -> View:
        return self._store.view

    async def write(self, changes: Sequence[Change], *, low_priority: bool = False) -> Sequence[Record | Fault | None]:
        if not self.refused:
            self.refused = len(changes)
            return [NoSpace("etcd is full") for _ in changes]
        return await self._store.write(changes, low_priority=low_priority)

    def subscribe(self, kinds: Collection[str] | None) -> AsyncIterator[tuple[int, list[Event]]]:
        return self._store.subscribe(kinds)


async def test_a_reason_that_could_not_be_written_is_told_later() -> None:
    async with leading(MemoryEtcd()) as (store, _port, _leadership):
        m = Master(store)
        full = FullOnce(store)
        m.scheduling = SchedulingLoop(full, m.recorder, Clock(), random.Random(1))
        async with at_work(m):
            await m.create(pod("p", cpu="6"))
            await m.until(lambda: "no nodes" in scheduled(m, "p").message)
            assert full.refused == 1


async def test_a_rollout_goes_through_and_the_old_pods_leave() -> None:
    async with master() as m:
        await m.join("n0", "n1")
        await m.create(deployment(replicas=2))
        await m.until(lambda: available(m, 2))
        before = {p.metadata.uid for p in m.pods()}

        def edit(found: Object) -> bool:
            assert isinstance(found, o.Deployment)
            found.spec.template.spec.containers[0].image = "web:2"
            return True

        await m.store.write([Modify(Key("Deployment", "default", "web"), edit)])
        await m.until(
            lambda: available(m, 2) and len(m.pods()) == 2 and not before & {p.metadata.uid for p in m.pods()}
        )


async def test_bindings_by_others_win_and_the_books_stay_right() -> None:
    def edit(found: Object) -> bool:
        assert isinstance(found, o.Pod)
        if found.spec.nodeName:
            return False
        found.spec.nodeName = "n0"
        return True

    async with master() as m:
        await m.join("n0", "n1", cpu="64")
        raced = [pod(f"raced{i}", cpu="1") for i in range(20)]
        changes = [change for one in raced for change in (Create(one), Modify(key_of(one), edit))]
        await m.store.write([*changes, *(Create(pod(f"p{i}", cpu="1")) for i in range(20))])
        await m.until(lambda: len(m.pods()) == 40 == sum(map(ready, m.pods())))

        def books_agree() -> bool:
            snapshot = m.scheduling.snapshot
            used = {name: int(snapshot.used[0, row]) for name, row in snapshot.row.items()}
            return used == {name: 1000 * len(m.store.view.pods_on(name)) for name in ("n0", "n1")}

        async with asyncio.timeout(DEADLINE_SECONDS):
            while not books_agree() or m.scheduling.queue.pods:
                await asyncio.sleep(0.01)


async def test_the_loops_stop_when_leadership_is_lost() -> None:
    async with leading(MemoryEtcd()) as (store, _port, leadership):
        m = Master(store)
        tasks = [asyncio.create_task(part) for part in (m.loop.run(), m.scheduling.run(), m.recorder.run())]
        await m.create(namespace(), node("n0", is_ready=False))
        leadership.lose("the test says so")
        m.alive.add("n0")
        m.loop.poke("node", SWEEP)
        await asyncio.wait_for(tasks[0], DEADLINE_SECONDS)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_controller_that_fails_is_called_again_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def reconcile(_view: object, key: Key, _now: float) -> Outcome:
        calls.append(key.name)
        if key.name == "bad" and calls.count("bad") < 3:
            raise ValueError("a bug")
        return Outcome()

    fragile = Controller("fragile", {"Pod": own_key}, reconcile)
    async with master(controllers=[fragile]) as m:
        await m.create(pod("bad"), pod("good"))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while calls.count("bad") < 3 or "good" not in calls:
                await asyncio.sleep(0.01)
    assert any("fragile pod default/bad" in record.message for record in caplog.records)


def test_a_costly_object_leaves_time_for_the_others() -> None:
    calls: dict[str, list[tuple[float, int]]] = {"big": [], "small": []}
    world = World()

    def reconcile(view: View, key: Key, now: float) -> Outcome:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        if key.name == "big":
            loop.spend(0.02)
        pods = [pod for pod in view.all("Pod") if pod.metadata.name == key.name]
        calls[key.name].append((loop.time(), len(pods[0].metadata.annotations)))
        return Outcome()

    async def main() -> None:
        now, rng = Clock(), random.Random(1)
        loop = ControllerLoop(
            world, [Controller("c", {"Pod": own_key}, reconcile)], Recorder(world, now, rng), now, rng
        )
        await world.write([Create(pod("big")), Create(pod("small"))])
        task = asyncio.create_task(loop.run())
        for number in range(100):
            await world.write([Modify(Key("Pod", "default", name), annotate(number)) for name in ("big", "small")])
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        loop.poke("c", Key("Pod", "default", "big"))
        loop.poke("c", Key("Pod", "default", "big"))
        before = len(calls["big"])
        await asyncio.sleep(0.03)
        loop.poke("c", Key("Pod", "default", "big"))
        await asyncio.sleep(0)
        await asyncio.sleep(0.021)
        assert len(calls["big"]) == before + 2, "who pokes is not kept waiting"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    virtual(main())
    starts = [time for time, _ in calls["big"][:-2]]
    assert all(after - before >= 0.0999 for before, after in pairwise(starts)) and len(starts) >= 8
    assert calls["big"][-3][1] == 100, "the last change is seen"
    assert len(calls["small"]) >= 50 and calls["small"][-1][1] == 100


def annotate(number: int) -> Callable[[Object], bool]:
    def edit(found: Object) -> bool:
        found.metadata.annotations[f"note-{number}"] = "x"
        return True

    return edit


async def test_a_refused_change_is_tried_again_later() -> None:
    tries: list[int] = []

    def reconcile(view: object, key: Key, _now: float) -> Outcome:
        tries.append(1)
        stale = Modify(key, lambda _found: True, uid="another")
        return Outcome([stale] if len(tries) < 3 else [])

    async with master(controllers=[Controller("stubborn", {"Pod": own_key}, reconcile)]) as m:
        await m.create(pod("p"))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(tries) < 3:
                await asyncio.sleep(0.01)


async def test_nothing_is_written_when_all_is_well() -> None:
    async with master() as m:
        await m.join("n0")
        await m.create(deployment(replicas=2))
        await m.until(lambda: available(m, 2))
        await m.until(lambda: {"AgentReady"} <= {e.reason for e in m.store.view.all("Event") if isinstance(e, o.Event)})
        async with asyncio.timeout(DEADLINE_SECONDS):
            quiet = 0
            while quiet != m.store.view.revision:  # the last statuses are still being written
                quiet = m.store.view.revision
                await sweep(m)
        for _ in range(3):
            await sweep(m)
        objects = {k: r.revision for k in ("Pod", "Node", "Deployment", "ReplicaSet") for r in records(m, k)}
        assert all(revision <= quiet for revision in objects.values())


async def sweep(m: Master) -> None:
    """A look at all nodes, with everything else that it brings."""
    calls = m.loop.calls
    m.loop.poke("node", SWEEP)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while m.loop.calls == calls:
            await asyncio.sleep(0.005)


def records(m: Master, kind: str) -> list[Record]:
    found = (m.store.view.record(key_of(obj)) for obj in m.store.view.all(kind))
    return [record for record in found if record is not None]
