"""Commands that the supervisor runs by itself: bounded in time and output, whatever they start and whoever dies."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shoal.agent.runtime import cgroups
from shoal.agent.runtime.client import Client
from shoal.agent.runtime.port import ContainerID, RuntimeFault
from tests.node.supervision_world import PATIENCE, World, persistent, until

FAMILY = (
    "trap '' TERM INT HUP; setsid sleep 1001 & (setsid sh -c 'trap \"\" TERM; sleep 1002; sleep 1003' &); sleep 1004"
)


class Pod:
    """One container that runs, and what lives in its cgroup."""

    def __init__(self, world: World, client: Client, uid: str) -> None:
        self.world, self.client = world, client
        self.id = ContainerID(uid, "main", 0)
        self.cgroups = cgroups.open_cgroups(world.settings.cgroup_root)
        self.path = self.cgroups.container_path(uid, "main", 0)

    def commands(self) -> set[str]:
        """The command lines of the container's processes."""
        found = set()
        for pid in self.cgroups.pids(self.path):
            try:
                found.add(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip())
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def branches(self) -> list[str]:
        return self.cgroups.branches(self.path, "probe-")


@pytest.fixture
async def pod(world: World) -> AsyncIterator[Pod]:
    async with world.client() as client:
        yield await started(world, client)


async def started(world: World, client: Client, **fields: Any) -> Pod:
    uid = world.pod()
    await client.ensure_sandbox(world.sandbox(uid))
    await client.start(world.spec(uid, "while true; do sleep 999; done", **fields))
    pod = Pod(world, client, uid)
    await until(lambda: "sleep 999" in pod.commands(), "the container's own process")
    return pod


def own(pod: Pod) -> bool:
    """Whether nothing of FAMILY is left."""
    return not any("sleep 100" in command for command in pod.commands())


async def test_the_time_out_kills_all_that_the_command_started(pod: Pod) -> None:
    asking = asyncio.create_task(pod.client.run_probe(pod.id, ["sh", "-c", FAMILY], 6.0))
    await until(lambda: {"sleep 1001", "sleep 1002", "sleep 1004"} <= pod.commands(), "the family")
    begin = time.monotonic()
    run = await asking
    assert run.code is None
    await until(lambda: own(pod), "the family is killed")
    await until(lambda: not pod.branches(), "the branch is removed")
    assert time.monotonic() - begin < PATIENCE
    assert "sleep 999" in pod.commands()
    assert (await pod.client.run_probe(pod.id, ["echo", "on"], PATIENCE)).output == b"on\n"


async def test_the_time_out_holds_when_the_agent_is_gone(world: World) -> None:
    async with world.client() as client:
        pod = await started(world, client)
        asking = asyncio.create_task(client.run_probe(pod.id, ["sh", "-c", FAMILY], 6.0))
        await until(lambda: "sleep 1002" in pod.commands(), "the family")
    with pytest.raises(RuntimeFault):
        await asking
    await until(lambda: own(pod), "the family is killed")
    assert "sleep 999" in pod.commands()


async def test_a_new_supervisor_ends_what_the_dead_one_ran(pod: Pod) -> None:
    asking = asyncio.create_task(pod.client.run_probe(pod.id, ["sh", "-c", FAMILY], 1000.0))
    await until(lambda: "sleep 1002" in pod.commands(), "the family")
    os.kill(pod.world.supervisor_pid(pod.id.pod_uid), signal.SIGKILL)
    with pytest.raises(RuntimeFault):
        await asking
    await until(lambda: own(pod), "the family is killed")
    await until(lambda: not pod.branches(), "the branch is removed")
    run = await persistent(lambda: pod.client.run_probe(pod.id, ["echo", "on"], PATIENCE))
    assert run.output == b"on\n"


async def test_what_a_command_leaves_behind_lives_on_in_the_container(pod: Pod) -> None:
    run = await pod.client.run_probe(pod.id, ["sh", "-c", "setsid sleep 1001 & echo started"], PATIENCE)
    assert (run.code, run.output) == (0, b"started\n")
    await until(lambda: not pod.branches(), "the branch is removed")
    assert "sleep 1001" in pod.commands()
    await pod.client.remove_sandbox(pod.id.pod_uid)  # it ends with the pod
    assert pod.commands() == set()


async def test_output_is_bounded_and_never_holds_the_command_up(pod: Pod) -> None:
    run = await pod.client.run_probe(
        pod.id, ["sh", "-c", "yes word | head -c 3000000; echo last >&2; exit 3"], PATIENCE
    )
    assert run.code == 3
    assert len(run.output) == 10 * 1024
    assert run.output.startswith(b"word\nword\n")
    raw = await pod.client.run_probe(pod.id, ["sh", "-c", "printf '\\377\\000\\n'"], PATIENCE)
    assert raw.output == b"\xff\x00\n"


async def test_a_command_has_its_containers_rights(world: World) -> None:
    async with world.client() as client:
        pod = await started(
            world, client, user="web", env={"PATH": "/bin", "COLOUR": "red"}, cwd="/tmp", no_new_privs=True
        )
        script = "id -u; echo $COLOUR; pwd; cat /proc/self/status /proc/self/cgroup"
        run = await client.run_probe(pod.id, ["sh", "-c", script], PATIENCE)
        text = run.output.decode()
        assert text.split("\n")[:3] == ["1000", "red", "/tmp"]
        status = (Path(f"/proc/{(await client.list())[0].pid}") / "status").read_text()
        for field in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp"):
            (line,) = [line for line in status.splitlines() if line.startswith(f"{field}:")]
            assert line in text.splitlines()
        assert "Seccomp:\t2" in text


async def test_the_pods_end_does_not_wait_for_a_command(pod: Pod) -> None:
    asking = asyncio.create_task(pod.client.run_probe(pod.id, ["sh", "-c", FAMILY], 1000.0))
    await until(lambda: "sleep 1002" in pod.commands(), "the family")
    async with asyncio.timeout(PATIENCE):
        await pod.client.remove_sandbox(pod.id.pod_uid)
    with pytest.raises(RuntimeFault):
        await asyncio.wait_for(_none_is_a_fault(asking), PATIENCE)


async def _none_is_a_fault(asking: asyncio.Task[object]) -> None:
    """A command that was killed with its pod has either a code, or no supervisor that could tell it."""
    if getattr(await asking, "code", None) == 128 + signal.SIGKILL:
        raise RuntimeFault("killed")
