"""The decision log's files: rotation, what is lost and said, damage that is found."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from shoal.deploy.cli.scheduler import command
from shoal.master.decision_log import DecisionLog
from shoal.master.model import Key
from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.core import Scheduler, Waiting
from shoal.master.scheduler.journal import JournalError, PolicyIs, read
from shoal.master.scheduler.nodes import NodeFacts
from shoal.master.scheduler.profiles import BUILT_IN
from shoal.master.scheduler.replay import Report, replay
from shoal.master.scheduler.snapshot import Snapshot
from shoal.master.scheduling.journal import Journal

SMALL = PodClass((("cpu", 100), ("pods", 1)), (), (), (100, 0), "", namespace="default")
PLENTY = {"cpu": 10**9, "memory": 2**40, "ephemeral-storage": 2**40, "pods": 10**6}


class Life:
    """A snapshot with a journal, and windows of small pods."""

    def __init__(self, log: DecisionLog) -> None:
        self.snapshot, self.scheduler, self.window = Snapshot(), Scheduler(), 0
        self.snapshot.take_nodes({n: NodeFacts(n, dict(PLENTY), {}, frozenset(), True) for n in ("a", "b")})
        self.journal = Journal(log, BUILT_IN, lambda: 0.0)
        self.journal.watch(self.snapshot)
        self.journal.applied(1, [])

    def place(self, number: int) -> None:
        self.window += 1
        queue = [
            Waiting(uid, Key("Pod", "default", uid), SMALL, (self.window, uid))
            for uid in (f"p{self.window}-{index}" for index in range(number))
        ]
        self.journal.planned(self.window, self.window, queue, self.scheduler.schedule(self.snapshot, queue))

    def empty(self) -> None:
        for uid in self.snapshot.all_holds():
            self.snapshot.undo(uid)
            self.journal.undone(uid)


def replayed(path: Path) -> Report:
    with path.open("rb") as file:
        return replay(read(file))


@pytest.fixture
def log(tmp_path: Path) -> DecisionLog:
    found = DecisionLog(tmp_path / "decisions.log", 2, "1.2.3")
    found.start()
    return found


def test_what_is_written_can_be_made_again(log: DecisionLog, tmp_path: Path) -> None:
    life = Life(log)
    life.place(3)
    life.place(2)
    log.close()
    path = tmp_path / "decisions.log"
    report = replayed(path)
    assert (report.version, report.plans, report.decisions, report.placed) == ("1.2.3", 2, 5, 5)
    assert not report.differences
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_full_file_is_followed_by_one_that_stands_alone(log: DecisionLog, tmp_path: Path) -> None:
    life = Life(log)
    path, before = tmp_path / "decisions.log", tmp_path / "decisions.log.1"
    while not before.exists():
        life.place(100)
        life.empty()
    life.place(1)
    log.close()
    assert path.stat().st_size + before.stat().st_size < 5 << 19, "the loop runs ahead of the thread, but not far"
    first, second = replayed(before), replayed(path)
    assert not first.differences and not second.differences
    assert first.plans and second.plans and first.plans + second.plans == life.window


def test_what_comes_too_fast_is_lost_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = DecisionLog(tmp_path / "decisions.log", 2, "1", pending_limit=10)
    life = Life(log)  # nothing is written yet: the thread has not begun
    for _ in range(5):
        life.place(10)
    life.empty()  # the state that is asked for next is small: it does not itself fill what may wait
    log.start()
    while not log.wants_state():
        pass
    life.place(1)
    life.place(4)
    log.close()
    assert "some decisions were lost; a new file begins" in caplog.text
    report = replayed(tmp_path / "decisions.log")
    assert (report.plans, report.decisions, report.differences) == (1, 4, [])


def test_a_folder_that_goes_away_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = DecisionLog(tmp_path / "gone" / "decisions.log", 2, "1")
    log.start()
    life = Life(log)
    life.place(3)
    log.close()
    assert "No such file or directory; tried again in" in caplog.text
    assert len(life.snapshot.all_holds()) == 3


def _cut(text: bytes) -> bytes:
    return text[:-20]


def _altered(text: bytes) -> bytes:
    return text.replace(b'"bound":[[0,"a"', b'"bound":[[0,"b"')


def _not_ours(text: bytes) -> bytes:
    return b"hello\n" + text


def _headless(text: bytes) -> bytes:
    return text.split(b"\n", 1)[1]


def _stateless(text: bytes) -> bytes:
    return text.split(b"\n", 1)[0] + b"\n"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_altered, "line 6: is damaged (its checksum does not match)"),
        (_not_ours, "line 1: is not a line of a decision log"),
        (_headless, "line 1: a record of kind 'node' has no place here"),
        (_stateless, "line 1: the file ends before the state is complete"),
        (lambda text: b"", "line 0: the file ends before the state is complete"),
    ],
)
def test_damage_is_found(log: DecisionLog, tmp_path: Path, damage: Callable[[bytes], bytes], problem: str) -> None:
    Life(log).place(1)
    log.close()
    path = tmp_path / "decisions.log"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(JournalError) as found:
        replayed(path)
    assert str(found.value).startswith(problem)


def test_a_last_line_that_was_being_written_is_left_out(log: DecisionLog, tmp_path: Path) -> None:
    life = Life(log)
    life.place(1)
    life.place(1)
    log.close()
    path = tmp_path / "decisions.log"
    path.write_bytes(_cut(path.read_bytes()))
    assert replayed(path).plans == 1


# ---- the command ----
def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, ["replay", *arguments], standalone_mode=False)
    if result.exception is not None:
        return 1, str(result.exception)
    return int(result.return_value), result.output


def test_the_command_says_what_it_left_out_and_when_nothing_was_decided(log: DecisionLog, tmp_path: Path) -> None:
    Life(log).place(1)
    log.close()
    path = tmp_path / "decisions.log"
    path.write_bytes(_cut(path.read_bytes()))
    assert run(str(path)) == (
        0,
        "0 plans, 0 decisions: 0 placed on 0 nodes, 0 preempting; logged by version 1.2.3\n"
        "There is no decision in it.\n"
        "note: its last line is not whole (it is being written, or was cut off) and was left out\n",
    )


def test_the_command_tells_what_would_be_otherwise(log: DecisionLog, tmp_path: Path) -> None:
    life = Life(log)
    for _ in range(4):
        life.place(1)
    log.close()
    path = str(tmp_path / "decisions.log")
    assert run(path) == (
        0,
        "4 plans, 4 decisions: 4 placed on 2 nodes, 0 preempting; logged by version 1.2.3\n"
        "Every decision came out the same again.\n",
    )
    status, text = run(path, "--profile", "bin-packing")
    assert status == 0
    assert "With profile bin-packing: 4 placed on 1 node; 2 of the decisions would be others." in text
    assert text.endswith("  plan 2: default/p2-0: b  ->  a\n  plan 4: default/p4-0: b  ->  a\n")
    weights = tmp_path / "mine.yaml"
    weights.write_text("base: bin-packing\nmost: 3\n")
    assert '"pod": "p2-0"' in run(path, "--profile", str(weights), "-o", "json")[1]


def test_the_command_says_what_is_wrong(log: DecisionLog, tmp_path: Path) -> None:
    Life(log).place(1)
    log.close()
    path = tmp_path / "decisions.log"
    assert run(str(path), "--profile", "bin-paking")[1] == (
        "bin-paking is neither a built-in profile nor a file: did you mean bin-packing?"
    )
    weights = tmp_path / "mine.yaml"
    weights.write_text("mosst: 3\n")
    assert "profile: mosst is no part of a score; did you mean most?" in run(str(path), "--profile", str(weights))[1]
    path.write_bytes(_altered(path.read_bytes()))
    assert "line 6: is damaged" in run(str(path))[1]


class Odd(Snapshot):
    """What no line can be made of."""


def test_what_cannot_be_written_is_lost_and_the_next_file_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shoal.master.decision_log.RETRY_SECONDS", 0.0)
    path = tmp_path / "decisions.log"
    log = DecisionLog(path, 2, "1.2.3")
    life = Life(log)
    log.put(PolicyIs("PodGroup", "default", "odd", Odd()))  # type: ignore[arg-type]
    log.start()
    while not log.wants_state():
        time.sleep(0.001)
    life.place(2)  # it is told that the log lost something, and begins anew
    life.place(3)
    log.close()
    assert "tried again" in caplog.text
    assert (replayed(path).plans, replayed(path).decisions) == (1, 3)
