"""The agent dies at every step of its work, and the next one goes on: nothing twice, nothing lost (B95, B96)."""

from __future__ import annotations

import asyncio
import signal

import pytest

from shoal.agent.runtime.port import ContainerID
from shoal.proto.v1 import objects_pb2 as o
from tests.agent_world import Pipe, World, kill, newest, until
from tests.agents import NOW, UID, deleted, make_pod
from tests.sim import loop as sim

STEPS = range(1, 60, 2)  # of the loop: more than a start or a stop takes


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def serve(world: World, pods: list[o.Pod]) -> None:
    """A master that welcomes every session and assigns these pods."""
    seen = 0
    while True:
        await until(lambda s=seen: len(world.master.sessions) > s, "a session")  # type: ignore[misc]
        await world.master.welcomed(seen, *pods)
        seen += 1


async def statuses(world: World) -> list[tuple[str, int]]:
    return [
        (pod.status.phase, pod.status.containerStatuses[0].restartCount)
        for pipe in world.master.sessions
        for report in pipe.of("status")
        for pod in report.pods
    ]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("seed", [0, 1])
def test_b95_an_agent_that_dies_while_starting_a_pod(step: int, seed: int) -> None:
    async def main() -> None:
        world = World(seed, start_seconds=0.02, sandbox_seconds=0.01)
        master = asyncio.create_task(serve(world, [make_pod()]))
        task = asyncio.create_task(world.agent().run())
        await until(lambda: bool(world.master.sessions))
        await steps(step)
        await kill(task)
        async with world.running() as agent:
            await until(lambda: UID in agent.worker.machines and agent.worker.machines[UID].phase == "Running")
            await asyncio.sleep(60)
            assert list(world.runtime.specs) == [ContainerID(UID, "app", 0)], "one process, started once"
            assert set(await statuses(world)) <= {("Pending", 0), ("Running", 0)}
        await kill(master)

    sim.run(seed, main())


@pytest.mark.parametrize("step", STEPS)
def test_b95_an_agent_that_dies_while_stopping_a_pod(step: int) -> None:
    async def main() -> None:
        world = World(start_seconds=0.01)
        pods = [make_pod(grace=20)]
        master = asyncio.create_task(serve(world, pods))
        async with world.running() as agent:
            await until(lambda: UID in agent.worker.machines and agent.worker.machines[UID].phase == "Running")
            world.master.revision += 1
            pods[0] = deleted(pods[0])
            await asyncio.sleep(1)
            world.master.sessions[-1].put(world.master.complete(*pods))
            await steps(step)
        before = world.now()
        async with world.running():
            await until(lambda: _ended(world))
            assert world.now() - before < 25
        assert await world.runtime.sandboxes() == [] and await world.runtime.list() == []
        assert not world.network.pods
        assert {number for _, number in world.runtime.signals} <= {signal.SIGTERM, signal.SIGKILL}
        assert signal.SIGTERM in {number for _, number in world.runtime.signals}
        await kill(master)

    sim.run(step, main())


def test_an_image_that_a_pod_nobody_knows_held_is_given_free() -> None:
    """The agent died after the hold, before anything else of the pod was there."""

    async def main() -> None:
        world = World()
        await world.images.hold("gone-pod/app", "app:1")
        async with world.running() as agent:
            await world.master.welcomed(-1, make_pod())
            await until(lambda: UID in agent.worker.machines and agent.worker.machines[UID].phase == "Running")
            await until(lambda: agent.worker.in_flight == 0)
            assert list(await world.images.holders()) == [f"{UID}/app"]

    sim.run(0, main())


def _ended(world: World) -> bool:
    return any(report.ended for pipe in world.master.sessions for report in newest(pipe, UID))


def test_the_grace_is_counted_once_over_restarts() -> None:
    async def main() -> None:
        world = World(script=_stubborn)
        pods = [make_pod(grace=20)]
        master = asyncio.create_task(serve(world, pods))
        async with world.running() as agent:
            await until(lambda: UID in agent.worker.machines and agent.worker.machines[UID].phase == "Running")
            world.master.revision += 1
            pods[0] = deleted(pods[0])
            world.master.sessions[-1].put(world.master.complete(*pods))
            await until(lambda: bool(world.runtime.signals))
            begun = world.now()
        for _ in range(3):
            async with world.running():
                await asyncio.sleep(5)
        async with world.running():
            await until(lambda: any(number == signal.SIGKILL for _, number in world.runtime.signals))
            assert world.now() - begun == pytest.approx(20, abs=0.5)
            await until(lambda: _ended(world))
        await kill(master)

    sim.run(0, main())


def _stubborn(spec: object) -> object:
    from shoal.agent.runtime.fake import Behaviour

    return Behaviour(term=float("inf"))


def test_b96_a_restart_without_a_master_touches_nothing_and_goes_on_restarting() -> None:
    async def main() -> None:
        world = World()
        master = asyncio.create_task(serve(world, [make_pod()]))
        async with world.running() as agent:
            await until(lambda: UID in agent.worker.machines and agent.worker.machines[UID].phase == "Running")
            await until(lambda: world.master.sessions[-1].of("status") != [])
        await kill(master)
        world.master.refusing = {"10.0.0.254:7000"}
        [before] = await world.runtime.list()
        async with world.running() as agent:
            await asyncio.sleep(30)
            assert await world.runtime.list() == [before]
            assert world.network.peers and not agent.reporter.network_fault, "the network comes from the disk"
            world.runtime.crash(before.id)
            facts = agent.worker.machines[UID].container("app")
            assert facts is not None
            await until(lambda: facts.live and facts.restarts == 1)

    sim.run(0, main())


