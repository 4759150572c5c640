"""The runtime inside a node of the development cluster: net, mount, pid, uts and ipc namespaces of its own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.agent.runtime import cgroups, wire
from shoal.agent.runtime.port import ContainerID, Exited
from shoal.agent.runtime.settings import Settings
from tests.node.supervision_world import PATIENCE, World, ended, persistent, state_of, until

ROOT = Path(__file__).resolve().parents[2]
UNSHARE = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child"]


def test_a_pod_lives_inside_a_node_of_namespaces(tmp_path: Path) -> None:
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-m", "tests.node.supervision_inside", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"lines": [], "code": 7, "own": True, "listed": 0}


async def test_large_specs_and_many_runs_go_through(world: World) -> None:
    big = "x" * 100_000
    async with world.client() as client:
        pod = world.pod()
        await client.ensure_sandbox(world.sandbox(pod))
        spec = world.spec(pod, "wc -c < /etc/big", files={"/etc/big": big * 5}, env={"PATH": "/bin", "BIG": big})
        await client.start(spec)
        await ended(client, spec.id)
        await until(lambda: world.lines(pod) == ["500000"], "the managed file is whole")


async def test_only_one_spawner_serves_a_node(world: World) -> None:
    async with world.client() as first, world.client() as second:
        pods = [world.pod() for _ in range(6)]
        clients = [first, second]
        await asyncio.gather(*(clients[n % 2].ensure_sandbox(world.sandbox(pod)) for n, pod in enumerate(pods)))
        assert await first.supervisors() == await second.supervisors()
        assert set(await first.supervisors()) == set(pods)


async def test_every_agent_hears_of_exits(world: World) -> None:
    async with world.client() as first, world.client() as second:
        pod = world.pod()
        await first.ensure_sandbox(world.sandbox(pod))
        await second.list()
        readers = [first.events(), second.events()]
        await first.start(world.spec(pod, "exit 5"))
        for reader in readers:
            async with asyncio.timeout(PATIENCE):
                async for event in reader:
                    if isinstance(event, Exited):
                        assert event.exit.code == 5
                        break


async def test_exits_while_the_agent_was_away_are_listed(world: World) -> None:
    async with world.client() as client:
        pod = world.pod()
        await client.ensure_sandbox(world.sandbox(pod))
        state = await client.start(world.spec(pod, "usleep 200000; exit 8"))
    await until(lambda: not Path(f"/proc/{state.pid}").exists(), "it has ended")
    async with world.client() as client:
        exit = (await ended(client, state.id)).exit
        assert exit is not None
        assert exit.code == 8


async def test_nonsense_on_the_sockets_hurts_nobody(world: World) -> None:
    async with world.client() as client:
        pod = world.pod()
        await client.ensure_sandbox(world.sandbox(pod))
        state = await client.start(world.spec(pod, "sleep 1000"))
        supervisor, spawner = world.supervisor_pid(pod), world.spawner_pid()
        start = {"id": 2, "op": "start", "pod": pod}
        named = {"id": {"pod_uid": pod, "name": "x", "attempt": 1}, "layers": 5}
        requests = [
            *(b"{", b"[]", b'{"id":1}', b'{"id":"x","op":5}', b'{"op":"start","id":1,"run":5}'),
            json.dumps({**start, "run": [pod, "x", 0], "spec": 7}).encode(),
            json.dumps({**start, "run": [pod, "x", 1], "spec": named}).encode(),
        ]
        for path in (f"{world.settings.run}/spawner.sock", world.settings.socket(pod)):
            for packet in requests:
                read, write = os.pipe()
                with wire.connect(path) as sock:
                    socket.send_fds(sock, [packet], [read])
                    wire.close_all([read, write])
                    await asyncio.sleep(0.02)
        assert await state_of(client, state.id) == state
        broken = await state_of(client, ContainerID(pod, "x", 1))
        assert broken.start_error is not None
        assert (world.supervisor_pid(pod), world.spawner_pid()) == (supervisor, spawner)


async def test_the_helpers_run_from_a_sealed_copy_in_their_own_cgroup(world: World) -> None:
    async with world.client() as client:
        pod = world.pod()
        await client.ensure_sandbox(world.sandbox(pod))
        for pid in (world.spawner_pid(), world.supervisor_pid(pod)):
            assert os.readlink(f"/proc/{pid}/exe").startswith("/memfd:shoal-python")
            groups = Path(f"/proc/{pid}/cgroup").read_text()
            assert f"{world.settings.cgroup_root}/system" in groups
            assert f"{world.settings.cgroup_root}/pods" not in groups
            names = {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("net", "mnt", "pid", "uts", "ipc")}
            assert names == {os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "mnt", "pid", "uts", "ipc")}


async def test_supervisors_hold_no_descriptors_of_other_pods(world: World) -> None:
    async with world.client() as client:
        pods = [world.pod() for _ in range(3)]
        for pod in pods:
            await client.ensure_sandbox(world.sandbox(pod))
            await client.start(world.spec(pod, "sleep 1000"))
        held = []
        for pod in pods:
            links = [os.readlink(entry) for entry in Path(f"/proc/{world.supervisor_pid(pod)}/fd").iterdir()]
            held.append({link for link in links if link.startswith("pipe:")})
        assert all(len(pipes) == 2 for pipes in held), held
        assert len(set.union(*held)) == 6
        old = world.supervisor_pid(pods[0])
        os.kill(old, 9)
        await until(lambda: world.supervisor_pid(pods[0]) not in (0, old), "a new supervisor")
        await persistent(client.list)
        links = [os.readlink(entry) for entry in Path(f"/proc/{world.supervisor_pid(pods[0])}/fd").iterdir()]
        assert {link for link in links if link.startswith("pipe:")} == held[0]


async def test_descriptors_do_not_pile_up(world: World) -> None:
    async with world.client() as client:
        pod = world.pod()
        await client.ensure_sandbox(world.sandbox(pod))
        counts = []
        for attempt in range(12):
            spec = world.spec(pod, "sleep 1000", attempt=attempt)
            await client.start(spec)
            stream = await client.exec(spec.id, ["true"])
            await stream.wait()
            await stream.close()
            await client.signal(spec.id, 9)
            await ended(client, spec.id)
            await client.remove_container(spec.id)
            counts.append(descriptors(world, pod))

        def as_few_as_before() -> bool:  # a leak would be one per run at least; one may be on its way out
            return all(now <= then + 1 for now, then in zip(descriptors(world, pod), counts[1], strict=True))

        await until(as_few_as_before, f"{counts}, and no fewer now")


def descriptors(world: World, pod: str) -> list[int]:
    """How many are open here, in the spawner and in the supervisor."""
    pids = (os.getpid(), world.spawner_pid(), world.supervisor_pid(pod))
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]


async def test_a_command_ends_with_the_agent_that_asked_for_it(world: World) -> None:
    groups = cgroups.open_cgroups(world.settings.cgroup_root)
    async with world.client() as client:
        pod = world.pod()
        await client.ensure_sandbox(world.sandbox(pod))
        state = await client.start(world.spec(pod, "exec sleep 1000"))
        path = groups.container_path(pod, "main", 0)
        fds: list[int] = []
        with wire.connect(f"{world.settings.run}/spawner.sock") as agent:
            wire.send(agent, {"id": 1, "op": "exec", "pod": pod, "run": [pod, "main", 0], "argv": ["sleep", "999"]})

            def answered() -> bool:
                try:
                    fds.extend(wire.receive(agent)[1])
                except BlockingIOError:
                    return False
                return True

            await until(answered, "the answer")
            await until(lambda: len(groups.pids(path)) == 2, "the command runs")
        wire.close_all(fds)
        await until(lambda: groups.pids(path) == {state.pid}, "the command has been killed")


def test_settings_are_found_wanting_before_anything_starts(tmp_path: Path) -> None:
    boot = ROOT / "agent/runtime/boot.py"
    config = tmp_path / "spawner.json"
    for content, text in (("{", "is not JSON"), ('{"run": "/r"}', "is missing")):
        config.write_text(content)
        argv = [sys.executable, "-S", "-E", "-I", str(boot), "spawner", "--config", str(config)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 1
        assert text in done.stderr
        assert "Traceback" not in done.stderr
    done = subprocess.run(argv[:-2], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, "usage" in done.stderr) == (2, True)
    with pytest.raises(TypeError):
        Settings()  # type: ignore[call-arg]
