"""A hundred pods on one node: what their supervisors cost, and how soon a new spawner has found them all."""

from __future__ import annotations

import os
import signal
import statistics
import time
from pathlib import Path

import pytest

from tests.node.supervision_world import World, persistent, until

PODS = 100
PRIVATE_KIB_LIMIT = 4000  # per supervisor that has started a container


def private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


@pytest.mark.slow
async def test_a_hundred_pods(world: World) -> None:
    async with world.client() as client:
        pods = [world.pod() for _ in range(PODS)]
        begun = time.monotonic()
        for pod in pods:
            await client.ensure_sandbox(world.sandbox(pod))
        sandbox_ms = (time.monotonic() - begun) / PODS * 1000
        idle = [private_kib(world.supervisor_pid(pod)) for pod in pods]
        begun = time.monotonic()
        states = [await client.start(world.spec(pod, "echo up; sleep 1000")) for pod in pods]
        start_ms = (time.monotonic() - begun) / PODS * 1000
        await until(lambda: all(world.lines(pod) == ["up"] for pod in pods), "all have written")
        running = [private_kib(world.supervisor_pid(pod)) for pod in pods]
        supervisors = {pod: world.supervisor_pid(pod) for pod in pods}
        os.kill(world.spawner_pid(), signal.SIGKILL)
        begun = time.monotonic()
        assert sorted(state.pid for state in await persistent(client.list)) == sorted(state.pid for state in states)
        found_ms = (time.monotonic() - begun) * 1000
        assert {pod: world.supervisor_pid(pod) for pod in pods} == supervisors
        begun = time.monotonic()
        for pod in pods:
            await client.remove_sandbox(pod)
        remove_ms = (time.monotonic() - begun) / PODS * 1000
    print(f"\nsandbox_ms={sandbox_ms:.1f} start_ms={start_ms:.1f} remove_ms={remove_ms:.1f} refound_ms={found_ms:.0f}")
    print(f"supervisor_private_kib idle={statistics.median(idle):.0f} running={statistics.median(running):.0f}")
    assert statistics.median(running) < PRIVATE_KIB_LIMIT
