"""The objects of a node's pods over restarts: what is kept, where, and who can read it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.agent.object_files import DiskObjects
from shoal.agent.objects import Referred
from shoal.agent.runtime import syscalls
from shoal.agent.state import StateFault
from shoal.agent.volumes.memory import mounted_below, unmount_below
from shoal.proto.references import SECRET, Reference
from shoal.proto.v1 import objects_pb2 as o

pytestmark = pytest.mark.root
DB = Reference(SECRET, "shop", "db")


def config(name: str = "web", **data: str) -> o.ConfigMap:
    return o.ConfigMap(kind="ConfigMap", metadata=o.ObjectMeta(name=name, namespace="shop"), data=data)


def secret(**data: bytes) -> o.Secret:
    return o.Secret(kind="Secret", metadata=o.ObjectMeta(name="db", namespace="shop"), data=data)


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[DiskObjects]:
    yield DiskObjects(tmp_path / "state", tmp_path / "run")
    unmount_below(str(tmp_path))


async def again(tmp_path: Path) -> list[Referred]:
    """What an agent finds that starts now."""
    fresh = DiskObjects(tmp_path / "state", tmp_path / "run")
    await fresh.restore()
    return sorted(fresh.table.values(), key=lambda obj: (obj.kind, obj.metadata.name))


async def test_an_agent_finds_what_the_last_one_had(objects: DiskObjects, tmp_path: Path) -> None:
    claim = o.PersistentVolumeClaim(kind="PersistentVolumeClaim", metadata=o.ObjectMeta(name="c", namespace="shop"))
    volume = o.PersistentVolume(kind="PersistentVolume", metadata=o.ObjectMeta(name="v"))
    await objects.keep(objects.apply([config(a="1"), secret(k=b"s"), claim, volume]))
    assert await again(tmp_path) == [config(a="1"), volume, claim, secret(k=b"s")]
    await objects.keep(objects.apply([config(a="2")], complete=True))
    assert await again(tmp_path) == [config(a="2")]


async def test_secrets_are_in_memory_and_gone_with_it(objects: DiskObjects, tmp_path: Path) -> None:
    await objects.keep(objects.apply([config(a="1"), secret(password=b"hunter2")]))
    found = subprocess.run(["grep", "-rl", "hunter2", str(tmp_path)], capture_output=True, text=True).stdout.split()
    assert [Path(path).parent for path in found] == [tmp_path / "run/secrets"]
    fd = os.open(tmp_path / "run/secrets", os.O_RDONLY)
    assert syscalls.filesystem_type(fd) == syscalls.TMPFS_MAGIC
    os.close(fd)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in [*tmp_path.glob("state/objects/*"), Path(found[0])]}
    assert modes == {0o600}
    assert stat.S_IMODE((tmp_path / "run/secrets").stat().st_mode) == 0o700
    unmount_below(str(tmp_path / "run"))
    assert await again(tmp_path) == [config(a="1")]


async def test_the_last_secret_takes_its_file_system_with_it(objects: DiskObjects, tmp_path: Path) -> None:
    await objects.keep(objects.apply([secret(k=b"s")]))
    assert len(mounted_below(str(tmp_path))) == 1
    await objects.keep(objects.apply([], [DB]))
    assert not mounted_below(str(tmp_path))
    assert not (tmp_path / "run/secrets").exists()


async def test_damaged_files_are_dropped(objects: DiskObjects, tmp_path: Path) -> None:
    await objects.keep(objects.apply([config("a", k="1"), config("b", k="1")]))
    first, second = sorted((tmp_path / "state/objects").iterdir())
    first.write_bytes(first.read_bytes()[:-1])
    second.with_suffix(".new").write_bytes(b"half")
    assert len(await again(tmp_path)) == 1
    assert sorted((tmp_path / "state/objects").iterdir()) == [second]


async def test_a_full_disk_is_said_and_the_cache_has_it_all_the_same(objects: DiskObjects, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    syscalls.mount(b"tmpfs", os.fsencode(tmp_path / "state"), b"tmpfs", 0, b"size=64k")
    await objects.keep(objects.apply([config(a="1")]))
    with pytest.raises(StateFault, match="ConfigMap shop/web could not be saved: No space left"):
        await objects.keep(objects.apply([config(a="x" * (1 << 20))]))
    assert objects.config_map("shop", "web") == config(a="x" * (1 << 20))
    assert await again(tmp_path) == [config(a="1")], "the old one is whole"


async def test_after_a_reboot_nothing_is_held_to_be_missing_before_the_master_says_so(
    objects: DiskObjects, tmp_path: Path
) -> None:
    async def settled() -> bool:
        fresh = DiskObjects(tmp_path / "state", tmp_path / "run")
        await fresh.restore()
        return fresh.settled

    assert not await settled(), "a new node knows nothing"
    await objects.keep(objects.apply([config(a="1")], complete=True))
    assert await objects.settle() and not await objects.settle()
    assert await settled(), "another agent of the same boot knows as much as the last"
    [file] = (tmp_path / "state/objects").iterdir()
    file.write_bytes(b"damaged")
    assert not await settled()
    shutil.rmtree(tmp_path / "run")  # as a reboot does
    assert not await settled()
