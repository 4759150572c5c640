"""The volumes on disk and in memory: the contract, modes and owners, crashes, full disks, links that lead out."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from shoal.agent.runtime import syscalls
from shoal.agent.volumes.disk import DiskVolumes
from shoal.agent.volumes.files import write_files
from shoal.agent.volumes.memory import mounted_below
from shoal.agent.volumes.port import (
    EmptyDir,
    File,
    Files,
    HostPath,
    Local,
    Prepared,
    VolumeFault,
    VolumeSource,
    VolumeSpec,
)
from tests.volumes_contract import POD, VolumesContract, files

pytestmark = pytest.mark.root
GROUP = 2345
MIB = 1 << 20
WAIT_S = 90


@pytest.fixture(autouse=True)
def agent_umask() -> Iterator[None]:
    """As in the agent's unit: what is made for containers has its mode all the same."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
async def volumes(tmp_path: Path) -> AsyncIterator[DiskVolumes]:
    """Afterwards nothing is mounted, and no pod has left anything."""
    opened = await DiskVolumes.open(tmp_path / "data", tmp_path / "run")
    yield opened
    await deleted(opened)
    await opened.close()
    assert not mounted_below(str(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*/volumes/*")) == [".trash"]


async def deleted(volumes: DiskVolumes) -> None:
    async with asyncio.timeout(WAIT_S):
        while volumes.being_deleted():
            await asyncio.sleep(0.01)


class TestDiskVolumes(VolumesContract):
    """The contract."""


async def one(volumes: DiskVolumes, source: VolumeSource, **fields: object) -> Path:
    """The volume `v` of POD."""
    spec = VolumeSpec("v", source, **fields)  # type: ignore[arg-type]
    return Path((await volumes.prepare(POD, [spec]))["v"].path)


async def refused(volumes: DiskVolumes, source: VolumeSource) -> str:
    with pytest.raises(VolumeFault) as caught:
        await one(volumes, source)
    return str(caught.value)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# ---- emptyDir ----
async def test_an_empty_dir_is_open_to_all_and_gone_with_its_pod(volumes: DiskVolumes) -> None:
    path = await one(volumes, EmptyDir())
    assert mode(path) == 0o777
    (path / "kept").write_text("x")
    assert await one(volumes, EmptyDir()) == path
    assert (path / "kept").read_text() == "x"
    await volumes.free(POD)
    assert not path.exists()


async def test_an_empty_dir_in_memory_is_a_bounded_tmpfs_and_closed_to_the_node_s_users(volumes: DiskVolumes) -> None:
    path = await one(volumes, EmptyDir(memory=True, size_bytes=MIB))
    fd = os.open(path, os.O_RDONLY)
    assert syscalls.filesystem_type(fd) == syscalls.TMPFS_MAGIC
    os.close(fd)
    assert mode(path) == 0o777
    assert mode(path.parents[1]) == 0o700
    with pytest.raises(OSError, match="No space"):
        (path / "big").write_bytes(b"x" * (2 * MIB))
    await volumes.free(POD)
    assert not path.exists()


async def test_a_group_owns_an_empty_dir_and_what_is_made_in_it(volumes: DiskVolumes) -> None:
    for number, memory in enumerate((False, True)):
        spec = VolumeSpec(f"v{number}", EmptyDir(memory=memory, size_bytes=MIB), fs_group=GROUP)
        path = Path((await volumes.prepare(POD, [spec]))[spec.name].path)
        (path / "new").write_text("")
        assert (mode(path), path.stat().st_gid, (path / "new").stat().st_gid) == (0o2777, GROUP, GROUP)
    await volumes.free(POD)


async def test_usage_counts_blocks_once_and_follows_nothing(volumes: DiskVolumes, tmp_path: Path) -> None:
    path = await one(volumes, EmptyDir())
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "large").write_bytes(b"x" * (4 * MIB))
    (path / "file").write_bytes(b"x" * MIB)
    os.link(path / "file", path / "again")
    (path / "out").symlink_to(outside)
    with open(path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    used = (await volumes.usage(POD))["v"]
    assert MIB <= used < 2 * MIB
    deep = os.open(path, os.O_RDONLY)
    for _ in range(3000):  # far beyond the longest path
        os.mkdir("deep", dir_fd=deep)
        below = os.open("deep", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    fd = os.open("hidden", os.O_WRONLY | os.O_CREAT, dir_fd=deep)
    os.write(fd, b"x" * (32 * MIB))  # more than all the folders that lead to it
    os.close(fd)
    os.close(deep)
    full = (await volumes.usage(POD))["v"]
    await volumes.free(POD)  # before it can fail: pytest cannot delete so deep a tree
    assert full >= used + 32 * MIB
    assert await volumes.measure([str(outside), str(tmp_path / "none")]) >= 4 * MIB


async def test_freeing_never_deletes_what_a_container_has_mounted_in_its_volume(
    volumes: DiskVolumes, tmp_path: Path
) -> None:
    path = await one(volumes, EmptyDir())
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (path / "in").mkdir()
    syscalls.mount(os.fsencode(precious), os.fsencode(path / "in"), None, syscalls.MS_BIND)
    (path / "link").symlink_to(precious)
    await volumes.free(POD)
    await deleted(volumes)
    assert (precious / "file").read_text() == "x"


# ---- files ----
@pytest.mark.parametrize("secret", [False, True])
async def test_files_have_their_modes_and_change_together(volumes: DiskVolumes, secret: bool) -> None:
    path = await one(volumes, Files({"a": File(b"1"), "d/b": File(b"\0\xff", 0o400)}, secret))
    assert ((path / "a").read_bytes(), (path / "d/b").read_bytes()) == (b"1", b"\0\xff")
    assert (mode((path / "a").resolve()), mode((path / "d/b").resolve())) == (0o644, 0o400)
    assert os.readlink(path / "a") == "..data/a"
    before = os.readlink(path / "..data")
    held = (path / "..data").resolve()

    await volumes.update(POD, [VolumeSpec("v", Files({"a": File(b"1"), "d/b": File(b"\0\xff", 0o400)}, secret))])
    assert os.readlink(path / "..data") == before, "the same content changes nothing"

    await volumes.update(POD, [VolumeSpec("v", Files({"a": File(b"2"), "c": File(b"3")}, secret))])
    assert sorted(name.name for name in path.iterdir() if not name.name.startswith("..")) == ["a", "c"]
    assert (path / "a").read_bytes() == b"2"
    assert not held.exists()
    assert len([name for name in os.listdir(path) if name.startswith("..")]) == 2
    await volumes.free(POD)


async def test_a_group_can_read_files_but_not_write_them(volumes: DiskVolumes) -> None:
    path = await one(volumes, Files({"a": File(b"1", 0o400), "d/b": File(b"2", 0o440)}), fs_group=GROUP)
    for name in ("a", "d/b"):
        status = (path / name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o440, GROUP)
    assert (path / "..data/d").stat().st_gid == GROUP
    await volumes.free(POD)


async def test_secrets_are_in_memory_only(volumes: DiskVolumes, tmp_path: Path) -> None:
    path = await one(volumes, files(True, key="hunter2"))
    fd = os.open(path / "key", os.O_RDONLY)
    assert syscalls.filesystem_type(fd) == syscalls.TMPFS_MAGIC
    os.close(fd)
    assert subprocess.run(["grep", "-r", "hunter2", str(tmp_path / "data")], capture_output=True).stdout == b""
    assert mode(tmp_path / "run/volumes") == 0o700
    big = Files({"key": File(b"x" * (20 * MIB))}, secret=True)
    await volumes.update(POD, [VolumeSpec("v", big)])
    assert (path / "key").stat().st_size == 20 * MIB
    await volumes.free(POD)


def _read_below(folder: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY, dir_fd=folder)
    try:
        return os.read(fd, 9)
    finally:
        os.close(fd)


async def test_a_reader_sees_the_old_files_or_the_new_ones(volumes: DiskVolumes) -> None:
    path = await one(volumes, files(a="0", b="0"))
    torn: list[tuple[str, str]] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            try:
                folder = os.open(path / "..data", os.O_RDONLY)
            except FileNotFoundError as fault:
                if not os.path.islink(path / "..data"):
                    torn.append(("..data", str(fault)))
                continue  # the folder that the link named went before it was opened
            try:
                seen = [_read_below(folder, name) for name in ("a", "b")]
            except FileNotFoundError:
                continue  # that generation went meanwhile: a new look at ..data finds the next
            finally:
                os.close(folder)
            if seen[0] != seen[1]:
                torn.append((seen[0].decode(), seen[1].decode()))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        await volumes.update(POD, [VolumeSpec("v", files(a=str(number), b=str(number)))])
    over.set()
    reader.join()
    assert torn == []
    await volumes.free(POD)


# ---- crashes and full disks ----
def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Runs `work` in a child that kills itself at its nth change of the file system; whether it came so far."""
    child = os.fork()
    if child == 0:
        left = step
        changes = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.chmod", "os.chown", "open"}

        def count(event: str, _: object) -> None:
            nonlocal left
            if event in changes:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_kill_between_any_two_steps_costs_nothing(tmp_path: Path) -> None:
    """Files, replaced: after each kill the volume holds all of the old or all of the new, and the next call ends it."""
    old = {"a": File(b"old"), "d/b": File(b"old", 0o400)}
    new = {"a": File(b"new"), "d/b": File(b"new", 0o400), "e": File(b"new")}
    step = 0
    while True:
        step += 1
        root = tmp_path / str(step)
        root.mkdir()
        write_files(str(root), old)
        killed = killed_at(step, lambda root=root: write_files(str(root), new, GROUP))  # type: ignore[misc]
        seen = {(root / "..data" / name).read_bytes() for name in ("a", "d/b")}
        assert seen in ({b"old"}, {b"new"}), f"step {step}"
        write_files(str(root), new, GROUP)
        assert {name: (root / name).read_bytes() for name in new} == dict.fromkeys(new, b"new")
        assert sorted(os.listdir(root)) == sorted(["..data", os.readlink(root / "..data"), "a", "d", "e"])
        assert {(root / name).stat().st_gid for name in new} == {GROUP}
        if not killed:
            break
    assert step > 20


@pytest.mark.parametrize("call", ["prepare", "free"])
async def test_an_agent_killed_anywhere_leaves_what_the_next_one_ends(tmp_path: Path, call: str) -> None:
    specs = [
        VolumeSpec("disk", EmptyDir(), fs_group=GROUP),
        VolumeSpec("fast", EmptyDir(memory=True, size_bytes=MIB)),
        VolumeSpec("keys", files(True, a="1")),
        VolumeSpec("data", Local("pv1")),
    ]

    async def work(root: Path, call: str) -> None:
        volumes = await DiskVolumes.open(root / "data", root / "run")
        await (volumes.prepare(POD, specs) if call == "prepare" else volumes.free(POD))
        await volumes.close()

    step = 0
    killed = True
    while killed:
        step += 1
        root = tmp_path / str(step)
        if call == "free":
            await work(root, "prepare")
        killed = killed_at(step, lambda root=root: asyncio.run(work(root, call)))  # type: ignore[misc]
        volumes = await DiskVolumes.open(root / "data", root / "run")
        if call == "prepare":
            prepared = await volumes.prepare(POD, specs)
            assert mode(Path(prepared["disk"].path)) == 0o2777
            assert mode(Path(prepared["data"].path)) == 0o777
            assert Path(prepared["keys"].path, "a").read_text() == "1"
            assert len(mounted_below(str(root))) == 2
        await volumes.free(POD)
        assert await volumes.held() == []
        assert not mounted_below(str(root))
        await deleted(volumes)
        await volumes.close()
    assert step > 5


async def test_memory_volumes_come_again_after_a_reboot(volumes: DiskVolumes) -> None:
    path = await one(volumes, files(True, key="1"))
    syscalls.umount2(os.fsencode(path), syscalls.MNT_DETACH)
    assert os.listdir(path) == []
    assert await one(volumes, files(True, key="1")) == path
    assert (path / "key").read_text() == "1"
    await volumes.free(POD)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    syscalls.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=256k")
    yield folder
    syscalls.umount2(os.fsencode(folder), syscalls.MNT_DETACH)


async def test_a_full_disk_is_said_and_leaves_the_old_files(small_disk: Path, tmp_path: Path) -> None:
    volumes = await DiskVolumes.open(small_disk / "data", tmp_path / "run")
    path = await one(volumes, files(a="1"))
    for _ in range(3):  # what did not fit does not pile up
        said = await refused(volumes, Files({"a": File(b"x" * MIB)}))
        assert "volume v: no space is left on the node" in said
        assert (path / "a").read_text() == "1"
    await one(volumes, Files({"a": File(b"y" * 100_000)}))
    assert (path / "a").stat().st_size == 100_000
    await volumes.free(POD)
    await deleted(volumes)
    await volumes.close()


# ---- the node's own ----
async def test_host_paths_have_the_type_that_they_are_said_to_have(volumes: DiskVolumes, tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "file").write_text("x")
    (host / "link").symlink_to(host / "file")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(host / "sock"))

    async def prepared(name: str, kind: str) -> Prepared:
        return (await volumes.prepare(POD, [VolumeSpec("v", HostPath(f"{host}/{name}", kind))]))["v"]

    assert await prepared("", "Directory") == Prepared("v", str(host))
    assert await prepared("file", "File") == Prepared("v", str(host / "file"), is_file=True)
    assert await prepared("link", "") == Prepared("v", str(host / "file"), is_file=True)
    assert (await prepared("sock", "Socket")).is_file
    assert not (await prepared("new/folder", "DirectoryOrCreate")).is_file
    assert (mode(host / "new"), mode(host / "new/folder")) == (0o755, 0o755)
    assert (await prepared("made", "FileOrCreate")).is_file
    assert mode(host / "made") == 0o644
    null = (await volumes.prepare(POD, [VolumeSpec("v", HostPath("/dev/null", "CharDevice"))]))["v"]
    assert null == Prepared("v", "/dev/null", is_file=True)
    for name, kind, why in [
        ("file", "Directory", "it is not a folder"),
        ("nothing", "Directory", "there is nothing"),
        ("", "FileOrCreate", "it is not a regular file"),
        ("file", "Socket", "it is not a socket"),
        ("file", "BlockDevice", "it is not a block device"),
        ("none/made", "FileOrCreate", "its folder is not"),
    ]:
        assert why in await refused(volumes, HostPath(f"{host}/{name}", kind))
    await volumes.free(POD)
    assert (host / "file").read_text() == "x"
    server.close()


async def test_persistent_volumes_outlive_their_pods_until_they_are_removed(
    volumes: DiskVolumes, tmp_path: Path
) -> None:
    path = await one(volumes, Local("pv1"))
    assert mode(path) == 0o777
    (path / "kept").write_text("x")
    (path / "out").symlink_to(tmp_path)
    await volumes.free(POD)
    assert (await one(volumes, Local("pv1")) / "kept").read_text() == "x"
    await volumes.free(POD)
    await volumes.remove_local("pv1")
    assert not path.exists()
    await volumes.remove_local("pv1")
    own = tmp_path / "own"
    assert "there is no folder" in await refused(volumes, Local("pv2", str(own)))
    own.mkdir()
    assert await one(volumes, Local("pv2", str(own))) == own


async def test_a_group_is_given_a_persistent_volume_without_following_links(
    volumes: DiskVolumes, tmp_path: Path
) -> None:
    path = await one(volumes, Local("pv1"))
    outside = tmp_path / "outside"
    outside.write_text("x")
    outside.chmod(0o600)
    (path / "out").symlink_to(outside)
    (path / "d").mkdir(0o700)
    (path / "d/f").write_text("x")
    (path / "d/f").chmod(0o600)
    await one(volumes, Local("pv1"), fs_group=GROUP)
    assert (mode(path / "d/f"), (path / "d/f").stat().st_gid) == (0o660, GROUP)
    assert (mode(path / "d"), (path / "d").stat().st_gid) == (0o2770, GROUP)
    assert (mode(outside), outside.stat().st_gid) == (0o600, 0)
    (path / "d/f").chmod(0o600)
    await one(volumes, Local("pv1"), fs_group=GROUP, fs_group_always=False)
    assert mode(path / "d/f") == 0o600, "the root was right: nothing below it was looked at"


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".trash"])
async def test_no_name_leads_out_of_the_folder(volumes: DiskVolumes, name: str) -> None:
    for call in (volumes.free, volumes.remove_local, volumes.usage):
        with pytest.raises(VolumeFault, match="cannot be the name"):
            await call(name)
    assert "cannot be the name" in await refused(volumes, Local(name))
