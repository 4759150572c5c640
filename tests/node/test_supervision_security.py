"""Security fields over the whole way: client, spawner, supervisor, container."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from shoal.agent.runtime.client import Client
from shoal.agent.runtime.port import Mount, StartError
from tests.node.supervision_world import World, ended, persistent

pytestmark = pytest.mark.root


async def output(world: World, client: Client, script: str, **fields: Any) -> list[str]:
    """What a container's script says until its end."""
    pod = world.pod()
    await client.ensure_sandbox(world.sandbox(pod))
    state = await client.start(world.spec(pod, script, **fields))
    await ended(client, state.id)
    return world.lines(pod)


async def test_a_local_profile(world: World, client: Client) -> None:
    """Everything but mkdir is allowed; also for commands inside."""
    profile = world.folder / "no-mkdir.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    (world.layer / "bin/mkdir").symlink_to("busybox")
    lines = await output(world, client, "mkdir /x 2>&1; cd /tmp && echo fine", seccomp=str(profile))
    assert lines == ["mkdir: can't create directory '/x': Input/output error", "fine"]
    pod = world.pod()
    await client.ensure_sandbox(world.sandbox(pod))
    state = await client.start(world.spec(pod, "exec sleep 60", seccomp=str(profile)))
    assert await (await client.exec(state.id, ["mkdir", "/y"])).wait() == 1


async def test_a_bad_local_profile_is_named(world: World, client: Client) -> None:
    path = world.folder / "bad.json"
    path.write_text('{"defaultAction": "SCMP_ACT_MAYBE"}')
    with pytest.raises(StartError, match="SCMP_ACT_MAYBE") as caught:
        await output(world, client, "true", seccomp=str(path))
    assert caught.value.reason == "CreateContainerConfigError"
    assert str(path) in caught.value.message


async def test_unconfined_and_privileged_have_no_filter(world: World, client: Client) -> None:
    script = "while read -r name value; do test $name = Seccomp: && echo $value; done < /proc/self/status"
    assert await output(world, client, script) == ["2"]
    assert await output(world, client, script, seccomp="unconfined") == ["0"]
    assert await output(world, client, script, privileged=True) == ["0"]


async def test_no_disk_has_the_environment_and_the_arguments(world: World, client: Client) -> None:
    """Both may hold Secrets. A successor of the supervisor still gives the environment to commands inside."""
    pod = world.pod()
    await client.ensure_sandbox(world.sandbox(pod))
    spec = world.spec(
        pod, "echo ready; exec sleep 60 # zebra-argument", env={"TOKEN": "zebra-variable", "PATH": "/bin"}
    )
    state = await client.start(spec)
    written = [
        path for path in Path(world.settings.data).rglob("*") if path.is_file() and b"zebra" in path.read_bytes()
    ]
    assert not written, written
    kept = [path for path in Path(world.settings.run).rglob("*.json") if b"zebra" in path.read_bytes()]
    assert len(kept) == 1
    assert kept[0].stat().st_mode & 0o077 == kept[0].parent.stat().st_mode & 0o077 == 0
    os.kill(world.supervisor_pid(pod), signal.SIGKILL)
    process = await persistent(lambda: client.exec(state.id, ["sh", "-c", "echo $TOKEN"]))
    assert await process.read() == ("stdout", b"zebra-variable\n")
    await client.signal(state.id, signal.SIGKILL)
    await ended(client, state.id)
    await client.remove_container(state.id)
    assert not kept[0].exists()
    await client.remove_sandbox(pod)
    assert not kept[0].parent.exists()


async def test_mounts_travel(world: World, client: Client) -> None:
    volume = world.folder / "volume"
    volume.mkdir()
    mount = Mount(str(volume), "/data", sub_path="made")
    assert await output(world, client, "echo x > /data/file; cat /data/file", mounts=[mount]) == ["x"]
    assert (volume / "made/file").read_text() == "x\n"
