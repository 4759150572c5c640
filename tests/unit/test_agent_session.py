"""The agent's side of the session, rule by rule, on in-memory streams and virtual time."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise

from shoal.agent.runtime.port import ContainerID
from shoal.agent.state import Position
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s
from tests.agent_world import MASTER, OTHER, Pipe, World, newest, scenario, until
from tests.agents import UID, deleted, make_pod


def phase(wanted: str):  # type: ignore[no-untyped-def]
    return lambda report: report.status.phase == wanted


@scenario
async def test_hello_says_who_this_is_and_what_it_holds(world: World) -> None:
    async with world.running():
        pipe = await world.master.session()
        hello = pipe.of("hello")[0]
        assert (hello.node, hello.boot_id, hello.protocol_min, hello.protocol_max) == ("n1", "boot-1", 1, 1)
        assert hello.instance_id and not hello.pods and not hello.cluster_incarnation
        assert hello.report.capacity["cpu"].text == "2" and hello.report.capacity["memory"].text == "4Gi"
        assert hello.report.addresses[0].address == "10.0.0.1" and hello.report.metrics_port == 9100
        assert hello.report.images[0].names[0] == "docker.io/library/app:1"
        assert hello.labels == {"zone": "a"}
        instance = hello.instance_id
        pipe.put(world.master.welcome())
        pipe.put(world.master.complete(make_pod()))
        await world.reports(pipe, UID, phase("Running"))
    async with world.running():
        hello = (await world.master.session(1)).of("hello")[0]
        assert hello.instance_id == instance
        assert [(pod.uid, pod.phase, pod.ended) for pod in hello.pods] in (
            [(UID, "Running", False)],
            [(UID, "Pending", False)],
        )
        assert (hello.position.epoch, hello.position.revision) == (1, 10)
        assert hello.cluster_incarnation == "inc-1"


@scenario
async def test_an_assigned_pod_runs_and_is_reported(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed(-1, make_pod())
        report = await world.reports(pipe, UID, phase("Running"))
        assert report.status.podIP.startswith("10.244.1.")
        assert (report.namespace, report.name) == ("default", "web")
        assert world.network.peers[0].name == "n2" and len(world.network.peers) == 1
        assert not agent.worker.in_flight, "an idle pod costs no task"


@scenario
async def test_increments_bring_and_take_pods(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed()
        pipe.put(world.master.change(make_pod()))
        await world.reports(pipe, UID, phase("Running"))
        pipe.put(world.master.change(deleted(make_pod(), grace=5)))
        report = await world.reports(pipe, UID, lambda r: r.ended)
        assert report.status.phase == "Failed"
        pipe.put(world.master.change(remove=(UID,)))
        await until(lambda: not agent.worker.machines)
        assert await world.state.pods() == []
        assert await world.runtime.sandboxes() == [] and not world.network.pods
        assert agent.sync.position == Position(1, 13)


@scenario
async def test_a_gap_asks_once_for_everything(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed()
        await until(lambda: agent.sync.position == Position(1, 10))
        world.master.revision = 20
        pipe.put(world.master.change(make_pod()))
        pipe.put(world.master.change(make_pod()))
        resync = await pipe.wait("resync")
        assert "1/20" in resync.why
        await asyncio.sleep(20)
        assert len(pipe.of("resync")) == 1 and not agent.worker.machines
        pipe.put(world.master.complete(make_pod()))
        await world.reports(pipe, UID, phase("Running"))


@scenario
async def test_what_is_older_is_refused_and_the_session_left(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed(-1, make_pod())
        await world.reports(pipe, UID, phase("Running"))
        world.master.revision = 5
        pipe.put(world.master.complete())
        await until(lambda: pipe.closed)
        assert UID in agent.worker.machines and not agent.worker.machines[UID].stopping
        world.master.epoch, world.master.revision = 0, 900
        second = await world.master.session()
        second.put(world.master.welcome())
        await until(lambda: second.closed)
        assert agent.sync.position == Position(1, 10)


@scenario
async def test_a_restored_store_has_another_incarnation_and_may_begin_anew(world: World) -> None:
    async with world.running() as agent:
        world.master.epoch, world.master.revision = 9, 900
        pipe = await world.master.welcomed(-1, make_pod())
        await world.reports(pipe, UID, phase("Running"))
        pipe.cut()
        world.master.epoch, world.master.revision, world.master.incarnation = 1, 3, "inc-2"
        pipe = await world.master.session(1)
        pipe.put(world.master.welcome())
        await asyncio.sleep(1)
        assert (await world.state.cluster()).position == Position(9, 900)
        pipe.put(world.master.complete(make_pod()))
        await until(lambda: agent.sync.position == Position(1, 3))
        await until(lambda: world.state._cluster.incarnation == "inc-2")
        assert not agent.worker.machines[UID].stopping


@scenario
async def test_statuses_come_at_once_and_then_every_tenth_of_a_second(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed()
        await asyncio.sleep(1)
        times: list[float] = []
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for number in range(30):
            agent.outbox.put(s.PodReport(uid="x", name=str(number)))
            await asyncio.sleep(0.02)
            times += [loop.time()] * (len(pipe.of("status")) - len(times))
        assert times[0] - begin <= 0.021
        gaps = [after - before for before, after in pairwise(times)]
        assert gaps and min(gaps) >= 0.079  # 100 ms, seen through a loop of 20 ms
        assert len(times) <= 7
        await until(lambda: newest(pipe, "x")[0].name == "29")
        counters = [report.sequence.counter for report in pipe.of("status")]
        assert counters == sorted(set(counters))


@scenario
async def test_a_start_without_trouble_waits_for_its_news(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed()
        await asyncio.sleep(1)
        waiting = s.PodReport(uid="x", status=o.PodStatus(phase="Pending"))
        waiting.status.containerStatuses.add().state.waiting.reason = "ContainerCreating"
        agent.outbox.put(waiting)
        await asyncio.sleep(0.05)
        assert pipe.of("status") == []
        agent.outbox.put(s.PodReport(uid="x", status=o.PodStatus(phase="Running")))
        await asyncio.sleep(0.001)
        assert [report.pods[0].status.phase for report in pipe.of("status")] == ["Running"]
        agent.outbox.put(waiting)
        await asyncio.sleep(0.101)
        assert newest(pipe, "x")[0] == waiting
        waiting.status.containerStatuses[0].state.waiting.reason = "ErrImagePull"
        agent.outbox.put(waiting)
        await asyncio.sleep(0.001)
        assert newest(pipe, "x")[0] == waiting


@scenario
async def test_what_was_not_acknowledged_is_sent_again(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed(-1, make_pod())
        report = await world.reports(pipe, UID, phase("Running"))
        pipe.cut()
        pipe = await world.master.welcomed(1, make_pod())
        again = await world.reports(pipe, UID, phase("Running"))
        assert again == report
        pipe.put(s.Down(status_ack=s.StatusAck(sequence=pipe.of("status")[-1].sequence)))
        await until(lambda: agent.outbox.unacknowledged == 0)
        pipe.cut()
        pipe = await world.master.welcomed(2, make_pod())
        await asyncio.sleep(3)
        assert pipe.of("status") == []


@scenario
async def test_the_sequence_grows_over_restarts(world: World) -> None:
    starts = []
    for number in range(3):
        async with world.running():
            pipe = await world.master.welcomed(number, make_pod())
            await world.reports(pipe, UID, phase("Running"))
            starts.append(pipe.of("status")[0].sequence.agent_start)
    assert starts == sorted(set(starts))


@scenario
async def test_heartbeats_only_when_nothing_else_was_sent(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed()
        await asyncio.sleep(21)
        assert [beat.number for beat in pipe.of("heartbeat")] == [1, 2, 3, 4]
        for _ in range(10):
            agent.outbox.put(s.PodReport(uid="x"))
            await asyncio.sleep(4)
        assert len(pipe.of("heartbeat")) == 4
        await asyncio.sleep(60)  # the master is free not to acknowledge: a leader that cannot renew does so
        assert not pipe.closed


@scenario
async def test_it_comes_back_with_jitter_and_tries_every_master(world: World) -> None:
    world.master.refusing = {MASTER, OTHER}
    async with world.running((MASTER, OTHER)):
        await until(lambda: len(world.master.attempts) >= 40)
        times = [at for at, _ in world.master.attempts]
        gaps = [after - before for before, after in pairwise(times)]
        assert {address for _, address in world.master.attempts} == {MASTER, OTHER}
        assert gaps[::2] == [0.0] * len(gaps[::2]), "a pause comes when every master has been asked"
        assert max(gaps) <= 5.01 and len({round(gap, 3) for gap in gaps[1::2]}) > 10
        assert sum(gaps[:3]) < 4
        world.master.refusing = {MASTER}
        assert (await world.master.session()).address == OTHER


@scenario
async def test_a_master_that_does_not_lead_says_where_the_leader_is(world: World) -> None:
    async with world.running():
        pipe = await world.master.session()
        pipe.put(s.Down(reject=s.Reject(reason="NotLeader", message="no", leader=OTHER)))
        second = await world.master.session(1)
        assert second.address == OTHER
        assert world.master.attempts[1][0] - world.master.attempts[0][0] < 0.1


@scenario
async def test_two_masters_that_point_at_each_other_are_not_asked_in_a_storm(world: World) -> None:
    async with world.running():
        for number in range(12):
            pipe = await world.master.session(number)
            leader = OTHER if pipe.address == MASTER else MASTER
            pipe.put(s.Down(reject=s.Reject(reason="NotLeader", message="no", leader=leader)))
            await until(lambda p=pipe: p.closed)  # type: ignore[misc]
        times = [at for at, _ in world.master.attempts]
        assert times[-1] - times[0] > 0.3


@scenario
async def test_a_busy_master_says_when_to_come_back(world: World) -> None:
    async with world.running():
        pipe = await world.master.session()
        pipe.put(s.Down(reject=s.Reject(reason="Busy", message="later", retry_after_ms=7000)))
        await world.master.session(1)
        wait = world.master.attempts[1][0] - world.master.attempts[0][0]
        assert 7 <= wait <= 11


def test_a_clone_is_told_loudly_and_stays_away(caplog) -> None:  # type: ignore[no-untyped-def]
    @scenario
    async def clone(world: World) -> None:
        async with world.running():
            pipe = await world.master.session()
            pipe.put(s.Down(reject=s.Reject(reason="Cloned", message="two machines call themselves n1")))
            await world.master.session(1)
            assert world.master.attempts[1][0] - world.master.attempts[0][0] >= 30

    with caplog.at_level(logging.ERROR):
        clone()
    assert "two machines call themselves n1" in caplog.text and "delete its data folder" in caplog.text


@scenario
async def test_a_session_that_is_refused_later_is_left(world: World) -> None:
    async with world.running():
        pipe = await world.master.welcomed()
        pipe.put(s.Down(reject=s.Reject(reason="NotLeader", message="another leads", leader=OTHER)))
        assert (await world.master.session(1)).address == OTHER


@scenario
async def test_a_master_that_takes_nothing_or_never_welcomes_is_left(world: World) -> None:
    async with world.running() as agent:
        await world.master.session(0)
        await world.master.session(1)  # the first did not answer within its time
        pipe: Pipe = await world.master.welcomed(1)
        await asyncio.sleep(1)
        pipe.stalled = True
        agent.outbox.put(s.PodReport(uid="x"))
        await until(lambda: pipe.closed)


@scenario
async def test_without_a_master_everything_local_goes_on(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed(-1, make_pod())
        await world.reports(pipe, UID, phase("Running"))
        world.master.refusing = {MASTER}
        pipe.cut()
        facts = agent.worker.machines[UID].container("app")
        assert facts is not None
        for number in range(3):
            world.runtime.crash(ContainerID(UID, "app", number))
            await until(lambda n=number: facts.live and facts.restarts == n + 1)  # type: ignore[misc]
        world.master.refusing = set()
        pipe = await world.master.welcomed(1, make_pod())
        report = await world.reports(pipe, UID, lambda r: r.status.containerStatuses[0].restartCount == 3)
        assert report.status.phase == "Running"


@scenario
async def test_a_lost_node_that_returns_stops_what_is_not_its_own_any_more(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed(-1, make_pod())
        await world.reports(pipe, UID, phase("Running"))
        pipe.cut()
        world.master.revision = 50
        pipe = await world.master.session(1)
        pipe.put(world.master.welcome())
        await asyncio.sleep(3)
        assert not agent.worker.machines[UID].stopping, "it hears COMPLETE first"
        pipe.put(world.master.complete())
        report = await world.reports(pipe, UID, lambda r: r.ended)
        assert report.ended
        await until(lambda: not agent.worker.machines)


@scenario
async def test_the_node_s_report_is_sent_when_it_changes(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed()
        await until(lambda: not agent.reporter.network_fault)
        report = await pipe.wait("node", len(pipe.of("node")) or 1)
        assert {c.type: c.status for c in report.conditions}["NetworkReady"] == "True"
        count = len(pipe.of("node"))
        world.images.add("extra:2")
        agent._images_stale.set()
        report = await pipe.wait("node", count + 1)
        assert any("docker.io/library/extra:2" in image.names for image in report.images)
        agent._images_stale.set()
        await asyncio.sleep(3)
        assert len(pipe.of("node")) == count + 1


@scenario
async def test_unknown_messages_and_broken_assignments_do_no_harm(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed(-1, make_pod())
        await world.reports(pipe, UID, phase("Running"))
        pipe.put(s.Down())
        broken = world.master.complete()
        broken.assignments.upsert_pods.add(uid="u", pod=b"\xff\xff")
        pipe.put(broken)
        await until(lambda: pipe.closed)
        assert not agent.worker.machines[UID].stopping


@scenario
async def test_an_acknowledgement_may_come_beside_another_message(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed(-1, make_pod())
        await world.reports(pipe, UID, phase("Running"))
        assert agent.outbox.unacknowledged
        last = pipe.of("status")[-1].sequence
        pipe.put(s.Down(heartbeat_ack=s.HeartbeatAck(number=1), acknowledged=s.StatusAck(sequence=last)))
        await until(lambda: not agent.outbox.unacknowledged)
