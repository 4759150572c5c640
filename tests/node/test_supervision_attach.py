"""A container's own streams and terminal: attached to, too slowly, over the deaths of helpers."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from shoal.agent.runtime.client import Client
from shoal.agent.runtime.port import ContainerState, ExecStream, RuntimeGone
from tests.node.supervision_world import PATIENCE, World, ended, persistent, until

pytestmark = pytest.mark.root
ECHO = "while read -r line; do echo got $line; done; echo end of input"


@pytest.fixture
def world(world: World) -> World:
    for applet in ("stty", "readlink", "tail", "usleep"):
        (world.layer / "bin" / applet).symlink_to("busybox")
    return world


async def begin(world: World, client: Client, script: str, **fields: Any) -> ContainerState:
    pod = world.pod()
    await client.ensure_sandbox(world.sandbox(pod))
    return await client.start(world.spec(pod, script, **fields))


async def read_until(stream: ExecStream, text: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(PATIENCE):
        while text not in seen:
            name, data = await stream.read()
            assert name != "end", seen
            seen += data
    return seen


async def test_a_terminal_has_a_name_a_size_and_a_log(world: World, client: Client) -> None:
    script = "tty; readlink /proc/self/fd/0; while read -r line; do echo got $line; stty size; done"
    state = await begin(world, client, script, tty=True, stdin=True, run_as_user=1000)
    await until(lambda: len(world.lines(state.id.pod_uid)) == 2, "two lines")
    assert [line.rstrip() for line in world.lines(state.id.pod_uid)] == ["/dev/pts/0", "/dev/pts/0"]
    stream = await client.attach(state.id, stdin=True)
    await stream.resize(33, 101)
    await stream.write(b"hello\n")
    assert b"got hello" in await read_until(stream, b"33 101")
    await stream.close_input()  # end of transmission
    async with asyncio.timeout(PATIENCE):
        assert await stream.wait() == 0
    await stream.close()
    await ended(client, state.id)
    assert "got hello" in world.lines(state.id.pod_uid)


async def test_both_streams_apart(world: World, client: Client) -> None:
    script = "read -r x; echo out; echo err >&2; read -r y"
    state = await begin(world, client, script, stdin=True)
    stream = await client.attach(state.id, stdin=True)
    await stream.write(b"go\n")
    async with asyncio.timeout(PATIENCE):
        assert {await stream.read(), await stream.read()} == {("stdout", b"out\n"), ("stderr", b"err\n")}
    await stream.close()


async def test_a_slow_reader_holds_nothing_back(world: World, client: Client) -> None:
    """8 MB pass by a reader that does not read; the log has them all."""
    script = "read -r go; yes 0123456789abcdef | head -c 8000000; echo done; read -r go"
    state = await begin(world, client, script, stdin=True)
    pod = state.id.pod_uid
    slow, quick = await client.attach(state.id), await client.attach(state.id, stdin=True)
    await quick.write(b"go\n")
    await until(lambda: world.log(pod).exists() and "done" in world.log(pod).read_text()[-2000:], "all is in the log")
    await quick.write(b"go\n")
    await ended(client, state.id)
    seen = b""
    async with asyncio.timeout(PATIENCE):
        while (piece := await slow.read())[0] != "end":
            seen += piece[1]
    assert 0 < len(seen) < 8_000_000
    await slow.close()
    await quick.close()


async def test_input_survives_the_helpers(world: World, client: Client) -> None:
    """The container's stdin stays open when supervisor and then spawner die; who was attached hears of it."""
    state = await begin(world, client, ECHO, stdin=True)
    pod = state.id.pod_uid
    stream = await client.attach(state.id, stdin=True)
    await stream.write(b"one\n")
    await read_until(stream, b"got one\n")
    supervisor = world.supervisor_pid(pod)
    os.kill(supervisor, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(RuntimeGone):
            await stream.wait()
        assert (await stream.read())[0] == "end"
    await stream.close()
    await until(lambda: world.supervisor_pid(pod) not in (0, supervisor), "a new supervisor")
    again = await persistent(lambda: client.attach(state.id, stdin=True))
    await again.write(b"two\n")
    await read_until(again, b"got two\n")
    spawner = world.spawner_pid()
    os.kill(spawner, signal.SIGKILL)
    await again.write(b"three\n")
    await read_until(again, b"got three\n")
    await again.close()
    assert world.lines(pod) == ["got one", "got two", "got three"]


async def test_a_terminal_survives_its_supervisor(world: World, client: Client) -> None:
    state = await begin(world, client, ECHO, stdin=True, tty=True)
    pod = state.id.pod_uid
    supervisor = world.supervisor_pid(pod)
    os.kill(supervisor, signal.SIGKILL)
    await until(lambda: world.supervisor_pid(pod) not in (0, supervisor), "a new supervisor")
    stream = await persistent(lambda: client.attach(state.id, stdin=True))
    await stream.write(b"one\n")
    await read_until(stream, b"got one")
    await stream.close()
    exit = (await client.list())[0].exit
    assert exit is None


async def test_an_agent_that_is_gone_ends_input_that_is_open_once(world: World, client: Client) -> None:
    state = await begin(world, client, ECHO, stdin=True, stdin_once=True)
    async with world.client() as other:
        stream = await other.attach(state.id, stdin=True)
        await stream.write(b"one\n")
        await read_until(stream, b"got one\n")
        await stream.close()
    assert (await ended(client, state.id)).exit is not None
    assert world.lines(state.id.pod_uid) == ["got one", "end of input"]


async def test_many_may_listen_but_not_endlessly(world: World, client: Client) -> None:
    state = await begin(world, client, ECHO, stdin=True)
    streams = [await client.attach(state.id) for _ in range(32)]
    with pytest.raises(Exception, match="attached to this container already"):
        await client.attach(state.id)
    await streams[0].close()
    writer = await persistent(lambda: client.attach(state.id, stdin=True))
    await writer.write(b"all\n")
    for stream in [*streams[1:], writer]:
        await read_until(stream, b"got all\n")
        await stream.close()
