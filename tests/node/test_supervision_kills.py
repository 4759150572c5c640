"""Agent, spawner and supervisor may die at any moment: containers, logs and exit codes survive."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.agent.runtime import cgroups, records
from shoal.agent.runtime.client import Client
from shoal.agent.runtime.port import ContainerID, ContainerState, RuntimeFault, RuntimeGone, StartError
from tests.node.runtime_contract import until_exit
from tests.node.supervision_world import PATIENCE, World, ended, persistent, state_of, until

TICKER = "n=0; while true; do n=$((n+1)); echo tick $n; sleep 0.02; done"
ON_TERM = "trap 'exit 7' TERM; echo ready; while true; do sleep 0.02; done"


async def running(world: World, client: Client, script: str) -> ContainerState:
    """A pod with one container that has written its first line."""
    pod = world.pod()
    await client.ensure_sandbox(world.sandbox(pod))
    state = await client.start(world.spec(pod, script))
    await until(lambda: world.lines(pod), "the first line is in the log")
    return state


def kill(pid: int) -> None:
    assert pid > 0
    os.kill(pid, signal.SIGKILL)


async def replaced(world: World, pod: str, old: int) -> None:
    await until(lambda: world.supervisor_pid(pod) not in (0, old), "a new supervisor")


async def more_lines(world: World, pod: str) -> None:
    seen = len(world.lines(pod))
    await until(lambda: len(world.lines(pod)) > seen + 2, "the log goes on")


async def test_an_agent_restart_touches_nothing(world: World) -> None:
    async with world.client() as client:
        before = await running(world, client, TICKER)
    await more_lines(world, before.id.pod_uid)
    async with world.client() as client:
        assert await state_of(client, before.id) == before
        events = client.events()
        await client.signal(before.id, signal.SIGKILL)
        assert (await until_exit(events, before.id)).code == 137
    numbers = [int(line.split()[1]) for line in world.lines(before.id.pod_uid)]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_a_lost_spawner_is_heard_of_at_once(world: World) -> None:
    async with world.client() as client:
        before = await running(world, client, TICKER)
        events = client.events()
        kill(world.spawner_pid())
        with pytest.raises(RuntimeGone):
            async with asyncio.timeout(PATIENCE):
                await anext(events)
        assert await state_of(client, before.id) == before


async def test_a_dead_supervisor_costs_neither_log_nor_code(world: World) -> None:
    async with world.client() as client:
        before = await running(world, client, TICKER)
        second = await running(world, client, ON_TERM)
        for state in (before, second):
            pod = state.id.pod_uid
            for _ in range(3):
                old = world.supervisor_pid(pod)
                kill(old)
                await replaced(world, pod, old)
            assert await state_of(client, state.id) == state
        await more_lines(world, before.id.pod_uid)
        events = client.events()
        await persistent(lambda: client.signal(second.id, signal.SIGTERM))
        assert (await until_exit(events, second.id)).code == 7


async def test_a_container_that_ends_without_a_supervisor_keeps_its_code(world: World) -> None:
    async with world.client() as client:
        state = await running(world, client, "echo on; sleep 0.5; echo off; exit 9")
        spawner = world.spawner_pid()
        os.kill(spawner, signal.SIGSTOP)  # nobody replaces the supervisor before the end
        try:
            kill(world.supervisor_pid(state.id.pod_uid))
            await until(lambda: is_zombie(state.pid), "the container has ended")
        finally:
            os.kill(spawner, signal.SIGCONT)
        exit = (await ended(client, state.id)).exit
        assert exit is not None
        assert (exit.code, exit.reason) == (9, "")
        await until(lambda: world.lines(state.id.pod_uid) == ["on", "off"], "what it wrote is in the log")


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_a_dead_spawner_stops_no_supervisor(world: World) -> None:
    async with world.client() as client:
        ticker = await running(world, client, TICKER)
        leaver = await running(world, client, ON_TERM)
        events = client.events()
        supervisors = {state.id: world.supervisor_pid(state.id.pod_uid) for state in (ticker, leaver)}
        old = world.spawner_pid()
        kill(old)
        os.kill(leaver.pid, signal.SIGTERM)
        assert (await until_exit(events, leaver.id)).code == 7
        await until(lambda: world.spawner_pid() not in (0, old), "a new spawner")
        assert {state.id: world.supervisor_pid(state.id.pod_uid) for state in (ticker, leaver)} == supervisors
        await more_lines(world, ticker.id.pod_uid)
        assert await state_of(client, ticker.id) == ticker


async def test_two_deaths_lose_a_code_but_not_the_end(world: World) -> None:
    async with world.client() as client:
        state = await running(world, client, ON_TERM)
        ticker = await running(world, client, TICKER)
        kill(world.spawner_pid())
        await persistent(client.list)
        for container in (state, ticker):
            supervisor = world.supervisor_pid(container.id.pod_uid)
            kill(supervisor)
            await replaced(world, container.id.pod_uid, supervisor)
        await more_lines(world, ticker.id.pod_uid)
        await persistent(lambda: client.signal(state.id, signal.SIGTERM))
        exit = (await ended(client, state.id)).exit
        assert exit is not None
        assert (exit.code, exit.reason) == (137, "ContainerStatusUnknown")


async def test_both_helpers_dead_at_once(world: World) -> None:
    async with world.client() as client:
        state = await running(world, client, "echo begin; sleep 1; echo later; sleep 1000")
        supervisor = world.supervisor_pid(state.id.pod_uid)
        kill(world.spawner_pid())
        kill(supervisor)
        await replaced(world, state.id.pod_uid, supervisor)
        assert await state_of(client, state.id) == state
        await until(lambda: world.lines(state.id.pod_uid) == ["begin", "later"], "the log goes on")
        kill(state.pid)
        exit = (await ended(client, state.id)).exit
        assert exit is not None
        assert (exit.code, exit.reason) == (137, "ContainerStatusUnknown")


@pytest.mark.parametrize("point", ["intent", "pipes", "launched", "kept", "started"])
async def test_a_supervisor_that_dies_in_mid_start(world: World, point: str) -> None:
    groups = cgroups.open_cgroups(world.settings.cgroup_root)
    async with world.client() as client:
        pod = world.pod()
        await client.ensure_sandbox(world.sandbox(pod))
        spec = world.spec(pod, TICKER)
        world.arm(f"supervisor.{point}")
        with pytest.raises(RuntimeGone):
            await client.start(spec)
        path = groups.container_path(pod, "main", 0)
        if point in ("intent", "pipes"):
            with pytest.raises(StartError, match="nothing of it had run"):
                await persistent(lambda: client.start(spec))
            assert not groups.populated(path)
        else:
            state = await persistent(lambda: client.start(spec))
            lives = point in ("kept", "started")
            assert (state.exit is None) == lives
            assert groups.populated(path) == lives
        assert len(await persistent(client.list)) == 1
        again = replace(spec, id=ContainerID(pod, "main", 1))
        assert (await persistent(lambda: client.start(again))).exit is None


async def test_a_start_that_could_not_be_cleaned_up_is_resolved_later(world: World) -> None:
    """An intent without an end, under a living supervisor: processes had refused to die, or the disk a record."""
    async with world.client() as client:
        pod = world.pod()
        await client.ensure_sandbox(world.sandbox(pod))
        spec = world.spec(pod, TICKER)
        folder = records.run_folder(world.settings.data, pod, "main", 0)
        os.makedirs(folder)
        records.write(folder, "intent", {"spec": {}, "seccomp": "", "boot": "", "at": 0.0})
        for _ in range(2):
            with pytest.raises(StartError, match="nothing of it had run"):
                await client.start(spec)
        again = replace(spec, id=ContainerID(pod, "main", 1))
        assert (await client.start(again)).exit is None


@pytest.mark.parametrize("point", ["ended", "recorded"])
async def test_a_supervisor_that_dies_while_its_container_ends(world: World, point: str) -> None:
    async with world.client() as client:
        state = await running(world, client, ON_TERM)
        world.arm(f"supervisor.{point}")
        await client.signal(state.id, signal.SIGTERM)
        exit = (await ended(client, state.id)).exit
        assert exit is not None
        assert (exit.code, exit.reason) == (7, "")


async def test_a_supervisor_that_dies_while_it_frees(world: World) -> None:
    async with world.client() as client:
        state = await running(world, client, ON_TERM)
        await client.signal(state.id, signal.SIGKILL)
        await ended(client, state.id)
        world.arm("supervisor.removing")
        with pytest.raises(RuntimeGone):
            await client.remove_container(state.id)
        await persistent(lambda: client.remove_container(state.id))
        assert list(await client.list()) == []
        world.arm("supervisor.removing")
        with pytest.raises(RuntimeGone):
            await client.remove_sandbox(state.id.pod_uid)
        await persistent(lambda: client.remove_sandbox(state.id.pod_uid))
        assert list(await client.sandboxes()) == []
        await until(lambda: not any(Path(world.settings.data, "trash").iterdir()), "the trash is swept")


async def test_an_upgraded_spawner_keeps_children_and_descriptors(world: World) -> None:
    async with world.client() as client:
        ticker = await running(world, client, TICKER)
        leaver = await running(world, client, ON_TERM)
        spawner = world.spawner_pid()
        for _ in range(2):
            os.kill(spawner, signal.SIGHUP)
            await asyncio.sleep(0.05)
        await persistent(client.list)
        assert world.spawner_pid() == spawner
        for state in (ticker, leaver):
            old = world.supervisor_pid(state.id.pod_uid)
            kill(old)
            await replaced(world, state.id.pod_uid, old)
        await more_lines(world, ticker.id.pod_uid)
        await persistent(lambda: client.signal(leaver.id, signal.SIGTERM))
        exit = (await ended(client, leaver.id)).exit
        assert exit is not None
        assert (exit.code, exit.reason) == (7, "")


async def test_an_exec_outlives_its_supervisor(world: World) -> None:
    async with world.client() as client:
        state = await running(world, client, TICKER)
        stream = await client.exec(state.id, ["sh", "-c", "read line; echo got $line; exit 5"], stdin=True)
        old = world.supervisor_pid(state.id.pod_uid)
        kill(old)
        await replaced(world, state.id.pod_uid, old)
        await stream.write(b"words\n")
        assert await stream.read() == ("stdout", b"got words\n")
        async with asyncio.timeout(PATIENCE):
            assert await stream.wait() == 5
        await stream.close()


async def test_after_a_reboot_all_has_ended_and_no_sandbox_is_left(world: World) -> None:
    async with world.client() as client:
        state = await running(world, client, TICKER)
    kill(world.spawner_pid())
    kill(world.supervisor_pid(state.id.pod_uid))
    cgroups.open_cgroups(world.settings.cgroup_root).kill(world.settings.cgroup_root)
    world.settings = replace(world.settings, boot_id="00000000-0000-4000-8000-000000000002")
    async with world.client() as client:
        exit = (await state_of(client, state.id)).exit
        assert exit is not None
        assert exit.reason == "ContainerStatusUnknown"
        assert list(await client.sandboxes()) == []
        await client.remove_sandbox(state.id.pod_uid)


@pytest.mark.slow
async def test_kills_at_random_moments(world: World) -> None:
    rng = random.Random(11)
    groups = cgroups.open_cgroups(world.settings.cgroup_root)
    async with world.client() as client:
        pod = world.pod()
        await persistent(lambda: client.ensure_sandbox(world.sandbox(pod)))
        outcomes: dict[int, str] = {}
        for attempt in range(25):
            spec = world.spec(pod, ON_TERM, attempt=attempt)
            killer = asyncio.create_task(kill_soon(world, pod, rng))
            try:
                state = await persistent(lambda spec=spec: client.start(spec))  # type: ignore[misc]
                exit = (await stopped(client, state.id)).exit
                assert exit is not None
                outcomes[attempt] = exit.reason or str(exit.code)
            except StartError as fault:
                outcomes[attempt] = fault.reason
            await killer
            await until(lambda id=spec.id: not alive(groups, id), "nothing is left of the run")  # type: ignore[misc]
        assert set(outcomes.values()) <= {"7", "143", "StartError", "ContainerStatusUnknown"}, outcomes
        states = await persistent(client.list)
        assert sorted(state.id.attempt for state in states) == list(range(25))
        assert all(state.exit or state.start_error for state in states)


async def stopped(client: Client, id: ContainerID) -> ContainerState:
    """Sends TERM until the end: the first may come before the shell has set its trap, and PID 1 ignores it then."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await persistent(lambda: client.signal(id, signal.SIGTERM))
            state = await state_of(client, id)
            if state.exit is not None:
                return state
            await asyncio.sleep(0.02)


def alive(groups: cgroups.Cgroups, id: ContainerID) -> bool:
    return groups.populated(groups.container_path(id.pod_uid, id.name, id.attempt))


async def kill_soon(world: World, pod: str, rng: random.Random) -> None:
    """Kills one helper within the time that a start and a stop take."""
    await asyncio.sleep(rng.uniform(0, 0.06))
    pid = world.supervisor_pid(pod) if rng.random() < 0.7 else world.spawner_pid()
    if pid:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


async def test_requests_that_cannot_be_done_say_why(world: World) -> None:
    async with world.client() as client:
        with pytest.raises(RuntimeFault, match="not a name"):
            await client.ensure_sandbox(world.sandbox("../../etc"))
        state = await running(world, client, TICKER)
        with pytest.raises(RuntimeFault, match="is no signal"):
            await client.signal(state.id, 1000)
        with pytest.raises(RuntimeFault, match="not name a run"):
            await client.signal(replace(state.id, attempt=-1), 15)
