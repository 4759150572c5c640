"""Containers' output on real pipes: floods, pieces, closed and reopened streams, full disks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.agent.runtime.client import Client
from shoal.agent.runtime.logs import rotated
from shoal.agent.runtime.port import ContainerSpec, ContainerState, Limits, RuntimeFault
from tests.node.supervision_world import PATIENCE, World, ended, until

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    image, folder = tmp_path / "disk.img", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Takes all space that is left."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


async def begin(client: Client, spec: ContainerSpec, world: World) -> ContainerState:
    await client.ensure_sandbox(world.sandbox(spec.id.pod_uid))
    return await client.start(spec)


async def test_a_flood_is_rotated_and_does_not_end_in_mid_line(world: World) -> None:
    size = 256 * MIB
    async with world.client() as client:
        script = (
            f"yes 'one line of quite ordinary length, as servers write them all day' | head -c {size}; echo; echo end"
        )
        spec = world.spec(world.pod(), script, log_max_bytes=MIB, log_max_files=3)
        begun = time.monotonic()
        state = await begin(client, spec, world)
        exit = (await ended(client, state.id)).exit
        seconds = time.monotonic() - begun
    assert exit is not None
    assert exit.code == 0
    files = rotated(spec.log_path)
    assert len(files) == 3
    assert all(os.path.getsize(file) <= MIB for file in files)
    assert world.lines(state.id.pod_uid)[-1] == "end"
    print(f"log_flood_mb_per_s={size / 1e6 / seconds:.0f}")


async def test_lines_without_end_are_pieces_and_both_streams_arrive(world: World) -> None:
    async with world.client() as client:
        spec = world.spec(
            world.pod(), "printf prompt; while [ ! -e /tmp/go ]; do usleep 10000; done; echo ' done' >&2; echo more"
        )
        state = await begin(client, spec, world)
        path = Path(spec.log_path)
        await until(lambda: path.exists() and path.read_text(), "the piece is written while the container waits")
        assert path.read_text().split(" ", 1)[1] == "stdout P prompt\n"
        Path(f"/proc/{state.pid}/root/tmp/go").touch()
        await ended(client, state.id)
    found = [line.split(" ", 1)[1] for line in path.read_text().splitlines()]
    assert sorted(found) == ["stderr F  done", "stdout F more", "stdout P prompt"]


async def test_a_stream_that_is_closed_costs_nothing_and_can_be_reopened(world: World) -> None:
    script = "exec 3>/dev/stdout; exec >&-; while [ ! -e /tmp/go ]; do usleep 10000; done; echo again >/proc/self/fd/3"
    async with world.client() as client:
        spec = world.spec(world.pod(), script, user="web")
        state = await begin(client, spec, world)
        supervisor = world.supervisor_pid(state.id.pod_uid)
        before = cpu_ticks(supervisor)
        await asyncio.sleep(0.5)
        assert cpu_ticks(supervisor) - before <= 5  # of the 50 that a spinning one would take
        Path(f"/proc/{state.pid}/root/tmp/go").touch()
        await ended(client, state.id)
    assert world.lines(state.id.pod_uid) == ["again"]


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_both_streams_closed_by_everyone(world: World) -> None:
    async with world.client() as client:
        spec = world.spec(world.pod(), "exec >&- 2>&-; while [ ! -e /tmp/go ]; do usleep 10000; done; exit 6")
        state = await begin(client, spec, world)
        supervisor = world.supervisor_pid(state.id.pod_uid)
        before = cpu_ticks(supervisor)
        await asyncio.sleep(0.5)
        assert cpu_ticks(supervisor) - before <= 5
        Path(f"/proc/{state.pid}/root/tmp/go").touch()
        exit = (await ended(client, state.id)).exit
    assert exit is not None
    assert exit.code == 6


async def test_children_that_daemonise_end_with_their_container(world: World) -> None:
    async with world.client() as client:
        script = "setsid sleep 1000 & (nohup sleep 1000 >/dev/null 2>&1 &); echo begun; exit 4"
        state = await begin(client, world.spec(world.pod(), script), world)
        exit = (await ended(client, state.id)).exit
        assert exit is not None
        assert exit.code == 4
        assert world.lines(state.id.pod_uid) == ["begun"]
        await client.remove_container(state.id)
        assert dict(await client.usage()) == {}


async def test_memory_kills_are_told(world: World) -> None:
    async with world.client() as client:
        limits = Limits(memory_bytes=24 * MIB)
        spec = world.spec(world.pod(), "exec tail /dev/zero", limits=limits)
        exit = (await ended(client, (await begin(client, spec, world)).id)).exit
        assert exit is not None
        assert (exit.code, exit.signal, exit.oom) == (137, 9, True)
        second = world.spec(spec.id.pod_uid, "kill -9 $$; sleep 1000", attempt=1)
        state = await client.start(second)
        await client.signal(state.id, signal.SIGKILL)
        exit = (await ended(client, state.id)).exit
        assert exit is not None
        assert (exit.code, exit.oom) == (137, False)


async def test_a_full_disk_under_the_log_stops_no_container(world: World, small_disk: Path) -> None:
    async with world.client() as client:
        log = small_disk / "main.log"
        script = "n=0; while true; do n=$((n+1)); echo line $n; usleep 2000; done"
        state = await begin(client, world.spec(world.pod(), script, log_path=str(log)), world)
        await until(lambda: log.exists() and log.read_bytes().count(b"\n") > 5, "lines")
        filler = fill(small_disk)
        size = log.stat().st_size
        await until(lambda: len(os.listdir(f"/proc/{state.pid}/fd")) and cpu_ticks(state.pid) >= 0, "alive")
        await asyncio.sleep(1.5)
        full = log.stat().st_size
        assert full - size < 8192  # at most what its last block could take
        filler.unlink()
        await until(lambda: b"the disk was full" in log.read_bytes(), "the gap is told")
        await until(lambda: log.read_bytes().rpartition(b"full\n")[2].count(b"\n") > 5, "lines after the gap")
        await client.signal(state.id, signal.SIGKILL)
        await ended(client, state.id)
        await client.remove_sandbox(state.id.pod_uid)
        assert not log.exists()
    # (the arithmetic of the gap is checked in tests/unit/test_runtime_logs.py)


async def test_a_full_disk_under_the_records_loses_no_exit_code(tmp_path: Path, small_disk: Path) -> None:
    world = World(tmp_path / "node", data=small_disk / "data")
    try:
        async with world.client() as client:
            script = "trap 'exit 7' TERM; echo ready; while true; do usleep 10000; done"
            state = await begin(client, world.spec(world.pod(), script), world)
            await until(lambda: world.lines(state.id.pod_uid), "it runs")
            filler = fill(small_disk)
            supervisor = world.supervisor_pid(state.id.pod_uid)
            await client.signal(state.id, signal.SIGTERM)
            exit = (await ended(client, state.id)).exit
            assert exit is not None
            assert exit.code == 7
            with pytest.raises(RuntimeFault, match="the node's disk is full"):
                await client.start(world.spec(state.id.pod_uid, "true", attempt=1))
            assert world.supervisor_pid(state.id.pod_uid) == supervisor
            filler.unlink()
            retried = await client.start(world.spec(state.id.pod_uid, "exit 2", attempt=1))
            exit = (await ended(client, retried.id)).exit
            assert exit is not None
            assert exit.code == 2
    finally:
        await world.close()


async def test_a_terminal(world: World) -> None:
    async with world.client() as client:
        state = await begin(client, world.spec(world.pod(), "while true; do sleep 1; done"), world)
        stream = await client.exec(
            state.id, ["sh", "-c", "test -t 0 && test -t 1 && read x && echo got $x; exit 3"], tty=True
        )
        await stream.resize(40, 100)
        await stream.write(b"hello\n")
        output = b""
        async with asyncio.timeout(PATIENCE):
            while (piece := await stream.read())[0] != "end":
                output += piece[1]
            assert await stream.wait() == 3
        assert b"got hello" in output
        await stream.close()
