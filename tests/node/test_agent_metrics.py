"""The agent's metrics: their values, and promtool's opinion of them."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from shoal.agent.metrics import AgentCollector, Durations
from tests.agent_world import World, until
from tests.agents import UID, make_pod
from tests.sim import loop as sim

PROMTOOL = Path(__file__).resolve().parents[2] / ".tools/prometheus/usr/bin/promtool"


def scrape() -> str:
    """What an agent with one running pod shows."""
    page = ""

    async def main() -> None:
        nonlocal page
        world = World()
        durations = Durations()
        async with world.running() as agent:
            agent.worker._meter = durations
            pipe = await world.master.welcomed(-1, make_pod())
            await world.reports(pipe, UID, lambda r: r.status.phase == "Running")
            await agent.refresh_usage()
            registry = CollectorRegistry()
            registry.register(AgentCollector(agent, "n1", durations))
            await until(lambda: agent.connected)
            page = await asyncio.sleep(0, generate_latest(registry).decode())

    sim.run(0, main())
    return page


def test_values() -> None:
    lines = scrape().splitlines()
    pod = 'container="app",namespace="default",pod="web"'
    for line in (
        "kubelet_running_pods 1.0",
        'kubelet_running_containers{container_state="running"} 1.0',
        "kubelet_started_containers_total 1.0",
        "kubelet_pod_start_duration_seconds_count 1.0",
        "shoal_agent_session_connected 1.0",
        f"container_memory_working_set_bytes{{{pod}}} 1.048576e+06",
        f"container_cpu_usage_seconds_total{{{pod}}} 0.0",
    ):
        assert line in lines


def test_promtool_finds_no_fault() -> None:
    if not PROMTOOL.exists():
        pytest.fail("run `bash deploy/setup.sh test`: it unpacks promtool")
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=scrape(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
