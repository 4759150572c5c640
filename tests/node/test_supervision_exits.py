"""What an exit tells: the message of the termination file, what was used, who was killed for memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from shoal.agent.runtime.client import Client
from shoal.agent.runtime.port import Exit, Limits
from tests.node.supervision_world import World, ended, until

pytestmark = pytest.mark.root
MIB = 1 << 20
LOG = "/dev/termination-log"


async def end(world: World, client: Client, script: str, **fields: Any) -> Exit:
    pod = world.pod()
    await client.ensure_sandbox(world.sandbox(pod))
    state = await client.start(world.spec(pod, script, **fields))
    exit = (await ended(client, state.id)).exit
    assert exit is not None
    return exit


async def test_the_message_arrives(world: World, client: Client) -> None:
    exit = await end(world, client, f"echo no database > {LOG}; exit 3", termination_path=LOG)
    assert (exit.code, exit.message) == (3, "no database\n")
    exit = await end(world, client, "printf '\\377' > /tmp/why", termination_path="/tmp/why", run_as_user=1000)
    assert exit.message == "\ufffd"


async def test_the_message_of_a_container_cannot_point_elsewhere(world: World, client: Client) -> None:
    script = f"rm {LOG}; ln -sf /etc/passwd {LOG}; ln -sf /etc/passwd /dev/x && mv /dev/x {LOG}; exit 1"
    assert (await end(world, client, script, termination_path=LOG)).message == ""


async def test_the_message_outlives_the_supervisor(world: World, client: Client) -> None:
    pod = world.pod()
    await client.ensure_sandbox(world.sandbox(pod))
    script = f"echo kept > {LOG}; trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done"
    state = await client.start(world.spec(pod, script, termination_path=LOG))
    await until(lambda: world.lines(pod) == ["up"])
    os.kill(world.supervisor_pid(pod), signal.SIGKILL)
    os.kill(state.pid, signal.SIGTERM)
    exit = (await ended(client, state.id)).exit
    assert exit is not None
    assert (exit.code, exit.message) == (4, "kept\n")
    assert exit.resources is not None


async def test_what_was_used_is_told(world: World, client: Client) -> None:
    script = "head -c 20000000 /dev/zero | tail -c 20000000 | wc -c; i=0; while test $i -lt 60000; do i=$((i+1)); done"
    (world.layer / "bin/tail").symlink_to("busybox")
    limits = Limits(cpu_quota_us=20_000, memory_bytes=256 * MIB, pids=50)
    exit = await end(world, client, script, limits=limits)
    used = exit.resources
    assert used is not None
    assert 20_000_000 < used.peak_memory_bytes <= 256 * MIB
    assert used.memory_limit_bytes == 256 * MIB
    assert used.cpu_seconds > 0
    assert used.throttled_periods > 0
    assert used.periods >= used.throttled_periods
    assert used.throttled_seconds > 0
    assert (used.oom_kills, used.refused_forks) == (0, 0)
    assert set(used.pressure) <= {"cpu", "memory", "io"}
    if Path("/proc/pressure/cpu").exists():
        assert used.pressure["cpu"].some_seconds > 0


async def test_refused_forks_are_counted(world: World, client: Client) -> None:
    exit = await end(world, client, "for i in 1 2 3 4 5; do sleep 5 & done", limits=Limits(pids=3))
    assert exit.resources is not None
    assert exit.resources.refused_forks > 0


@pytest.mark.parametrize(("after", "oom"), [("exit 9", True), ("exit 0", False)])
async def test_a_killed_child_shows_in_a_failure(world: World, client: Client, after: str, oom: bool) -> None:
    # One child that offers itself: else the kernel may choose the shell
    eat = "echo 1000 > /proc/self/oom_score_adj; exec dd if=/dev/zero of=/dev/null bs=64M count=1"
    script = f"( {eat} ); {after}"
    exit = await end(world, client, script, limits=Limits(memory_bytes=24 * MIB))
    assert exit.resources is not None
    assert exit.resources.oom_kills > 0
    assert exit.oom == oom
