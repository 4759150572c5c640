"""What a pod's containers share: /dev/shm, sysctls, one pid namespace, or namespaces of the node."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal.agent.runtime import holder, records
from shoal.agent.runtime.client import Client
from shoal.agent.runtime.port import ContainerState, StartError
from tests.node.supervision_world import World, ended, persistent, until

pytestmark = pytest.mark.root
FOREVER = "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done"


async def pod_with(world: World, client: Client, **fields: Any) -> str:
    pod = world.pod()
    await client.ensure_sandbox(replace(world.sandbox(pod), **fields))
    return pod


async def up(world: World, client: Client, pod: str, script: str = FOREVER, **fields: Any) -> ContainerState:
    """A container that has said `up`."""
    fields.setdefault("name", "main")
    state = await client.start(world.spec(pod, script, **fields))
    await until(lambda: "up" in world.lines(pod, fields["name"]), "the container is up")
    return state


async def run(world: World, client: Client, pod: str, script: str, **fields: Any) -> list[str]:
    fields.setdefault("name", "reader")
    state = await client.start(world.spec(pod, script, **fields))
    await ended(client, state.id)
    return world.lines(pod, fields["name"])


async def code_of(client: Client, state: ContainerState) -> int:
    exit = (await ended(client, state.id)).exit
    assert exit is not None
    return exit.code


# ---- /dev/shm ----
async def test_dev_shm_is_the_pods_and_bounded(world: World, client: Client) -> None:
    pod = await pod_with(world, client)
    await run(world, client, pod, "echo shared > /dev/shm/x", name="writer")
    assert await run(world, client, pod, "cat /dev/shm/x") == ["shared"]
    script = "dd if=/dev/zero of=/dev/shm/y bs=1M count=100 2>/dev/null || echo full; wc -c < /dev/shm/y"
    full, size = await run(world, client, pod, script, name="filler")
    assert full == "full"
    assert int(size) <= 64 << 20
    other = await pod_with(world, client)
    assert await run(world, client, other, "cat /dev/shm/x 2>/dev/null || echo none") == ["none"]
    folder = f"{world.settings.sandbox(pod)}/shm"
    assert os.path.ismount(folder)
    await client.remove_sandbox(pod)
    assert not os.path.exists(folder)


# ---- sysctls ----
async def test_sysctls_are_the_pods_own(world: World, client: Client) -> None:
    paths = [Path("/proc/sys/net/core/somaxconn"), Path("/proc/sys/kernel/shmmni"), Path("/proc/sys/fs/mqueue/msg_max")]
    before = [path.read_text() for path in paths]
    wanted = {"net.core.somaxconn": "777", "kernel.shmmni": "99", "fs.mqueue.msg_max": "33", "net/ipv4/ip_forward": "1"}
    pod = await pod_with(world, client, sysctls=wanted)
    script = "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmni /proc/sys/fs/mqueue/msg_max"
    assert await run(world, client, pod, script + " /proc/sys/net/ipv4/ip_forward") == ["777", "99", "33", "1"]
    assert [path.read_text() for path in paths] == before


@pytest.mark.parametrize(
    ("name", "value", "fields", "words"),
    [
        ("vm.overcommit_memory", "1", {}, "whole node"),
        ("kernel.panic", "1", {}, "whole node"),
        ("kernel.semantics", "1", {}, "whole node"),
        ("net.no.such", "1", {}, "does not exist"),
        ("net.core.somaxconn", "many", {}, "cannot be set"),
        ("net.core.somaxconn", "1", {"host_network": True}, "hostNetwork"),
        ("kernel.shmmni", "1", {"host_ipc": True}, "hostIPC"),
        ("../../../etc/passwd", "1", {}, "not written like"),
        ("net/../vm/panic_on_oom", "1", {}, "not written like"),
    ],
)
async def test_other_sysctls_are_refused(
    world: World, client: Client, name: str, value: str, fields: dict[str, bool], words: str
) -> None:
    with pytest.raises(StartError, match=words) as caught:
        await pod_with(world, client, sysctls={name: value}, **fields)
    assert caught.value.reason == "SysctlForbidden"
    assert name.replace(".", "/") in caught.value.message.replace(".", "/")


# ---- one pid namespace ----
async def test_containers_see_and_signal_each_other(world: World, client: Client) -> None:
    pod = await pod_with(world, client, share_pid=True)
    first = await up(world, client, pod)
    script = "for p in /proc/[0-9]*; do read -r name < $p/comm; echo $name ${p#/proc/}; done"
    seen = await run(world, client, pod, script)
    assert any(line.endswith(" 1") and not line.startswith("sh ") for line in seen)  # the holder
    target = next(line.split()[1] for line in seen if line.startswith("sh "))
    assert target != "1"
    await run(world, client, pod, f"kill -TERM {target}", name="killer")
    assert await code_of(client, first) == 7


async def test_an_end_is_one_containers_own(world: World, client: Client) -> None:
    """TERM and KILL end one container with all that it started; orphans are reaped by the holder."""
    pod = await pod_with(world, client, share_pid=True)
    orphans = "(sleep 1000 & ) ; (true &) ; " + FOREVER
    first, second = await up(world, client, pod, orphans), await up(world, client, pod, orphans, name="other")
    namespace = os.readlink(f"/proc/{first.pid}/ns/pid")
    assert namespace == os.readlink(f"/proc/{second.pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    await client.signal(first.id, signal.SIGKILL)
    assert await code_of(client, first) == 137
    assert records.start_ticks(second.pid)
    await client.remove_container(first.id)
    script = "for p in /proc/[0-9]*; do while read -r k v r; do test $k = State: && echo $v; done < $p/status; done"
    assert "Z" not in await run(world, client, pod, script)
    await client.signal(second.id, signal.SIGTERM)
    assert await code_of(client, second) == 7
    await client.remove_sandbox(pod)
    assert holder.of(world.settings.sandbox(pod)) == (0, 0)


async def test_the_holder_outlives_its_supervisor_and_spawner(world: World, client: Client) -> None:
    pod = await pod_with(world, client, share_pid=True)
    first = await up(world, client, pod)
    pid, _ = holder.of(world.settings.sandbox(pod))
    supervisor, spawner = world.supervisor_pid(pod), world.spawner_pid()
    os.kill(supervisor, signal.SIGKILL)
    os.kill(spawner, signal.SIGKILL)
    await until(lambda: world.spawner_pid() not in (0, spawner), "a new spawner")
    await until(lambda: world.supervisor_pid(pod) not in (0, supervisor), "a new supervisor")
    await persistent(lambda: client.ensure_sandbox(replace(world.sandbox(pod), share_pid=True)))
    assert holder.of(world.settings.sandbox(pod))[0] == pid
    second = await persistent(lambda: client.start(world.spec(pod, FOREVER, name="second")))
    assert os.readlink(f"/proc/{first.pid}/ns/pid") == os.readlink(f"/proc/{second.pid}/ns/pid")


async def test_a_killed_holder_ends_the_pods_processes_and_is_replaced(world: World, client: Client) -> None:
    pod = await pod_with(world, client, share_pid=True)
    first = await up(world, client, pod)
    os.kill(holder.of(world.settings.sandbox(pod))[0], signal.SIGKILL)
    assert await code_of(client, first) == 137
    again = await client.start(world.spec(pod, FOREVER, attempt=1))
    assert records.start_ticks(again.pid)


async def test_the_holder_shows_nothing_of_the_node(world: World, client: Client) -> None:
    """A container that may trace everything looks at process 1: an empty root, no capabilities, none of the node's
    namespaces; it cannot end it either."""
    pod = await pod_with(world, client, share_pid=True)
    (world.layer / "bin/ls").symlink_to("busybox")
    (world.layer / "bin/readlink").symlink_to("busybox")
    script = (
        "exec 2>&1; ls -a /proc/1/root/ /proc/1/cwd/; readlink /proc/1/ns/net; readlink /proc/1/ns/mnt; "
        "ls /proc/1/fd | wc -l; kill -9 1"
    )
    lines = await run(world, client, pod, script + "; echo alive", add_capabilities=["SYS_PTRACE"])
    assert not {"etc", "bin", "root", "proc"} & set(lines)
    assert os.readlink("/proc/self/ns/net") not in lines
    assert os.readlink("/proc/self/ns/mnt") not in lines
    assert lines[-2:] == ["0", "alive"]


# ---- the node's own ----
async def test_namespaces_of_the_node(world: World, client: Client) -> None:
    kinds = {"net": "host_network", "ipc": "host_ipc", "pid": "host_pid"}
    for kind, field in kinds.items():
        pod = await pod_with(world, client, **{field: True})
        state = await up(world, client, pod)
        own = {
            name
            for name in kinds
            if os.readlink(f"/proc/{state.pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
        }
        assert own == {kind}
        shared_name = os.readlink(f"/proc/{state.pid}/ns/uts") == os.readlink("/proc/self/ns/uts")
        assert shared_name == (kind == "net")
        await client.signal(state.id, signal.SIGTERM)
        assert await code_of(client, state) == 7
        await client.remove_sandbox(pod)
    assert os.path.exists("/proc/self/ns/net")
