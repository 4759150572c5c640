"""What the worker makes of slow steps, of probes, and of a log's end, with a whole agent on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from shoal.agent.images.port import Credential, Image, ImageConfig, ImageFault
from shoal.agent.pods.probing import Verdict
from shoal.agent.runtime.port import ContainerID
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s
from tests.agent_world import World, scenario, until
from tests.agents import UID, deleted, make_pod

FAR = "far.example/app:1"


def far_pod(uid: str = UID) -> o.Pod:
    pod = make_pod(uid=uid)
    pod.spec.containers[0].image = FAR
    return pod


def is_running(report: s.PodReport) -> bool:
    return report.status.phase == "Running"


def says(reason: str) -> Callable[[s.PodReport], bool]:
    return lambda report: report.status.containerStatuses[0].state.waiting.reason == reason


def hang(world: World) -> asyncio.Event:
    """Every pull waits until the event; how far it is is said each tenth of a second."""
    gate, pull = asyncio.Event(), world.images.pull

    async def slow(
        name: str, credentials: Sequence[Credential] = (), progress: Callable[[str], None] | None = None
    ) -> Image:
        while not gate.is_set():
            if progress is not None:
                progress(f"at {asyncio.get_running_loop().time():.1f}")
            await asyncio.sleep(0.1)
        return await pull(name, credentials, progress)

    world.images.pull = slow  # type: ignore[method-assign]
    return gate


@scenario
async def test_an_image_is_pulled_held_and_listed_with_the_node(world: World) -> None:
    world.images.publish(FAR, ImageConfig(("/run",)))
    async with world.running():
        pipe = await world.master.welcomed(-1, far_pod())
        await world.reports(pipe, UID, is_running)
        assert list(await world.images.holders()) == [f"{UID}/app"]
        await until(lambda: any(FAR in name for n in pipe.of("node") for i in n.images for name in i.names))


@scenario
async def test_a_pull_that_takes_long_holds_no_other_pod_up_and_tells_little(world: World) -> None:
    world.images.publish(FAR, ImageConfig(("/run",)))
    gate = hang(world)
    async with world.running():
        uids = [f"0a1b2c3d-0000-4000-8000-{n:012}" for n in range(100, 150)]
        pipe = await world.master.welcomed(-1, *(far_pod(uid) for uid in uids), make_pod())
        await world.reports(pipe, UID, is_running)
        await asyncio.sleep(20)
        told = [pod for report in pipe.of("status") for pod in report.pods if pod.uid == uids[0]]
        assert 5 <= len({pod.status.containerStatuses[0].state.waiting.message for pod in told}) <= 12
        gate.set()
        await world.reports(pipe, uids[0], is_running)


@scenario
async def test_a_pod_that_is_deleted_amid_its_pull_goes_at_once_and_leaves_nothing_held(world: World) -> None:
    hang(world)
    async with world.running() as agent:
        pipe = await world.master.welcomed(-1, far_pod())
        await world.reports(pipe, UID, says("ContainerCreating"))
        pipe.put(world.master.change(deleted(far_pod())))
        await world.reports(pipe, UID, lambda report: report.ended)
        await until(lambda: agent.worker.in_flight == 0, "no pull in flight")
        assert list(await world.images.holders()) == []


@scenario
async def test_a_registry_that_comes_back_is_noticed_by_itself(world: World) -> None:
    world.images.publish(FAR, ImageConfig(("/run",)))
    world.images.faults[FAR] = ImageFault("RegistryUnavailable", "no route to host", retry_after=25)
    async with world.running():
        pipe = await world.master.welcomed(-1, far_pod())
        await world.reports(pipe, UID, says("ErrImagePull"))
        report = await world.reports(pipe, UID, says("ImagePullBackOff"))
        assert "no route to host" in report.status.containerStatuses[0].state.waiting.message
        world.images.faults.clear()
        begun = world.now()
        await world.reports(pipe, UID, is_running)
        assert 20 < world.now() - begun < 30, "after the time that the registry asked for"


@scenario
async def test_a_verdict_reaches_the_status_and_a_deleted_pod_is_not_watched(world: World) -> None:
    pod = make_pod()
    pod.spec.containers[0].readinessProbe.tcpSocket.port.number = 80
    world.prober.failing.add("app")

    def is_ready(report: s.PodReport) -> bool:
        return report.status.containerStatuses[0].ready

    async with world.running():
        pipe = await world.master.welcomed(-1, pod)
        report = await world.reports(pipe, UID, is_running)
        assert not is_ready(report)
        await until(lambda: (UID, "app") in world.prober.targets)
        world.prober.tell(Verdict(ContainerID(UID, "app", 0), "readiness", True, "open"))
        await world.reports(pipe, UID, is_ready)
        pipe.put(world.master.change(deleted(pod)))
        await world.reports(pipe, UID, lambda report: report.ended)
        assert world.prober.targets == {}


@scenario
async def test_b12_the_end_of_a_log_is_the_message_within_its_bounds(world: World) -> None:
    pod = make_pod(policy="Never")
    container = pod.spec.containers[0]
    container.command.extend(["exit", "3"])
    container.terminationMessagePolicy = "FallbackToLogsOnError"
    line = b"2026-01-02T03:04:05.678Z stdout F %03d " + b"x" * 60 + b"\n"
    world.logs.append(f"/logs/{UID}/app/0.log", b"".join(line % n for n in range(200)))
    async with world.running():
        pipe = await world.master.welcomed(-1, pod)
        report = await world.reports(pipe, UID, lambda report: report.status.phase == "Failed")
        message = report.status.containerStatuses[0].state.terminated.message
        assert len(message) == 2048 and message.splitlines()[-1].startswith("199 ")


@scenario
async def test_a_hook_s_time_holds_no_other_step_up_and_ends_with_its_pod(world: World) -> None:
    pod = make_pod()
    pod.spec.containers[0].lifecycle.postStart.sleep.seconds = 3000
    async with world.running() as agent:
        pipe = await world.master.welcomed(-1, pod)
        await until(lambda: len(world.hooks.ran) == 1)
        pipe.put(world.master.change(deleted(pod)))
        await world.reports(pipe, UID, lambda report: report.ended)
        await until(lambda: agent.worker.in_flight == 0, "no hook in flight")