def test_an_exit_while_no_agent_was_there_counts_one_restart() -> None:
    async def main() -> None:
        world = World()
        master = asyncio.create_task(serve(world, [make_pod()]))
        async with world.running() as agent:
            await until(lambda: UID in agent.worker.machines and agent.worker.machines[UID].phase == "Running")
        world.runtime.crash(ContainerID(UID, "app", 0), 3)
        async with world.running() as agent:
            machine = agent.worker.machines
            await until(lambda: UID in machine and next(iter(machine[UID].containers())).restarts == 1)
            pipe: Pipe = await world.master.session()
            report = await world.reports(pipe, UID, lambda r: r.status.containerStatuses[0].restartCount == 1)
            assert report.status.containerStatuses[0].lastState.terminated.exitCode == 3
        await kill(master)

    sim.run(0, main())


def test_a_pod_that_was_taken_away_while_no_agent_was_there_is_stopped() -> None:
    async def main() -> None:
        world = World()
        pods = [make_pod(), make_pod("other", uid="uid-2")]
        master = asyncio.create_task(serve(world, pods))
        async with world.running() as agent:
            machines = agent.worker.machines
            await until(lambda: len(machines) == 2 and all(m.phase == "Running" for m in machines.values()))
        del pods[0]
        async with world.running() as agent:
            await until(lambda: agent.connected and set(agent.worker.machines) == {"uid-2"})
            assert {state.id.pod_uid for state in await world.runtime.list()} == {"uid-2"}
            assert [record.uid for record in await world.state.pods()] == ["uid-2"]
        await kill(master)

    sim.run(0, main())


def test_a_lost_state_folder_adopts_what_is_assigned_and_stops_the_rest() -> None:
    async def main() -> None:
        world = World()
        pods = [make_pod(), make_pod("other", uid="uid-2")]
        master = asyncio.create_task(serve(world, pods))
        async with world.running() as agent:
            machines = agent.worker.machines
            await until(lambda: len(machines) == 2 and all(m.phase == "Running" for m in machines.values()))
        [kept] = [state for state in await world.runtime.list() if state.id.pod_uid == "uid-2"]
        world.state._pods.clear()
        del pods[0]
        async with world.running() as agent:
            await until(lambda: agent.worker.machines.get("uid-2") is not None)
            await asyncio.sleep(5)
            assert await world.runtime.list() == [kept]
        await kill(master)

    sim.run(0, main())


def test_after_a_reboot_the_pods_run_again() -> None:
    async def main() -> None:
        world = World()
        master = asyncio.create_task(serve(world, [make_pod()]))
        async with world.running() as agent:
            await until(lambda: UID in agent.worker.machines and agent.worker.machines[UID].phase == "Running")
        world.runtime.reboot()
        world.machine.boot_id = "boot-2"
        async with world.running() as agent:
            await until(lambda: UID in agent.worker.machines)
            facts = agent.worker.machines[UID].container("app")
            assert facts is not None
            await until(lambda: facts.live and facts.restarts == 1)
            assert world.master.sessions[-1].of("hello")[0].boot_id == "boot-2"
        await kill(master)

    sim.run(0, main())


def test_a_full_disk_holds_new_pods_back_with_the_reason_and_recovers() -> None:
    async def main() -> None:
        world = World()
        world.state.full = True
        master = asyncio.create_task(serve(world, [make_pod()]))
        async with world.running():
            pipe = await world.master.session()
            report = await world.reports(
                pipe, UID, lambda r: r.status.containerStatuses[0].state.waiting.reason == "NodeStateNotSaved"
            )
            assert "no space left" in report.status.containerStatuses[0].state.waiting.message
            assert await world.runtime.list() == []
            world.state.full = False
            await world.reports(pipe, UID, lambda r: r.status.phase == "Running")
        await kill(master)

    sim.run(0, main())


def test_a_runtime_that_is_away_is_waited_for() -> None:
    async def main() -> None:
        world = World()
        world.runtime.gone = True
        master = asyncio.create_task(serve(world, [make_pod()]))
        async with world.running() as agent:
            await asyncio.sleep(10)
            assert agent.reporter.runtime_fault and not agent.restored
            assert any("runtime" in fault for fault in agent.unready())
            world.runtime.come_back()
            await until(lambda: UID in agent.worker.machines and agent.worker.machines[UID].phase == "Running")
            await until(lambda: not agent.unready())
            world.runtime.gone = True
            world.runtime.crash(ContainerID(UID, "app", 0))
            await until(lambda: any("runtime" in fault for fault in agent.unready()))
            await agent.refresh_usage()  # the records on disk answer without the spawner
            await asyncio.sleep(3)
            assert any("runtime" in fault for fault in agent.unready())
            world.runtime.come_back()
            facts = agent.worker.machines[UID].container("app")
            assert facts is not None
            await until(lambda: facts.live and facts.restarts == 1)
            await until(lambda: not agent.unready())
        await kill(master)

    sim.run(0, main())


def test_the_clock_is_wall_time() -> None:
    async def main() -> None:
        world = World()
        await asyncio.sleep(5)
        assert world.now() == pytest.approx(NOW + 5)

    sim.run(0, main())
