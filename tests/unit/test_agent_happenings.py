"""What pods' lives tell as events: from a pod's machine to the master's judgement of what an agent says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shoal.agent.outbox import KEPT_HAPPENINGS, MAX_HAPPENINGS, Outbox
from shoal.agent.pods.probing import Verdict
from shoal.agent.runtime.port import ContainerID
from shoal.master.dispatcher.happenings import judge
from shoal.proto.v1 import session_pb2 as s
from tests.agent_world import Pipe, World, scenario, until
from tests.agents import UID, make_pod
from tests.control_world import World as Control
from tests.unit.test_dispatcher_sessions import pod_on


def told(pipe: Pipe) -> list[tuple[str, str, str]]:
    """(type, reason, container) of all that came on this session."""
    return [(one.type, one.reason, one.container) for report in pipe.of("status") for one in report.happenings]


def text_of(pipe: Pipe, reason: str) -> str:
    told_so = (one for report in pipe.of("status") for one in report.happenings if one.reason == reason)
    return str(next(told_so).message)


@scenario
async def test_a_pull_tells_that_it_begins_and_what_came_of_it(world: World) -> None:
    pod = make_pod()
    pod.spec.containers[0].image = "far.example/app:1"
    async with world.running():
        pipe = await world.master.welcomed(-1, pod)
        await until(lambda: ("Warning", "BackOff", "app") in told(pipe))
        assert told(pipe)[:2] == [("Normal", "Pulling", "app"), ("Warning", "Failed", "app")]
        assert "far.example/app:1" in text_of(pipe, "Failed")


@scenario
async def test_a_probe_that_fails_is_told_with_what_is_done_about_it(world: World) -> None:
    pod = make_pod()
    pod.spec.containers[0].livenessProbe.tcpSocket.port.number = 80
    async with world.running():
        pipe = await world.master.welcomed(-1, pod)
        await until(lambda: (UID, "app") in world.prober.targets)
        world.prober.tell(Verdict(ContainerID(UID, "app", 7), "liveness", False, "of another run"))
        world.prober.tell(Verdict(ContainerID(UID, "app", 0), "liveness", False, "refused"))
        await until(lambda: ("Normal", "Killing", "app") in told(pipe))
        assert text_of(pipe, "Unhealthy") == "Liveness probe failed: refused"
        assert all("another" not in one.message for report in pipe.of("status") for one in report.happenings)


@scenario
async def test_what_is_missing_is_told_once_until_it_changes(world: World) -> None:
    pod = make_pod()
    pod.spec.containers[0].envFrom.add().secretRef.name = "gone"
    async with world.running():
        pipe = await world.master.welcomed(-1, pod)
        await until(lambda: ("Warning", "Failed", "app") in told(pipe))
        await asyncio.sleep(300)  # virtual
        assert told(pipe) == [("Warning", "Failed", "app")]
        assert "gone" in text_of(pipe, "Failed")


@scenario
async def test_an_agent_that_starts_again_does_not_tell_its_pods_story_anew(world: World) -> None:
    pod = make_pod(policy="Never")
    async with world.running():
        pipe = await world.master.welcomed(-1, pod)
        await world.reports(pipe, UID, lambda report: report.status.phase == "Running")
    async with world.running():
        pipe = await world.master.welcomed(-1, pod)
        await world.reports(pipe, UID, lambda report: report.status.phase == "Running")
        assert told(pipe) == []


def happening(**fields: Any) -> s.Happening:
    values: dict[str, Any] = {"uid": "uid-p", "type": "Warning", "reason": "BackOff", "message": "m", "count": 1}
    return s.Happening(**(values | fields))


def test_what_is_said_again_is_counted_and_the_number_is_bounded() -> None:
    outbox = Outbox(1)
    for number in range(3):
        outbox.put_happening(happening(message=str(number)))
    report = outbox.take()
    assert report is not None
    assert [(one.count, one.message) for one in report.happenings] == [(3, "2")]
    assert outbox.take() is None
    for number in range(KEPT_HAPPENINGS + 1):
        outbox.put_happening(happening(uid=str(number)))
    report = outbox.take()
    assert report is not None
    assert len(report.happenings) == MAX_HAPPENINGS
    assert report.happenings[0].uid == "1"  # the oldest made room


def test_the_master_takes_a_node_s_word_on_its_own_pods() -> None:
    world = Control([pod_on("a", "p")])
    (said,) = judge(world, "a", [happening(container="c", count=10**9)])
    assert (said.about.metadata.name, said.reason, said.part, said.count) == ("p", "BackOff", "c", 1000)


@pytest.mark.parametrize(
    ("node", "fields"),
    [
        ("b", {}),
        ("a", {"uid": "uid-gone"}),
        ("a", {"uid": ""}),
        ("a", {"type": "Fatal"}),
        ("a", {"reason": "back off"}),
        ("a", {"reason": ""}),
        ("a", {"container": "nobody"}),
    ],
)
def test_the_master_drops_what_is_not_a_node_s_to_say(node: str, fields: dict[str, Any]) -> None:
    world = Control([pod_on("a", "p")])
    assert list(judge(world, node, [happening(**fields)])) == []


def test_the_master_bounds_what_one_report_can_say() -> None:
    """It waits in memory, beside what all others have said."""
    world = Control([pod_on("a", "p")])
    flood = [happening(reason=f"R{number}", message="x" * 1_000_000) for number in range(300)]
    said = list(judge(world, "a", flood))
    assert len(said) == 100
    assert max(len(one.message) for one in said) == 1024


@scenario
async def test_an_agent_that_starts_again_is_ready_from_its_first_word(world: World) -> None:
    async with world.running():
        pipe = await world.master.welcomed()
        await until(lambda: any(ready_network(node) for node in pipe.of("node")))
    async with world.running():
        pipe = await world.master.session()
        assert ready_network((await pipe.wait("hello")).report)


def ready_network(report: s.NodeReport) -> bool:
    return any(one.type == "NetworkReady" and one.status == "True" for one in report.conditions)
