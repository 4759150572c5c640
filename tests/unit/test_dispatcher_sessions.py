"""The rules of a session, on streams in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from shoal.master.dispatcher.acks import Acks
from shoal.master.dispatcher.dispatcher import Config, Dispatcher
from shoal.master.model import Create, Delete, Key, Modify, Object
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s
from tests.masterkit import Leader, MemoryStore, MemoryStream, unavailable, until
from tests.virtual_loop import virtual

NOW = 1_700_000_000.0


@dataclass
class Bench:
    """A dispatcher with its neighbours; `join` brings an agent in."""

    store: MemoryStore
    leader: Leader
    dispatcher: Dispatcher
    reports: list[tuple[Key, str, str]] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def connect(self, hello: s.Hello, certificate: str = "") -> MemoryStream:
        stream = MemoryStream()
        stream.say(s.Up(hello=hello))
        serve = self.dispatcher.serve(stream, certificate or hello.node, "10.0.0.9")
        self.tasks.append(asyncio.ensure_future(serve))
        return stream

    async def join(self, name: str = "a", instance: str = "i1", boot: str = "b1") -> tuple[MemoryStream, s.Welcome]:
        stream = self.connect(hello_of(name, instance, boot))
        welcome = await stream.hear_only("welcome")
        return stream, welcome.welcome

    async def joined(self, name: str = "a") -> MemoryStream:
        """A session that has heard its COMPLETE."""
        stream, _ = await self.join(name)
        assert (await stream.hear_only("assignments")).assignments.last
        return stream

    async def edit(self, name: str, change: dict[str, str]) -> None:
        def apply(obj: Object) -> bool:
            obj.metadata.labels.update(change)
            return True

        await self.store.write([Modify(Key("Pod", "default", name), apply)])

    def pod(self, name: str) -> o.Pod:
        found = self.store.view.get("Pod", "default", name)
        assert isinstance(found, o.Pod)
        return found


def hello_of(name: str, instance: str = "i1", boot: str = "b1") -> s.Hello:
    hello = s.Hello(protocol_min=1, protocol_max=1, node=name, instance_id=instance, boot_id=boot)
    hello.labels["kubernetes.io/hostname"] = name
    hello.report.capacity["cpu"].text = "2"
    hello.report.info.bootID = boot
    hello.report.addresses.add(type="InternalIP", address="10.9.0.1")
    return hello


def pod_on(node: str, name: str, phase: str = "Pending") -> o.Pod:
    pod = o.Pod(apiVersion="v1", kind="Pod")
    pod.metadata.name, pod.metadata.namespace, pod.metadata.uid = name, "default", f"uid-{name}"
    pod.spec.nodeName = node
    pod.spec.containers.add(name="c", image="i")
    pod.status.phase = phase
    pod.status.conditions.add(type="PodScheduled", status="True")
    return pod


def report(pod: str, phase: str, counter: int = 1, *, ended: bool = False, start: int = 1) -> s.Up:
    pods = [s.PodReport(uid=f"uid-{pod}", namespace="default", name=pod, status=o.PodStatus(phase=phase), ended=ended)]
    return s.Up(status=s.StatusReport(sequence=s.Sequence(agent_start=start, counter=counter), pods=pods))


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    store, leader = MemoryStore(), Leader()
    reports: list[tuple[Key, str, str]] = []
    dispatcher = Dispatcher(
        store,
        leader,
        Config(incarnation="inc", heartbeat_period=0.2, hello_patience=0.5, tunnel_patience=0.5),
        lambda: NOW,
        random.Random(1),
        lambda key, reason, message: reports.append((key, reason, message)),
    )
    made = Bench(store, leader, dispatcher, reports)
    running = asyncio.ensure_future(dispatcher.run())
    await asyncio.sleep(0)
    yield made
    running.cancel()
    await asyncio.gather(running, *made.tasks, return_exceptions=True)


async def test_first_hello_makes_the_node_and_is_welcomed(bench: Bench) -> None:
    _, welcome = await bench.join()
    node = bench.store.view.get("Node", "", "a")
    assert isinstance(node, o.Node)
    assert (welcome.epoch, welcome.cluster_incarnation, welcome.protocol) == (7, "inc", 1)
    assert welcome.pod_cidr == node.spec.podCIDR == "10.244.0.0/24"
    assert node.metadata.labels["kubernetes.io/hostname"] == "a"
    assert node.status.capacity["cpu"].text == "2"
    assert 100 < welcome.heartbeat_period_ms <= 200


async def test_each_node_has_a_range_of_its_own_and_keeps_it(bench: Bench) -> None:
    ranges = [(await bench.join(name))[1].pod_cidr for name in ("a", "b", "c")]
    assert len(set(ranges)) == 3
    assert (await bench.join("b"))[1].pod_cidr == ranges[1]


async def test_ranges_that_are_asked_for_at_once_differ(bench: Bench) -> None:
    welcomes = await asyncio.gather(*(bench.join(f"n{i}") for i in range(20)))
    assert len({welcome.pod_cidr for _, welcome in welcomes}) == 20


@pytest.mark.parametrize(
    ("hello", "certificate", "reason"),
    [
        (hello_of("a"), "b", "WrongIdentity"),
        (hello_of("a", instance=""), "a", "Protocol"),
        (s.Hello(protocol_min=2, protocol_max=3, node="a", instance_id="i", boot_id="b"), "a", "Protocol"),
    ],
)
async def test_a_wrong_hello_is_refused(bench: Bench, hello: s.Hello, certificate: str, reason: str) -> None:
    reject = (await bench.connect(hello, certificate).hear_only("reject")).reject
    assert reject.reason == reason
    assert reject.message
    assert bench.store.view.get("Node", "", "a") is None


async def test_a_session_must_begin_with_hello(bench: Bench) -> None:
    stream = MemoryStream()
    stream.say(s.Up(heartbeat=s.Heartbeat(number=1)))
    await bench.dispatcher.serve(stream, "a")
    assert (await stream.hear_only("reject")).reject.reason == "Protocol"


async def test_a_silent_caller_is_dropped(bench: Bench) -> None:
    stream = MemoryStream()
    await bench.dispatcher.serve(stream, "a")
    assert stream.closed


async def test_a_newer_session_of_the_same_machine_supersedes(bench: Bench) -> None:
    first, _ = await bench.join()
    second, _ = await bench.join()
    assert first.closed
    assert not second.closed
    assert len(bench.dispatcher.connected) == 1


@pytest.mark.parametrize("other", [("i2", "b1"), ("i1", "b2")])
async def test_a_clone_is_refused_and_reported_while_the_first_beats(bench: Bench, other: tuple[str, str]) -> None:
    first, _ = await bench.join()
    reject = (await bench.connect(hello_of("a", *other)).hear_only("reject")).reject
    assert reject.reason == "Cloned"
    assert not first.closed
    assert bench.reports[0][:2] == (Key("Node", "", "a"), "Cloned")


async def test_another_boot_is_welcome_once_the_first_is_gone_or_silent(bench: Bench) -> None:
    first, _ = await bench.join()
    first.hang_up()
    await until(lambda: not bench.dispatcher.connected)
    second, _ = await bench.join("a", boot="b2")
    await asyncio.sleep(0.7)  # three periods of 0.2 s without a beat
    await bench.join("a", boot="b3")
    assert second.closed


async def test_a_new_leader_lets_nobody_take_a_ready_nodes_place(bench: Bench) -> None:
    node = o.Node(apiVersion="v1", kind="Node")
    node.metadata.name = "a"
    node.status.instanceID, node.status.nodeInfo.bootID = "i1", "b1"
    node.status.conditions.add(type="Ready", status="True")
    await bench.store.write([Create(node)])
    assert (await bench.connect(hello_of("a", "i2")).hear_only("reject")).reject.reason == "Busy"
    await bench.join("a", "i1", "b1")


async def test_who_does_not_lead_sends_agents_away(bench: Bench) -> None:
    bench.leader.holds = False
    assert (await bench.connect(hello_of("a")).hear_only("reject")).reject.reason == "NotLeader"


async def test_surplus_reconnects_are_told_when_to_come_back() -> None:
    store = MemoryStore()
    config = Config(admissions_per_second=10, admission_burst=2)
    dispatcher = Dispatcher(store, Leader(), config, lambda: NOW, random.Random(1))
    made = Bench(store, Leader(), dispatcher)
    streams = [made.connect(hello_of(f"n{i}")) for i in range(5)]
    answers = [await stream.hear() for stream in streams]
    waits = [a.reject.retry_after_ms for a in answers if a.WhichOneof("message") == "reject"]
    assert len(waits) == 3
    assert sorted(waits) == waits
    assert 100 <= waits[0] < waits[2] <= 500
    dispatcher.stop()
    await asyncio.gather(*made.tasks)


async def test_a_store_that_is_away_makes_joining_wait(bench: Bench) -> None:
    bench.store.fault = unavailable()
    reject = (await bench.connect(hello_of("a")).hear_only("reject")).reject
    assert (reject.reason, reject.retry_after_ms) == ("Busy", 1000)


async def test_complete_holds_the_nodes_pods_and_the_node_table(bench: Bench) -> None:
    await bench.store.write([Create(pod_on("a", "one")), Create(pod_on("b", "two"))])
    await bench.join("b")
    stream, _ = await bench.join("a")
    complete = (await stream.hear_only("assignments")).assignments
    assert complete.kind == s.Assignments.COMPLETE
    assert complete.last
    assert [p.uid for p in complete.upsert_pods] == ["uid-one"]
    record = bench.store.view.record(Key("Pod", "default", "one"))
    assert record is not None
    assert complete.upsert_pods[0].pod == record.body
    assert sorted((n.name, n.address) for n in complete.upsert_nodes) == [("a", "10.9.0.1"), ("b", "10.9.0.1")]
    assert complete.results_in.epoch == 7


async def test_complete_comes_in_parts_of_a_mebibyte(bench: Bench) -> None:
    for i in range(5):
        pod = pod_on("a", f"big{i}")
        pod.metadata.annotations["x"] = "y" * (2_000_000 if i == 2 else 400_000)
        await bench.store.write([Create(pod)])
    stream, _ = await bench.join("a")
    parts = [(await stream.hear_only("assignments")).assignments for _ in range(3)]
    assert [part.part for part in parts] == [0, 1, 2]
    assert [part.last for part in parts] == [False, False, True]
    assert [len(part.upsert_pods) for part in parts] == [2, 1, 2]
    assert all(part.ByteSize() <= 1 << 20 for part in parts if part.part != 1)


async def test_increments_follow_one_another(bench: Bench) -> None:
    stream, _ = await bench.join("a")
    complete = (await stream.hear_only("assignments")).assignments
    await bench.store.write([Create(pod_on("a", "one"))])
    first = (await stream.hear_only("assignments")).assignments
    assert first.kind == s.Assignments.INCREMENTAL
    assert [p.uid for p in first.upsert_pods] == ["uid-one"]
    assert first.applies_to.revision >= complete.results_in.revision
    await bench.store.write([Delete(Key("Pod", "default", "one"))])
    second = (await stream.hear_only("assignments")).assignments
    assert list(second.remove_pods) == ["uid-one"]
    assert second.applies_to == first.results_in
    assert second.results_in.revision > first.results_in.revision


async def test_a_slow_agent_gets_only_the_newest(bench: Bench) -> None:
    stream = MemoryStream(window=2)
    stream.say(s.Up(hello=hello_of("a")))
    bench.tasks.append(asyncio.ensure_future(bench.dispatcher.serve(stream, "a")))
    await until(lambda: stream._down.full())  # Welcome and COMPLETE lie there unread
    await bench.store.write([Create(pod_on("a", "one"))])
    await asyncio.sleep(0.01)
    for i in range(10):
        await bench.edit("one", {"try": str(i)})
    await stream.hear_only("welcome")
    await stream.hear_only("assignments")
    await stream.hear_only("assignments")  # was built before the edits, and stuck
    last = (await stream.hear_only("assignments")).assignments
    assert o.Pod.FromString(last.upsert_pods[0].pod).metadata.labels["try"] == "9"
    await asyncio.sleep(0.01)
    assert stream.silent()


async def test_the_nodes_own_status_is_not_sent_back(bench: Bench) -> None:
    await bench.store.write([Create(pod_on("a", "one"))])
    stream = await bench.joined("a")
    stream.say(report("one", "Running"))
    await stream.hear_only("status_ack")
    await asyncio.sleep(0.01)
    assert bench.pod("one").status.phase == "Running"
    assert stream.silent()


async def test_node_table_changes_reach_every_session(bench: Bench) -> None:
    stream = await bench.joined("a")
    await bench.join("b")
    told = (await stream.hear_only("assignments")).assignments
    assert [(n.name, n.pod_cidr) for n in told.upsert_nodes] == [("b", "10.244.1.0/24")]
    await bench.store.write([Delete(Key("Node", "", "b"))])
    assert list((await stream.hear_only("assignments")).assignments.remove_nodes) == ["b"]
    await until(lambda: set(bench.dispatcher.connected) == {"a"})


async def test_resync_brings_a_complete(bench: Bench) -> None:
    stream = await bench.joined("a")
    stream.say(s.Up(resync=s.Resync(why="gap")))
    assert (await stream.hear_only("assignments")).assignments.kind == s.Assignments.COMPLETE


async def test_acknowledged_means_written(bench: Bench) -> None:
    await bench.store.write([Create(pod_on("a", "one"))])
    stream = await bench.joined("a")
    bench.store.gate = asyncio.Event()
    stream.say(report("one", "Running"))
    await asyncio.sleep(0.02)
    assert stream.silent()
    bench.store.gate.set()
    ack = (await stream.hear_only("status_ack")).status_ack
    assert (ack.sequence.agent_start, ack.sequence.counter) == (1, 1)
    status = bench.pod("one").status
    assert status.phase == "Running"
    assert [c.type for c in status.conditions] == ["PodScheduled"]  # the scheduler's word stays


async def test_a_status_waits_for_a_store_that_is_away(bench: Bench) -> None:
    await bench.store.write([Create(pod_on("a", "one"))])
    stream = await bench.joined("a")
    bench.store.fault = unavailable()
    stream.say(report("one", "Running"))
    await asyncio.sleep(0.02)
    assert stream.silent()
    bench.store.fault = None
    await stream.hear_only("status_ack")
    assert bench.pod("one").status.phase == "Running"


async def test_repeated_and_equal_reports_are_acknowledged_but_not_written(bench: Bench) -> None:
    await bench.store.write([Create(pod_on("a", "one"))])
    stream = await bench.joined("a")
    stream.say(report("one", "Running", 1))
    await stream.hear_only("status_ack")
    written = len(bench.store.writes)
    stream.say(report("one", "Running", 1))
    assert (await stream.hear_only("status_ack")).status_ack.sequence.counter == 1
    stream.say(report("one", "Running", 2))
    assert (await stream.hear_only("status_ack")).status_ack.sequence.counter == 2
    assert len(bench.store.writes) == written


async def test_an_older_report_is_ignored(bench: Bench) -> None:
    await bench.store.write([Create(pod_on("a", "one"))])
    stream = await bench.joined("a")
    stream.say(report("one", "Running", 5, start=2))
    await stream.hear_only("status_ack")
    stream.say(report("one", "Failed", 9, start=1))
    await stream.hear_only("status_ack")
    assert bench.pod("one").status.phase == "Running"


@pytest.mark.parametrize(("old", "new"), [("Running", "Pending"), ("Succeeded", "Running"), ("Succeeded", "Failed")])
async def test_phases_only_go_forward(bench: Bench, old: str, new: str) -> None:
    await bench.store.write([Create(pod_on("a", "one", old))])
    stream = await bench.joined("a")
    stream.say(report("one", new))
    await stream.hear_only("status_ack")
    assert bench.pod("one").status.phase == old


async def test_another_nodes_pod_is_refused_and_an_unknown_one_ignored(bench: Bench) -> None:
    await bench.store.write([Create(pod_on("b", "one"))])
    stream = await bench.joined("a")
    stream.say(report("one", "Failed", 1))
    await stream.hear_only("status_ack")
    stream.say(report("never-heard-of", "Failed", 2))
    await stream.hear_only("status_ack")
    assert bench.pod("one").status.phase == "Pending"


@pytest.mark.parametrize("name", ["web", "", ".", "web..", "0.uid-web", "x" * 1000])
async def test_a_certificate_of_any_name_costs_only_itself(bench: Bench, name: str) -> None:
    """One writer serves all nodes: what it could not read would end the leadership."""
    await bench.store.write([Create(pod_on("a", "web")), Create(pod_on("b", "other"))])
    honest, hostile = await bench.joined("b"), await bench.joined("a")
    assert (await honest.hear_only("assignments")).assignments.upsert_nodes
    told = report("web", "Running")
    told.status.deaths.add(container="c", pod=o.ObjectReference(uid="uid-web")).metadata.name = name
    hostile.say(told)
    await hostile.hear_only("status_ack")
    honest.say(report("other", "Running"))
    await honest.hear_only("status_ack")
    assert (bench.pod("web").status.phase, bench.pod("other").status.phase) == ("Running", "Running")


async def test_a_deleted_pods_record_goes_when_the_agent_has_ended_it(bench: Bench) -> None:
    await bench.store.write([Create(pod_on("a", "one", "Running"))])
    stream = await bench.joined("a")

    def delete(obj: Object) -> bool:
        obj.metadata.deletionTimestamp.seconds = int(NOW)
        return True

    await bench.store.write([Modify(Key("Pod", "default", "one"), delete)])
    upsert = (await stream.hear_only("assignments")).assignments.upsert_pods[0]
    assert o.Pod.FromString(upsert.pod).metadata.HasField("deletionTimestamp")
    stream.say(report("one", "Failed", 1))
    await stream.hear_only("status_ack")
    assert bench.pod("one").status.phase == "Failed"
    stream.say(report("one", "Failed", 2, ended=True))
    await until(lambda: bench.store.view.get("Pod", "default", "one") is None)


async def test_a_pod_that_ended_by_itself_stays(bench: Bench) -> None:
    await bench.store.write([Create(pod_on("a", "one", "Running"))])
    stream = await bench.joined("a")
    stream.say(report("one", "Succeeded", 1, ended=True))
    await stream.hear_only("status_ack")
    assert bench.pod("one").status.phase == "Succeeded"


async def test_finalizers_hold_an_ended_pod(bench: Bench) -> None:
    pod = pod_on("a", "one", "Running")
    pod.metadata.finalizers.append("example.com/hold")
    pod.metadata.deletionTimestamp.seconds = int(NOW)
    pod.metadata.deletionGracePeriodSeconds = 30
    await bench.store.write([Create(pod)])
    stream = await bench.joined("a")
    stream.say(report("one", "Failed", 1, ended=True))
    await stream.hear_only("status_ack")
    assert bench.pod("one").metadata.deletionGracePeriodSeconds == 0
    assert bench.pod("one").status.phase == "Failed"


async def test_a_lost_pod_is_taken_from_its_node_and_its_status_is_final(bench: Bench) -> None:
    await bench.store.write([Create(pod_on("a", "one", "Running"))])
    stream = await bench.joined("a")

    def lose(obj: Object) -> bool:
        assert isinstance(obj, o.Pod)
        obj.status.phase, obj.status.reason = "Failed", "Lost"
        return True

    await bench.store.write([Modify(Key("Pod", "default", "one"), lose)])
    assert list((await stream.hear_only("assignments")).assignments.remove_pods) == ["uid-one"]
    stream.say(report("one", "Failed", 1))
    await stream.hear_only("status_ack")
    assert bench.pod("one").status.reason == "Lost"
    again = await bench.join("a")
    assert not (await again[0].hear_only("assignments")).assignments.upsert_pods


async def test_a_node_without_its_disk_does_not_run_its_pods_again(bench: Bench) -> None:
    first, _ = await bench.join("a", "i1")
    first.hang_up()
    await until(lambda: not bench.dispatcher.connected)
    pods = [pod_on("a", "ran", "Running"), pod_on("a", "kept", "Running"), pod_on("a", "new"), pod_on("a", "ended")]
    pods[3].status.phase = "Succeeded"
    await bench.store.write([Create(pod) for pod in pods])
    hello = hello_of("a", "i2")
    hello.pods.add(uid="uid-kept", phase="Running")
    stream = bench.connect(hello)
    await stream.hear_only("welcome")
    complete = (await stream.hear_only("assignments")).assignments
    assert [pod.uid for pod in complete.upsert_pods] == ["uid-kept", "uid-new"]
    assert (bench.pod("ran").status.phase, bench.pod("ran").status.reason) == ("Failed", "Lost")
    assert bench.pod("ended").status.phase == "Succeeded"


async def test_an_ended_pod_that_the_agent_has_forgotten_can_be_deleted(bench: Bench) -> None:
    await bench.store.write([Create(pod_on("a", "ended", "Succeeded"))])
    stream, _ = await bench.join("a")
    assert not (await stream.hear_only("assignments")).assignments.upsert_pods

    def delete(obj: Object) -> bool:
        obj.metadata.deletionTimestamp.seconds = int(NOW)
        return True

    await bench.store.write([Modify(Key("Pod", "default", "ended"), delete)])
    await until(lambda: bench.store.view.get("Pod", "default", "ended") is None)


async def test_labels_that_no_object_may_have_are_left_out(bench: Bench) -> None:
    hello = hello_of("a")
    hello.labels.update({"bad key!": "x", "zone": "not a value?", "rack": "r1"})
    await bench.connect(hello).hear_only("welcome")
    node = bench.store.view.get("Node", "", "a")
    assert node is not None
    assert dict(node.metadata.labels) == {"kubernetes.io/hostname": "a", "rack": "r1"}


async def test_labels_that_only_people_give_are_not_a_node_s_to_take(bench: Bench) -> None:
    hello = hello_of("a")
    hello.labels.update({f"{prefix}node-restriction.kubernetes.io/for": "payroll" for prefix in ("", "pci.")})
    hello.labels["my-node-restriction.kubernetes.io/for"] = "all"
    await bench.connect(hello).hear_only("welcome")
    node = bench.store.view.get("Node", "", "a")
    assert node is not None
    assert sorted(node.metadata.labels) == ["kubernetes.io/hostname", "my-node-restriction.kubernetes.io/for"]


async def test_a_node_has_its_own_resources_and_a_bounded_number_of_devices(bench: Bench) -> None:
    hello = hello_of("a")
    for name in ("pods", "junk", "cpu.kubernetes.io/x", *(f"example.com/d{n:03}" for n in range(100))):
        hello.report.capacity[name].text = hello.report.allocatable[name].text = "1"
    await bench.connect(hello).hear_only("welcome")
    node = bench.store.view.get("Node", "", "a")
    assert isinstance(node, o.Node)
    devices = [f"example.com/d{n:03}" for n in range(64)]
    assert sorted(node.status.capacity) == ["cpu", *devices, "pods"]
    assert sorted(node.status.allocatable) == [*devices, "pods"]


async def test_heartbeats_are_acknowledged_and_stay_in_memory(bench: Bench) -> None:
    stream = await bench.joined("a")
    before, written = bench.dispatcher.last_seen["a"], len(bench.store.writes)
    await asyncio.sleep(0.01)
    stream.say(s.Up(heartbeat=s.Heartbeat(number=3)))
    assert (await stream.hear_only("heartbeat_ack")).heartbeat_ack.number == 3
    assert bench.dispatcher.last_seen["a"] > before
    assert len(bench.store.writes) == written


async def test_the_period_grows_with_the_number_of_nodes(bench: Bench) -> None:
    assert bench.dispatcher.period() == 0.2
    await asyncio.gather(*(bench.join(f"n{i}") for i in range(40)))
    slow = Config(heartbeat_period=0.01, beats_per_second=100)
    bench.dispatcher._config = slow
    assert bench.dispatcher.period() == pytest.approx(0.4)
    for session in list(bench.dispatcher.connected.values()):
        session.close()
    await until(lambda: not bench.dispatcher.connected)
    assert bench.dispatcher.period() == pytest.approx(0.4), "they will be back"


async def test_a_node_that_is_deleted_as_it_joins_comes_again(bench: Bench) -> None:
    bench.store.gate = asyncio.Event()
    stream = bench.connect(hello_of("a"))
    await until(lambda: bool(bench.dispatcher._joining))
    assert "a" in bench.dispatcher.last_seen, "else it could be judged silent before its session begins"
    bench.store.after = [Delete(Key("Node", "", "a"))]
    bench.store.gate.set()
    reject = (await stream.hear_only("reject")).reject
    assert reject.reason == "Busy"
    assert reject.retry_after_ms


async def test_of_a_removed_node_nothing_is_remembered(bench: Bench) -> None:
    await bench.join("a")
    assert "a" in bench.dispatcher.last_seen
    await bench.store.write([Delete(Key("Node", "", "a"))])
    await until(lambda: not bench.dispatcher.connected)
    assert "a" not in bench.dispatcher.last_seen
    assert len(bench.dispatcher.table) == 0


async def test_without_a_valid_lease_sessions_stay_but_nothing_is_assigned(bench: Bench) -> None:
    stream = await bench.joined("a")
    bench.leader.holds = False
    await bench.store.write([Create(pod_on("a", "one"))])
    stream.say(s.Up(heartbeat=s.Heartbeat(number=1)))
    await asyncio.sleep(0.02)
    assert stream.silent()
    assert not stream.closed
    bench.leader.holds = True
    assert (await stream.hear_only("assignments")).assignments.upsert_pods


async def test_stopping_drops_every_session(bench: Bench) -> None:
    stream = await bench.joined("a")
    bench.dispatcher.stop("10.0.0.2:7000")
    assert stream.closed
    reject = (await bench.connect(hello_of("a")).hear_only("reject")).reject
    assert (reject.reason, reject.leader) == ("NotLeader", "10.0.0.2:7000")


async def test_node_reports_update_the_node_and_leave_ready_alone(bench: Bench) -> None:
    stream = await bench.joined("a")

    def ready(obj: Object) -> bool:
        assert isinstance(obj, o.Node)
        obj.status.conditions.add(type="Ready", status="True")
        return True

    await bench.store.write([Modify(Key("Node", "", "a"), ready)])
    told = s.NodeReport()
    told.images.add(names=["redis:7"], sizeBytes=5)
    told.conditions.add(type="Ready", status="False")
    told.conditions.add(type="RuntimeReady", status="True")
    stream.say(s.Up(node=told))

    def images() -> list[str]:
        node = bench.store.view.get("Node", "", "a")
        assert isinstance(node, o.Node)
        return [name for image in node.status.images for name in image.names]

    await until(lambda: images() == ["redis:7"])
    node = bench.store.view.get("Node", "", "a")
    assert isinstance(node, o.Node)
    assert [(c.type, c.status) for c in node.status.conditions] == [("Ready", "True"), ("RuntimeReady", "True")]


async def test_a_flood_of_reports_is_held_back_at_the_stream(bench: Bench) -> None:
    await bench.store.write([Create(pod_on("a", "one"))])
    stream = await bench.joined("a")
    bench.store.gate = asyncio.Event()
    for i in range(1, 101):
        stream.say(report("one", "Running", i))
    await asyncio.sleep(0.05)
    assert stream._up.qsize() >= 80
    bench.store.gate.set()
    await until(lambda: stream._up.empty())


async def test_in_a_large_cluster_an_acknowledgement_goes_with_the_next_message(bench: Bench) -> None:
    await bench.store.write([Create(pod_on("a", "one"))])
    stream = await bench.joined("a")
    bench.dispatcher.acks._nodes = lambda: 50_000
    stream.say(report("one", "Running"))
    await until(lambda: bench.pod("one").status.phase == "Running")
    session = bench.dispatcher.connected["a"]
    await until(lambda: session._status_ack is not None)
    assert stream.silent()
    stream.say(s.Up(heartbeat=s.Heartbeat(number=7)))
    down = await stream.hear_only("heartbeat_ack")
    assert down.acknowledged.sequence.counter == 1 and session._status_ack is None
    stream.say(s.Up(heartbeat=s.Heartbeat(number=8)))
    assert not (await stream.hear_only("heartbeat_ack")).HasField("acknowledged"), "once is enough"


class Held:
    def __init__(self) -> None:
        self.told: list[float] = []

    def ack_now(self) -> None:
        self.told.append(asyncio.get_running_loop().time())


def test_acknowledgements_wait_as_long_as_the_cluster_is_large() -> None:
    async def main() -> None:
        nodes, loop = 50, asyncio.get_running_loop()
        acks = Acks(lambda: nodes)
        held = [Held() for _ in range(3)]
        assert not acks.hold_back(held[0]), "in a small cluster nobody waits"
        nodes = 5000
        begin = loop.time()
        for one in held:
            assert acks.hold_back(one)
            await asyncio.sleep(1.0)
        await asyncio.sleep(60.0)
        assert [one.told[0] - begin for one in held] == pytest.approx([5.0, 6.0, 7.0], abs=0.1)
        assert all(len(one.told) == 1 for one in held)
        acks.hold_back(held[0])
        acks.close()
        await asyncio.sleep(60.0)
        assert len(held[0].told) == 1

    virtual(main())
