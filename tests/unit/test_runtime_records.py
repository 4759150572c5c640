"""Records survive half writes and full disks; settings that cannot be used are refused with the field's name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shoal.agent.runtime import exits, records
from shoal.agent.runtime.settings import Settings, SettingsError, load


def test_a_record_is_written_whole_and_read_back(tmp_path: Path) -> None:
    records.write(str(tmp_path), "intent", {"spec": {"name": "é"}})
    assert records.read(str(tmp_path), "intent") == {"spec": {"name": "é"}}
    assert [p.name for p in tmp_path.iterdir()] == ["intent.json"]
    assert records.read(str(tmp_path), "started") is None


def test_a_damaged_record_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "exit.json").write_text('{"code": 1')
    assert records.read(str(tmp_path), "exit") is None
    assert (tmp_path / "exit.damaged").exists()


def test_the_first_exit_stays(tmp_path: Path) -> None:
    records.write_exit(str(tmp_path), records.exit_record(3, 0, 1.0))
    records.write_exit(str(tmp_path), records.unknown_exit(2.0))
    assert records.read(str(tmp_path), "exit") == records.exit_record(3, 0, 1.0)


def test_a_reserved_record_reuses_its_block(tmp_path: Path) -> None:
    records.reserve(str(tmp_path), "exit")
    inode = (tmp_path / "exit.reserved").stat().st_ino
    records.write_exit(str(tmp_path), records.exit_record(0, 0, 1.0))
    assert (tmp_path / "exit.json").stat().st_ino == inode
    assert not (tmp_path / "exit.reserved").exists()


@pytest.mark.parametrize(
    ("status", "kills", "expected"),
    [
        (0, 0, (0, 0, False)),
        (3 << 8, 0, (3, 0, False)),
        (9, 0, (137, 9, False)),
        (9, 1, (137, 9, True)),
        (15, 0, (143, 15, False)),
        (139, 0, (139, 11, False)),
        (137 << 8, 2, (137, 0, True)),
        (3 << 8, 1, (3, 0, True)),
        (0, 2, (0, 0, False)),
    ],
)
def test_wait_statuses(status: int, kills: int, expected: tuple[int, int, bool]) -> None:
    record = records.exit_of_status(status, 5.0, oom_kills=kills)
    assert (record["code"], record["signal"], record["oom"]) == expected


def test_the_sweeper_deletes_however_deep_a_container_nested(tmp_path: Path) -> None:
    top = tmp_path / "pods/uid/work/main-0"
    top.mkdir(parents=True)
    fd = os.open(top, os.O_RDONLY)
    for _ in range(1200):  # beyond Python's recursion limit
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    records.discard(str(tmp_path), str(top), "uid.main-0")
    assert records.sweep(str(tmp_path)) == 0
    assert list((tmp_path / "trash").iterdir()) == []


def test_runs_are_listed_in_order(tmp_path: Path) -> None:
    for attempt in (10, 2, 0):
        folder = records.run_folder(str(tmp_path), "pod", "main", attempt)
        os.makedirs(folder)
        records.write(folder, "intent", {"attempt": attempt})
    assert [run.attempt for run in records.runs(str(tmp_path), "pod")] == [0, 2, 10]
    assert list(records.runs(str(tmp_path), "other")) == []


def test_the_trash_takes_equal_names_and_is_swept(tmp_path: Path) -> None:
    for _ in range(3):
        folder = tmp_path / "work"
        (folder / "deep").mkdir(parents=True)
        (folder / "deep/file").write_text("x")
        records.discard(str(tmp_path), str(folder), "label")
    records.discard(str(tmp_path), str(tmp_path / "missing"), "label")
    assert len(list((tmp_path / "trash").iterdir())) == 3
    assert records.sweep(str(tmp_path)) == 0
    assert list((tmp_path / "trash").iterdir()) == []


def test_process_facts() -> None:
    assert records.start_ticks(os.getpid()) > 0
    assert records.parent_of(os.getpid()) == os.getppid()
    assert records.start_ticks(2**22 + 1) == 0


GOOD = {"run": "/run/x", "data": "/data/x", "cgroup_root": "shoal-x/n1"}


def test_settings_survive_the_file(tmp_path: Path) -> None:
    settings = Settings(**GOOD, boot_id="b", fault_points={"a": "/b"})
    (tmp_path / "c.json").write_text(settings.to_json())
    assert load(str(tmp_path / "c.json")) == settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "one JSON object"),
        (json.dumps({**GOOD, "extra": 1}), "unknown field 'extra'"),
        (json.dumps({"run": "/r", "data": "/d"}), "'cgroup_root' is missing"),
        (json.dumps({**GOOD, "run": "relative"}), "run: 'relative' is not an absolute path"),
        (json.dumps({**GOOD, "cgroup_root": "shoal/../x"}), "cgroup_root"),
        (
            json.dumps({**GOOD, "cgroup_root": "system.slice"}),
            "must be a relative path with a part that begins with 'shoal'",
        ),
    ],
)
def test_bad_settings_name_the_field(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match=message) as caught:
        load(str(path))
    assert str(path) in str(caught.value)


def test_missing_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load(str(tmp_path / "none.json"))


def test_a_full_disk_costs_a_long_message_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record within the reserved blocks is taken; one with a message beyond them loses that."""
    folder = str(tmp_path)
    records.reserve(folder, "exit", records.EXIT_RESERVED)
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > records.EXIT_RESERVED:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    long = {**records.exit_record(7, 0, 1.0), "message": "\0" * 4096, "resources": {}}
    records.write_exit(folder, long)
    found = records.read(folder, "exit")
    assert found is not None
    assert (found["code"], found["message"]) == (7, "")


def test_messages_are_the_files_end_and_never_a_link(tmp_path: Path) -> None:
    file = tmp_path / "termination"
    assert exits.termination_message(str(tmp_path)) == ""
    file.write_bytes(b"x" * 5000 + b"\xff last")
    message = exits.termination_message(str(tmp_path))
    assert message.endswith("x\ufffd last")
    assert len(message) == exits.MAX_MESSAGE
    file.unlink()
    file.symlink_to("/etc/passwd")
    assert exits.termination_message(str(tmp_path)) == ""
    file.unlink()
    os.mkfifo(file)
    assert exits.termination_message(str(tmp_path)) == ""
