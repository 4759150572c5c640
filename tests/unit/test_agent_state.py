"""The agent's state: what is kept, and what a crash, a full disk or a damaged file leaves."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from shoal.agent.state import (
    ClusterRecord,
    DiskState,
    Identity,
    MemoryState,
    NodeRange,
    PodRecord,
    Position,
    ProbeTry,
    RunNote,
    State,
    StateFault,
)

CLUSTER = ClusterRecord("inc-1", Position(7, 900), "10.244.1.0/24", "10.244.0.0/16", {"n2": NodeRange("a", "b")})
POD = PodRecord("uid-1", b"\x00\npod bytes\n\xff", 12.5, 13.5, b"\xff\x00final")


@pytest.fixture(params=["disk", "memory"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> State:
    return DiskState(tmp_path / "state") if request.param == "disk" else MemoryState()


async def test_everything_that_is_saved_is_read_again(state: State) -> None:
    await state.begin("id-1", 100.0)
    assert await state.cluster() == ClusterRecord()
    await state.save_cluster(CLUSTER)
    await state.save_pod(POD)
    await state.save_pod(PodRecord("uid-2", b"", 1.0))
    assert await state.cluster() == CLUSTER
    assert sorted(await state.pods(), key=lambda pod: pod.uid) == [POD, PodRecord("uid-2", b"", 1.0)]
    await state.remove_pod("uid-2")
    await state.remove_pod("uid-2")
    assert await state.pods() == [POD]


async def test_notes_are_kept_in_their_order_until_removed(state: State) -> None:
    await state.begin("id-1", 100.0)
    for name in ("web.app.10.0a", "web.app.9.0a", "x"):
        await state.put_note("deaths", name, name.encode() + b"\n\xff")
    await state.put_note("healthy", "x", b"", sure=False)
    await state.remove_note("deaths", "x")
    await state.remove_note("deaths", "x")
    assert list((await state.notes("deaths")).items()) == [
        ("web.app.10.0a", b"web.app.10.0a\n\xff"),
        ("web.app.9.0a", b"web.app.9.0a\n\xff"),
    ]
    assert await state.notes("healthy") == {"x": b""}


async def test_the_tries_of_a_probe_are_the_same_when_read_again(state: State) -> None:
    await state.begin("id-1", 100.0)
    note = RunNote(ends=1, tries=(ProbeTry("liveness", 1.5, False, "HTTP 500", 3),), buried=True)
    record = PodRecord("uid-1", b"x", 1.0, notes={"app/0": note})
    await state.save_pod(record)
    assert await state.pods() == [record]


async def test_the_identity_stays_and_the_starts_grow(state: State) -> None:
    assert await state.begin("id-1", 100.0) == Identity("id-1", 100)
    assert await state.begin("id-2", 50.0) == Identity("id-1", 101)
    assert await state.begin("id-3", 500.0) == Identity("id-1", 500)


def test_positions_are_ordered_by_epoch_then_revision() -> None:
    assert Position(1, 99) < Position(2, 1) < Position(2, 2) <= Position(2, 2)
    assert max(Position(1, 5), Position(2, 1)) == Position(2, 1)


@pytest.mark.parametrize("damage", [b"", b"shoal-state 1 ", b"{}", b"\x00" * 200])
async def test_a_damaged_file_is_set_aside_with_a_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    state = DiskState(tmp_path)
    await state.begin("id-1", 1.0)
    await state.save_pod(POD)
    await state.save_pod(PodRecord("uid-2", b"x", 1.0))
    (tmp_path / "pods" / "uid-1").write_bytes(damage)
    with caplog.at_level(logging.ERROR):
        assert await state.pods() == [PodRecord("uid-2", b"x", 1.0)]
    assert "uid-1 is damaged" in caplog.text and "set aside" in caplog.text
    assert (tmp_path / "pods" / "uid-1.corrupt").read_bytes() == damage
    assert len(await state.pods()) == 1


async def test_one_changed_byte_is_noticed(tmp_path: Path) -> None:
    state = DiskState(tmp_path)
    await state.begin("id-1", 1.0)
    await state.save_cluster(CLUSTER)
    raw = bytearray((tmp_path / "cluster").read_bytes())
    raw[-3] ^= 1
    (tmp_path / "cluster").write_bytes(raw)
    assert await state.cluster() == ClusterRecord()


async def test_a_write_that_was_cut_off_leaves_the_old(tmp_path: Path) -> None:
    state = DiskState(tmp_path)
    await state.begin("id-1", 1.0)
    await state.save_pod(POD)
    (tmp_path / "pods" / ".uid-1.new").write_bytes(b"half")
    assert (await DiskState(tmp_path).begin("id-2", 2.0)).instance_id == "id-1"
    assert await state.pods() == [POD]
    assert not (tmp_path / "pods" / ".uid-1.new").exists()


async def test_a_disk_that_refuses_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = DiskState(tmp_path)
    await state.begin("id-1", 1.0)
    await state.save_pod(POD)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateFault, match=r"uid-1 could not be saved: No space left on device"):
        await state.save_pod(PodRecord("uid-1", b"new", 1.0))
    assert await state.begin("other", 2.0) == Identity("id-1", 2)
    monkeypatch.undo()
    assert await state.pods() == [POD]
    assert [path.name for path in (tmp_path / "pods").iterdir()] == ["uid-1"]


@pytest.mark.parametrize("uid", ["", "../x", "a/b", ".hidden", "a\0b"])
async def test_a_uid_that_is_no_file_name_is_refused(tmp_path: Path, uid: str) -> None:
    state = DiskState(tmp_path)
    await state.begin("id-1", 1.0)
    with pytest.raises(StateFault, match="cannot be a file's name"):
        await state.save_pod(PodRecord(uid, b"", 1.0))


async def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateFault, match="cannot be used"):
        await DiskState(tmp_path / "file" / "state").begin("id", 1.0)
