"""Copies through a process's root: which process it is, and where paths lead inside of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.agent.answers import Refusal
from shoal.agent.copying import DiskCopier
from shoal.agent.runtime.port import ContainerID, ContainerState
from shoal.proto.filetree import Reader, Unpacker, pack

TICKS = 4242


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What stands for a container's root; `secret` lies outside of it."""
    made = tmp_path / "container"
    for folder in ("data", "etc", "tmp"):
        (made / folder).mkdir(parents=True)
    (made / "etc/passwd").write_text("inside\n")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/passwd").write_text("outside\n")
    return made


@pytest.fixture
def copier(tmp_path: Path, root: Path) -> Iterator[DiskCopier]:
    """Over a /proc of the test's own, with process 7 whose root is `root`."""
    process = tmp_path / "proc" / "7"
    process.mkdir(parents=True)
    (process / "stat").write_text("7 (a ) name) S " + " ".join(str(TICKS if n == 18 else n) for n in range(40)))
    (process / "status").write_text(f"Name:\tx\nUid:\t1\t{os.getuid()}\t1\t1\nGid:\t1\t{os.getgid()}\t1\t1\n")
    (process / "root").symlink_to(root)
    made = DiskCopier(str(tmp_path / "proc"))
    yield made
    made.close()


def state(pid: int = 7, ticks: int = TICKS) -> ContainerState:
    return ContainerState(ContainerID("u", "app", 0), pid, 1.0, ticks, None)


async def read(copier: DiskCopier, path: str, container: ContainerState | None = None) -> bytes:
    got: list[bytes] = []
    warnings: list[str] = []

    async def send(data: bytes) -> None:
        got.append(data)

    async def warn(line: str) -> None:
        warnings.append(line)

    await copier.out(container or state(), path, send, warn)
    return b"".join(got)


async def write(copier: DiskCopier, source: Path, path: str) -> None:
    found = os.open(source, os.O_PATH)
    pieces = pack(found, source.name, lambda _line: None)

    async def receive() -> bytes:
        return next(pieces, b"")

    try:
        await copier.into(state(), path, receive)
    finally:
        os.close(found)


def contents(data: bytes) -> dict[str, bytes]:
    pieces = iter([data])
    reader = Reader(lambda: next(pieces, b""))
    return {entry.path: b"".join(reader.chunks()) for entry in reader}


async def test_links_of_the_container_lead_nowhere_but_inside(copier: DiskCopier, root: Path, tmp_path: Path) -> None:
    (root / "data/absolute").symlink_to("/etc")
    (root / "data/up").symlink_to("../../../../../../etc")
    (root / "data/out").symlink_to(tmp_path / "secret")
    for link in ("absolute", "up"):
        assert contents(await read(copier, f"/data/{link}/passwd")) == {"passwd": b"inside\n"}
    with pytest.raises(OSError, match="No such file"):
        await read(copier, "/data/out/passwd")
    with pytest.raises(OSError, match="No such file"):
        await read(copier, "/../secret/passwd")
    (tmp_path / "new").write_text("new\n")
    await write(copier, tmp_path / "new", "/data/up/new")
    assert (root / "etc/new").read_text() == "new\n"
    with pytest.raises((OSError, Refusal)):
        await write(copier, tmp_path / "new", "/data/out/new")
    assert os.listdir(tmp_path / "secret") == ["passwd"]


async def test_where_a_copy_goes(copier: DiskCopier, root: Path, tmp_path: Path) -> None:
    source = tmp_path / "site"
    source.mkdir()
    (source / "index").write_text("i")
    await write(copier, source, "/data")
    await write(copier, source, "/data/other")
    await write(copier, source / "index", "/tmp/")
    await write(copier, source, "/etc/.")
    await write(copier, source / "index", "/etc/passwd")
    assert (root / "data/site/index").read_text() == (root / "data/other/index").read_text() == "i"
    assert (root / "tmp/index").exists() and (root / "etc/index").exists()
    assert (root / "etc/passwd").read_text() == "i"
    with pytest.raises(Refusal, match="folder /no/such does not exist in the container"):
        await write(copier, source, "/no/such/place")
    with pytest.raises(OSError, match="No such file"):
        await write(copier, source, "/data/new/")
    (tmp_path / "data").write_text("a file where the container has a folder")
    with pytest.raises(Refusal, match="is a folder there"):
        await write(copier, tmp_path / "data", "/")


async def test_another_process_with_that_pid_is_not_taken(copier: DiskCopier) -> None:
    with pytest.raises(Refusal, match="does not run any more"):
        await read(copier, "/etc/passwd", state(ticks=TICKS + 1))
    with pytest.raises(Refusal, match="does not run any more"):
        await read(copier, "/etc/passwd", state(pid=8))


async def test_who_waits_no_longer_ends_the_work(copier: DiskCopier, root: Path) -> None:
    (root / "data/big").write_bytes(bytes(10 << 20))
    begun, never = asyncio.Event(), asyncio.Event()

    async def send(_data: bytes) -> None:
        begun.set()
        await never.wait()

    async def warn(_line: str) -> None: ...

    before = set(os.listdir("/proc/self/fd"))
    task = asyncio.create_task(copier.out(state(), "/data/big", send, warn))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(os.listdir("/proc/self/fd")) == before


async def test_an_error_of_the_other_side_ends_the_work(copier: DiskCopier, tmp_path: Path) -> None:
    async def receive() -> bytes:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await copier.into(state(), "/data", receive)


def test_what_is_read_can_be_written(tmp_path: Path, copier: DiskCopier, root: Path) -> None:
    (root / "data/f").write_text("1")
    data = asyncio.run(read(copier, "/data"))
    (tmp_path / "out").mkdir()
    parent, pieces = os.open(tmp_path / "out", os.O_RDONLY), iter([data])
    Unpacker(parent, None).unpack(Reader(lambda: next(pieces, b"")))
    os.close(parent)
    assert (tmp_path / "out/data/f").read_text() == "1"
