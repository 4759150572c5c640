"""Pods that write more to the node's disk than their limits allow are ended, and say why."""

from __future__ import annotations

import asyncio

import pytest

from shoal.agent.storage import Folders, verdict
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s
from tests.agent_world import World, scenario, until
from tests.agents import UID, make_pod

MIB = 1 << 20


def limited(volume: str = "", *limits: str) -> o.Pod:
    """With an emptyDir `v`, and a container for each limit ("" for none)."""
    pod = make_pod(containers=tuple(f"c{number}" for number in range(max(len(limits), 1))))
    source = pod.spec.volumes.add(name="v").emptyDir
    if volume:
        source.sizeLimit.text = volume
    for container, limit in zip(pod.spec.containers, limits, strict=False):
        if limit:
            container.resources.limits["ephemeral-storage"].text = limit
    return pod


@pytest.mark.parametrize(
    ("pod", "volumes", "containers", "why"),
    [
        (limited("1Mi"), MIB, {}, ""),
        (limited("1Mi"), MIB + 1, {}, 'Usage of EmptyDir volume "v" exceeds the limit "1Mi".'),
        (limited(""), 1 << 40, {}, ""),
        (limited("", "1Mi"), 0, {"c0": MIB + 1}, 'Container c0 exceeded its local ephemeral storage limit "1Mi".'),
        (limited("", "1Mi", "1Mi"), MIB, {"c0": MIB}, ""),
        (limited("", "1Mi", "1Mi"), MIB, {"c0": MIB, "c1": 1}, "the total limit of containers 2Mi."),
        (limited("", "1Mi", ""), 5 * MIB, {"c0": 1}, ""),
    ],
)
def test_who_has_to_go(pod: o.Pod, volumes: int, containers: dict[str, int], why: str) -> None:
    said = verdict(pod, {"v": volumes}, containers)
    assert said.endswith(why) and bool(said) == bool(why)


def test_a_memory_volume_does_not_count() -> None:
    pod = limited("1Mi")
    pod.spec.volumes[0].emptyDir.medium = "Memory"
    assert verdict(pod, {"v": 2 * MIB}, {}) == ""


@scenario
async def test_a_pod_above_its_limit_fails_and_is_not_started_again(world: World) -> None:
    async with world.running():
        pipe = await world.master.welcomed(-1, limited("1Mi"))
        await world.reports(pipe, UID, lambda report: report.status.phase == "Running")
        await asyncio.sleep(120)
        world.volumes.used[UID, "v"] = 2 * MIB

        def evicted(report: s.PodReport) -> bool:
            return (report.status.phase, report.status.reason) == ("Failed", "Evicted")

        report = await world.reports(pipe, UID, evicted)
        assert report.status.message == 'Usage of EmptyDir volume "v" exceeds the limit "1Mi".'
        await until(lambda: len(world.runtime.specs) == 1)
        await asyncio.sleep(600)
        assert len(world.runtime.specs) == 1


@scenario
async def test_a_container_s_logs_and_files_count(world: World) -> None:
    async with world.running():
        pipe = await world.master.welcomed(-1, limited("", "1Mi"))
        await world.reports(pipe, UID, lambda report: report.status.phase == "Running")
        logs, files = Folders("/logs", "").of(UID, "c0", 0)
        world.volumes.written.update({logs: MIB, files: 1})
        await world.reports(pipe, UID, lambda report: report.status.reason == "Evicted")
