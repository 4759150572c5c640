"""The loop around the core: gates, priorities, nominations, evictions, failures of the core, and nobody starves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from shoal.master.model import Change, Create, Delete, Event, Fault, Key, Modify, Object, Record, Unavailable, key_of
from shoal.master.scheduler.classes import Classes, PodClass
from shoal.master.scheduler.core import Plan, Preemption, Scheduler, Victim, Waiting
from shoal.master.scheduler.snapshot import Hold, Snapshot
from shoal.master.scheduling import Decision, Decisions
from shoal.master.scheduling.books import Books
from shoal.master.scheduling.evictor import Evictor
from shoal.master.scheduling.judge import split
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import World, namespace, node, pod
from tests.scheduling_world import edit, end, idle, scheduling
from tests.unit.store_support import Clock
from tests.virtual_loop import virtual


def placed(world: World) -> dict[str, str]:
    return {one.metadata.name: one.spec.nodeName for one in world.pods() if one.spec.nodeName}


def found(world: World, name: str) -> o.Pod:
    one = world.get("Pod", "default", name)
    assert isinstance(one, o.Pod)
    return one


def scheduled(world: World, name: str) -> o.Condition:
    return next((c for c in found(world, name).status.conditions if c.type == "PodScheduled"), o.Condition())


def with_priority(one: o.Pod, priority: int, nominated: str = "") -> o.Pod:
    one.spec.priority = priority
    one.status.nominatedNodeName = nominated
    return one


def test_gated_pods_wait_outside_the_queue() -> None:
    async def main() -> None:
        world = World([namespace(), node("a")])
        async with scheduling(world) as loop:
            gated = pod("gated")
            gated.spec.schedulingGates.add(name="example.com/wait")
            world.apply([Create(gated), Create(pod("free"))])
            await idle()
            assert placed(world) == {"free": "a"}
            assert loop.queue.gated == {gated.metadata.uid}
            assert loop.queue.pods == {}
            edit(world, gated, ungate)
            await idle()
            assert placed(world) == {"free": "a", "gated": "a"}
            assert not loop.queue.gated

    virtual(main())


def ungate(one: Object) -> None:
    assert isinstance(one, o.Pod)
    one.spec.ClearField("schedulingGates")


def test_higher_priority_first_then_who_came_first() -> None:
    async def main() -> None:
        world = World([namespace(), node("a", cpu="3")])
        pods = [pod("low1", cpu="1"), pod("low2", cpu="1"), pod("late", cpu="1"), pod("high", cpu="1")]
        with_priority(pods[3], 100)
        async with scheduling(world):
            world.apply([Create(one) for one in pods])
            await idle()
            assert sorted(placed(world)) == ["high", "low1", "low2"]

    virtual(main())


class Fragile(Scheduler):
    """A core with a fault: it fails on pods with this label, in the middle of a plan."""

    def __init__(self) -> None:
        super().__init__()
        self.sound = False
        self.calls = 0

    def schedule(self, snapshot: Snapshot, queue: Sequence[Waiting]) -> Plan:
        self.calls += 1
        bad = [at for at, one in enumerate(queue) if ("odd", "yes") in one.pods.labels]
        if not bad or self.sound:
            return super().schedule(snapshot, queue)
        super().schedule(snapshot, queue[: bad[0]])  # what it commits stays behind
        raise IndexError("row 7")


def test_a_pod_on_which_the_core_fails_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        world = World([namespace(), node("a", cpu="100", pods="200")])
        core = Fragile()
        async with scheduling(world, core=core) as loop:
            pods = [pod(f"p{i:03}", cpu="100m", app=f"{i}") for i in range(99)]
            odd = pod("odd", odd="yes")
            world.apply([Create(one) for one in (*pods[:50], odd, *pods[50:])])
            await idle()
            assert len(placed(world)) == 99
            assert core.calls < 20, "halves are tried, not each pod"
            told = scheduled(world, "odd")
            assert (told.reason, told.message) == ("SchedulerError", "internal error: IndexError: row 7")
            assert int(loop.snapshot.used[0, 0]) == 9900, "a failed plan leaves nothing behind"
            core.sound = True
            await asyncio.sleep(1)
            assert placed(world)["odd"] == "a", "it is tried again by itself"

    virtual(main())
    assert "the scheduler failed on 1 pods, the first is Pod default/odd" in caplog.text


def test_a_core_that_always_fails_is_not_asked_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Fragile):
        def schedule(self, snapshot: Snapshot, queue: Sequence[Waiting]) -> Plan:
            self.calls += 1
            raise RuntimeError("no")

    async def main() -> None:
        world = World([namespace(), node("a")])
        core = Broken()
        async with scheduling(world, core=core):
            world.apply([Create(pod(f"p{i}", app=f"{i}")) for i in range(500)])
            await idle()
            assert core.calls <= 130
            assert scheduled(world, "p499").reason == "SchedulerError"

    virtual(main())


def test_a_spec_that_cannot_be_read_is_told_and_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    of = Classes.of

    def fails(self: Classes, one: o.Pod) -> PodClass:
        if one.metadata.name == "odd":
            raise ValueError("a bug")
        return of(self, one)

    async def main() -> None:
        world = World([namespace(), node("a")])
        async with scheduling(world):
            monkeypatch.setattr(Classes, "of", fails)
            world.apply([Create(pod("odd")), Create(pod("fine"))])
            await idle()
            assert placed(world) == {"fine": "a"}
            assert scheduled(world, "odd").message == "internal error: ValueError: a bug"
            monkeypatch.undo()
            edit(world, found(world, "odd"), lambda one: one.metadata.annotations.update({"try": "again"}))
            await idle()
            assert placed(world)["odd"] == "a"

    virtual(main())


# ---- nominations ----
def test_a_nomination_survives_a_restart_and_holds_its_room() -> None:
    async def main() -> None:
        world = World([namespace(), node("a", cpu="2"), node("b", cpu="1")])
        victim = pod("victim", node="a", phase="Running", cpu="2")
        world.apply(
            [Create(victim), Create(with_priority(pod("big", cpu="2"), 10, "a")), Create(pod("other", cpu="1"))]
        )
        async with scheduling(world) as loop:
            assert placed(world) == {"victim": "a", "other": "b"}
            hold = loop.snapshot.held("uid-Pod-big")
            assert hold is not None and (hold.node, hold.nominated) == ("a", True)
            world.commit(Create(pod("late", cpu="1")))
            world.commit(Delete(key_of(victim)))
            await idle()
            assert placed(world) == {"other": "b", "big": "a"}
            assert found(world, "big").status.nominatedNodeName == ""

    virtual(main())


def test_a_nomination_to_a_node_that_is_lost_is_given_up() -> None:
    async def main() -> None:
        world = World([namespace(), node("a", cpu="2", is_ready=False), node("b", cpu="1")])
        world.commit(Create(with_priority(pod("big", cpu="2"), 10, "a")))
        async with scheduling(world) as loop:
            assert loop.snapshot.held("uid-Pod-big") is None
            assert found(world, "big").status.nominatedNodeName == ""
            assert not loop.queue.nominated

    virtual(main())


def preemption(*victims: o.Pod, node: str = "a") -> Preemption:
    waiting = Waiting("uid-Pod-big", Key("Pod", "default", "big"), Classes().of(pod("big")))
    return Preemption(waiting, node, tuple(Victim(v.metadata.uid, key_of(v), v.spec.priority) for v in victims), 0)


class Deaf(World):
    """A store that does not answer at first."""

    def __init__(self, losses: int) -> None:
        super().__init__([namespace()])
        self.losses = losses

    async def write(self, changes: Sequence[Change], *, low_priority: bool = False) -> list[Record | Fault | None]:
        if self.losses:
            self.losses -= 1
            raise Unavailable("no answer", "unknown")
        return await super().write(changes, low_priority=low_priority)


def test_victims_are_deleted_gracefully_and_told_for_whom() -> None:
    said: list[tuple[str, str, str]] = []

    async def main() -> None:
        world = Deaf(2)
        first, gone, moved = (pod(name, node="a", phase="Running") for name in ("first", "gone", "moved"))
        first.spec.terminationGracePeriodSeconds = 7
        moved.spec.nodeName = "b"
        world.apply([Create(first), Create(moved)])
        rng = random.Random(1)
        evictor = Evictor(world, lambda about, *rest: said.append((about.metadata.name, *rest[1:])), Clock(), rng)
        await evictor.evict([preemption(first, gone, moved)])
        assert len(evictor.due) == 3, "nobody answered"
        while evictor.due:
            await evictor.resend()
        victim = found(world, "first")
        assert victim.metadata.deletionGracePeriodSeconds == 7
        assert [(c.type, c.reason) for c in victim.status.conditions] == [("DisruptionTarget", "PreemptionByScheduler")]
        assert not found(world, "moved").metadata.HasField("deletionTimestamp"), "it is not in the way any more"
        await evictor.evict([preemption(first)])
        assert not evictor.due

    virtual(main())
    message = "Preempted by pod default/big on node a"
    assert said[0] == ("first", "Preempted", message)
    assert {name for name, *_ in said} == {"first"}


def test_a_nomination_that_comes_to_nothing_spares_its_victims() -> None:
    victim = pod("victim", node="a", phase="Running", cpu="2")
    snapshot = Snapshot()
    books = Books(snapshot)
    world = World([node("a"), victim])
    records = [world.record(key) for key in list(world.records)]
    books.apply(1, [Event(one.key, one.revision, None, one) for one in records if one is not None])
    hold = snapshot.held(victim.metadata.uid)
    assert hold is not None
    books.undo(victim.metadata.uid)
    books.commit(victim.metadata.uid, hold._replace(leaving=True))
    planned = preemption(victim)
    books.commit(planned.waiting.uid, Hold("a", planned.waiting.pods, nominated=True))
    given = books.spare([planned])
    assert [one.node for one in given] == ["a"]
    assert snapshot.held(victim.metadata.uid) == hold
    assert snapshot.held(planned.waiting.uid) is None


# ---- nobody starves ----
def test_a_large_pod_gets_its_node_while_small_ones_come_and_go() -> None:
    """Four nodes of four CPUs full of small pods. Each second one ends, and two more of the same priority come; the
    large one needs a node for itself."""

    async def main() -> None:
        world = World([namespace(), *(node(f"n{i}", cpu="4") for i in range(4))])
        made = 0

        def more(number: int) -> None:
            nonlocal made
            for _ in range(number):
                made += 1
                world.commit(Create(pod(f"small{made:05}", cpu="1", app="small")))

        more(40)
        async with scheduling(world, refresh=True):
            world.commit(Create(pod("large", cpu="4")))
            oldest = 0
            for second in range(200):
                running = sorted(
                    one.metadata.name for one in world.pods() if one.spec.nodeName and one.status.phase == "Pending"
                )
                oldest = (oldest * 7 + second) % len(running)
                edit(world, found(world, running[oldest]), end)
                more(2)
                await asyncio.sleep(1)
                if "large" in placed(world):
                    break
            home = placed(world).get("large", "")
            assert home, "others have been placed all the time, and it was not"
            beside = [
                name
                for name, at in placed(world).items()
                if at == home and found(world, name).status.phase == "Pending"
            ]
            assert beside == ["large"]
            await asyncio.sleep(5)
            events = [one for one in world.all("Event") if isinstance(one, o.Event)]
            assert [one.involvedObject.name for one in events if one.reason == "RoomReserved"] == ["large"]

    virtual(main())


# ---- what is kept of decisions, and who listens ----
def test_the_last_decisions_are_kept_and_no_more() -> None:
    kept = Decisions(kept=3)
    kept.note(Decision(f"u{i}", 1, 1, 0.0, 0.0, 1, "a") for i in range(4))
    kept.note([Decision("u1", 2, 2, 0.0, 5.0, 2, "b"), Decision("u4", 2, 2, 0.0, 0.0, 1, "c")])
    assert len(kept) == 3
    assert kept.of("u2") is None
    assert (one := kept.of("u1")) is not None and one.node == "b"
    kept.commit("u1")
    assert (one := kept.of("u1")) is not None and one.committed


class Repeater:
    """Makes each decision again, from nothing but what it was told."""

    def __init__(self) -> None:
        self.snapshot, self.core = Snapshot(), Scheduler()
        self.plans = 0

    def watch(self, snapshot: Snapshot) -> None:
        """What it is told is enough."""

    def applied(self, revision: int, events: Sequence[Event]) -> None:
        self.snapshot.apply(events)

    def committed(self, uid: str, hold: Hold) -> None:
        self.snapshot.commit(uid, hold)

    def undone(self, uid: str) -> None:
        assert self.snapshot.undo(uid)

    def planned(self, revision: int, window: int, queue: Sequence[Waiting], plan: Plan) -> None:
        mine = self.core.schedule(self.snapshot, queue)
        assert mine == plan
        self.plans += 1
        assert window == self.plans


def test_an_observer_can_repeat_every_decision() -> None:
    async def main() -> None:
        world = World([namespace(), node("a", cpu="2"), node("b", cpu="2")])
        listener = Repeater()
        async with scheduling(world, observer=listener) as loop:
            for number in range(30):
                world.commit(Create(pod(f"p{number}", cpu="500m", app=f"{number % 3}")))
                if number % 3 == 0:
                    await idle()
                if number % 5 == 4 and (bound := placed(world)):
                    world.commit(Delete(key_of(found(world, sorted(bound)[0]))))
            await idle()
            assert listener.plans > 10
            assert listener.snapshot.used.tolist() == loop.snapshot.used.tolist()
            decision = loop.decisions.of("uid-Pod-p29")
            assert decision is not None and decision.why is not None and not decision.node

    virtual(main())


def test_a_queue_is_halved_between_gangs() -> None:
    alone, member = Classes().of(pod("x")), Classes().of(pod("y", **{"scheduling.x-k8s.io/pod-group": "g"}))  # type: ignore[arg-type]
    queue = [Waiting(str(at), Key("Pod", "default", str(at)), alone if at == 0 else member) for at in range(9)]
    assert split(queue) == 1
    assert split(queue[1:]) == 0
    assert split(queue[:1]) == 0


# ---- preemption from end to end ----
def leave_at_once(world: World) -> None:
    """The agents: whoever is to go has gone."""
    for one in world.pods():
        if one.spec.nodeName and one.metadata.HasField("deletionTimestamp"):
            world.commit(Delete(key_of(one)))


def test_a_pod_that_matters_more_has_others_evicted() -> None:
    async def main() -> None:
        world = World([namespace(), node("a", cpu="2"), node("b", cpu="2")])
        low = [with_priority(pod(f"low{i}", cpu="1"), 1 + (i == 3)) for i in range(4)]
        async with scheduling(world) as loop:
            world.apply([Create(one) for one in low])
            await idle()
            assert len(placed(world)) == 4
            home = placed(world)["low3"]
            other = "b" if home == "a" else "a"
            world.commit(Create(with_priority(pod("big", cpu="2"), 10)))
            await idle()
            assert found(world, "big").status.nominatedNodeName == other, "the less important go"
            leaving = [one for one in world.pods() if one.metadata.HasField("deletionTimestamp")]
            assert {one.spec.nodeName for one in leaving} == {other}
            assert len(leaving) == 2
            for one in leaving:
                said = next(c for c in one.status.conditions if c.type == "DisruptionTarget")
                assert (said.reason, said.message) == (
                    "PreemptionByScheduler", f"Preempted by pod default/big on node {other}",
                )  # fmt: skip
            world.commit(Create(pod("late", cpu="1")))
            await idle()
            leave_at_once(world)
            await idle()
            assert placed(world)["big"] == other, "the room was held for it"
            assert found(world, "big").status.nominatedNodeName == ""
            assert "late" not in placed(world)
            assert not loop.queue.nominated
            await asyncio.sleep(6)
            events = [one for one in world.all("Event") if isinstance(one, o.Event) and one.reason == "Preempted"]
            assert {one.involvedObject.name for one in events} == {one.metadata.name for one in leaving}
            decision = loop.decisions.of("uid-Pod-big")
            assert decision is not None and (decision.node, decision.committed) == (other, True)
            assert {one.key.name for one in decision.victims} == {one.metadata.name for one in leaving}

    virtual(main())


def test_a_nominated_pod_goes_where_room_comes_first() -> None:
    async def main() -> None:
        world = World([namespace(), node("a", cpu="2")])
        async with scheduling(world) as loop:
            world.commit(Create(pod("low", cpu="2")))
            await idle()
            world.commit(Create(with_priority(pod("big", cpu="2"), 10)))
            await idle()
            assert found(world, "big").status.nominatedNodeName == "a"
            world.commit(Create(node("b", cpu="2")))
            await idle()
            assert placed(world)["big"] == "b"
            assert not loop.queue.nominated
            world.commit(Create(pod("small", cpu="1")))
            leave_at_once(world)
            await idle()
            assert placed(world)["small"] == "a", "the room that was held is free again"

    virtual(main())


def test_who_matters_more_still_takes_the_room_of_a_nominated_pod() -> None:
    async def main() -> None:
        world = World([namespace(), node("a", cpu="2")])
        async with scheduling(world) as loop:
            world.commit(Create(pod("low", cpu="2")))
            await idle()
            world.commit(Create(with_priority(pod("big", cpu="2"), 10)))
            await idle()
            world.commit(Create(with_priority(pod("bigger", cpu="2"), 20)))
            await idle()
            assert found(world, "bigger").status.nominatedNodeName == "a"
            assert found(world, "big").status.nominatedNodeName == ""
            assert list(loop.queue.nominated) == ["uid-Pod-bigger"]
            leave_at_once(world)
            await idle()
            assert placed(world) == {"bigger": "a"}

    virtual(main())


def test_a_nominated_pod_that_is_deleted_gives_its_room_back() -> None:
    async def main() -> None:
        world = World([namespace(), node("a", cpu="2")])
        async with scheduling(world):
            world.commit(Create(pod("low", cpu="2")))
            await idle()
            big = with_priority(pod("big", cpu="2"), 10)
            world.apply([Create(big), Create(pod("waits", cpu="1"))])
            await idle()
            world.commit(Delete(key_of(big)))
            await idle()
            leave_at_once(world)
            await idle()
            assert placed(world) == {"waits": "a"}

    virtual(main())


def test_a_crash_between_nomination_and_eviction_is_made_good() -> None:
    """The former leader wrote the nomination and died; nobody told the victim."""

    async def main() -> None:
        world = World([namespace(), node("a", cpu="2")])
        world.apply([Create(pod("low", node="a", phase="Running", cpu="2"))])
        world.apply([Create(with_priority(pod("big", cpu="2"), 10, "a"))])
        async with scheduling(world):
            assert found(world, "low").metadata.HasField("deletionTimestamp")
            assert found(world, "big").status.nominatedNodeName == "a"
            leave_at_once(world)
            await idle()
            assert placed(world) == {"big": "a"}

    virtual(main())


def test_a_crash_between_eviction_and_nomination_costs_nobody_else() -> None:
    async def main() -> None:
        world = World([namespace(), node("a", cpu="2"), node("b", cpu="2")])
        going = pod("going", node="b", phase="Running", cpu="2")
        going.metadata.deletionTimestamp.seconds = 1
        world.apply([Create(pod("low", node="a", phase="Running", cpu="2")), Create(going)])
        world.apply([Create(with_priority(pod("big", cpu="2"), 10))])
        async with scheduling(world):
            assert found(world, "big").status.nominatedNodeName == "b"
            assert not found(world, "low").metadata.HasField("deletionTimestamp")

    virtual(main())


class Faulty(World):
    """Refuses or loses the write that nominates, thrice."""

    def __init__(self, how: str) -> None:
        super().__init__([namespace(), node("a", cpu="2")])
        self.how, self.left = how, 0
        self.spared: list[bool] = []

    async def write(self, changes: Sequence[Change], *, low_priority: bool = False) -> list[Record | Fault | None]:
        if self.left and any(change.key.name == "big" for change in changes if isinstance(change, Modify)):
            self.left -= 1
            self.spared.append(not found(self, "low").metadata.HasField("deletionTimestamp"))
            if self.how == "lost":
                raise Unavailable("the answer was lost", "unknown")
            return [Fault("no") for _ in changes]
        return await super().write(changes, low_priority=low_priority)


@pytest.mark.parametrize("how", ["lost", "refused"])
def test_a_nomination_that_was_not_written_evicts_nobody_and_comes_again(how: str) -> None:
    async def main() -> None:
        world = Faulty(how)
        async with scheduling(world) as loop:
            world.commit(Create(pod("low", cpu="2")))
            await idle()
            world.left = 3
            world.commit(Create(with_priority(pod("big", cpu="2"), 10)))
            await asyncio.sleep(3)
            assert world.spared == [True, True, True]
            assert loop.windows < 10, "it is not tried again at once"
            assert found(world, "low").metadata.HasField("deletionTimestamp")
            leave_at_once(world)
            await idle()
            assert placed(world) == {"big": "a"}

    virtual(main())
