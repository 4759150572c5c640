"""The log reader: CRI lines, tail, since, follow and rotation, on both adapters."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.agent import logs
from shoal.agent.logs import (
    CHUNK,
    MAX_LINE,
    DiskLogFiles,
    LogFiles,
    LogOptions,
    MemoryLogFiles,
    PositionLost,
    parse_stamp,
    read_logs,
)

T0 = "2026-01-02T03:04:05.000000001Z"
T1 = "2026-01-02T03:04:06Z"


class Log:
    """A log on either adapter."""

    def __init__(self, files: LogFiles, path: str) -> None:
        self.files, self.path = files, path

    def write(self, *lines: str, raw: bool = False) -> None:
        data = "".join(line if raw else f"{T0} stdout F {line}\n" for line in lines).encode()
        if isinstance(self.files, MemoryLogFiles):
            self.files.append(self.path, data)
        else:
            with open(self.path, "ab") as file:
                file.write(data)

    def rotate(self) -> None:
        if isinstance(self.files, MemoryLogFiles):
            self.files.rotate(self.path, 3)
            return
        for number in (1, 0):
            source = self.path if number == 0 else f"{self.path}.{number}"
            if os.path.exists(source):
                os.rename(source, f"{self.path}.{number + 1}")

    async def read(self, ended: Callable[[], bool] = lambda: True, **options: object) -> str:
        pieces = [piece.data async for piece in read_logs(self.files, self.path, LogOptions(**options), ended)]  # type: ignore[arg-type]
        assert all(len(piece) <= CHUNK for piece in pieces)
        return b"".join(pieces).decode()


@pytest.fixture(params=["disk", "memory"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    if request.param == "disk":
        return Log(DiskLogFiles(), str(tmp_path / "0.log"))
    return Log(MemoryLogFiles(), "/logs/0.log")


async def test_b14_stdout_and_stderr_come_as_they_were_written(log: Log) -> None:
    log.write(f"{T0} stdout F one\n", f"{T1} stderr F two \n", f"{T1} stdout F \n", raw=True)
    assert await log.read() == "one\ntwo \n\n"
    assert await log.read(timestamps=True) == f"{T0} one\n{T1} two \n{T1} \n"


async def test_a_log_that_is_not_there_is_empty(log: Log) -> None:
    assert await log.read() == ""
    assert await log.read(follow=True) == ""
    assert await log.read(tail_lines=3) == ""


async def test_partial_lines_are_joined_per_stream(log: Log) -> None:
    log.write(
        f"{T0} stdout P a\n", f"{T0} stderr P x\n", f"{T0} stdout P b\n", f"{T1} stdout F c\n", f"{T1} stderr F y\n",
        raw=True,
    )  # fmt: skip
    assert await log.read() == "abc\nxy\n"
    assert await log.read(timestamps=True) == f"{T0} abc\n{T0} xy\n"


async def test_an_unfinished_line_comes_at_the_end(log: Log) -> None:
    log.write(f"{T0} stdout F one\n", f"{T0} stdout P prompt> \n", f"{T0} stdout F ha", raw=True)
    assert await log.read() == "one\nprompt> "


async def test_a_line_without_end_does_not_fill_the_memory(log: Log) -> None:
    piece = "x" * 16_000
    for _ in range(40):
        log.write(f"{T0} stdout P {piece}\n", raw=True)
    assert 40 * len(piece) > MAX_LINE
    assert await log.read() == piece * 40


@pytest.mark.parametrize(
    ("wanted", "lines"), [(0, []), (1, ["e"]), (3, ["c", "d", "e"]), (9, ["a", "b", "c", "d", "e"])]
)
async def test_tail_reaches_into_rotated_pieces(log: Log, wanted: int, lines: list[str]) -> None:
    log.write("a", "b")
    log.rotate()
    log.write("c")
    log.rotate()
    log.write("d", "e")
    assert await log.read() == "a\nb\nc\nd\ne\n"
    assert await log.read(tail_lines=wanted) == "".join(f"{line}\n" for line in lines)


async def test_tail_counts_joined_lines(log: Log) -> None:
    log.write("one")
    log.write(f"{T0} stdout P a\n", f"{T0} stdout F b\n", f"{T0} stdout F last\n", raw=True)
    assert await log.read(tail_lines=2) == "ab\nlast\n"
    assert await log.read(tail_lines=3) == "one\nab\nlast\n"


async def test_tail_of_a_long_log(log: Log) -> None:
    log.write(*(f"line {number} " + "x" * 80 for number in range(5000)))
    assert [line.split()[1] for line in (await log.read(tail_lines=2)).splitlines()] == ["4998", "4999"]
    assert len((await log.read(tail_lines=4500)).splitlines()) == 4500


async def test_since_leaves_older_lines_out(log: Log) -> None:
    log.write(f"{T0} stdout F old\n", f"{T1} stdout F new\n", raw=True)
    assert await log.read(since_ns=parse_stamp(T1.encode())) == "new\n"
    assert await log.read(since_ns=parse_stamp(T0.encode())) == "old\nnew\n"


async def test_follow_goes_on_over_rotations_until_the_end(log: Log) -> None:
    over = asyncio.Event()
    log.write("0")
    got: list[bytes] = []

    async def follow() -> None:
        async for piece in read_logs(log.files, log.path, LogOptions(follow=True), over.is_set):
            got.append(piece.data)  # noqa: PERF401 - it is read while it grows

    task = asyncio.create_task(follow())
    expected = "0\n"
    for number in range(1, 7):
        while b"".join(got).decode() != expected:
            await asyncio.sleep(0.01)
        if number % 2:
            log.write(f"{number} before")
            expected += f"{number} before\n"
            log.rotate()
        log.write(str(number))
        expected += f"{number}\n"
    log.write("last words")
    over.set()
    await asyncio.wait_for(task, 10)
    assert b"".join(got).decode() == expected + "last words\n"


@pytest.mark.parametrize("chunk", [100, 1000, CHUNK])
async def test_a_reader_can_go_on_from_any_position(log: Log, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it was cut off, also in the midst of a line, of a piece, and after rotations."""
    monkeypatch.setattr(logs, "CHUNK", chunk)
    text = [f"{T0} stdout F {number} {'x' * 300}\n" for number in range(20)]
    text[7:7] = [f"{T0} stdout P begun\n", f"{T0} stderr F between\n", f"{T0} stderr F {'y' * 500}\n"]
    text.append(f"{T0} stdout F ended\n")
    log.write(*text[:12], raw=True)
    log.rotate()
    log.write(*text[12:], raw=True)
    whole = (await log.read()).encode()
    pieces = [piece async for piece in read_logs(log.files, log.path, LogOptions(), lambda: True)]
    assert pieces[0].data == b"" and pieces[-1].position is not None
    got, place, since = b"", None, 0
    for piece in pieces:
        got += piece.data
        since += len(piece.data)
        if piece.position is not None:
            place, since = piece.position, 0
        assert place is not None
        options = LogOptions(resume=replace(place, skip=place.skip + since))
        rest = [more.data async for more in read_logs(log.files, log.path, options, lambda: True)]
        assert got + b"".join(rest) == whole
    assert place is not None
    for skipped in (1, 5, 400):
        options = LogOptions(resume=replace(pieces[0].position or place, skip=skipped))
        rest = [more.data async for more in read_logs(log.files, log.path, options, lambda: True)]
        assert b"".join(rest) == whole[skipped:]


async def test_a_file_that_took_anothers_identity_is_not_taken_for_it(log: Log) -> None:
    log.write("first")
    [*_, last] = [piece async for piece in read_logs(log.files, log.path, LogOptions(), lambda: True)]
    assert last.position is not None
    options = LogOptions(resume=replace(last.position, head=b"another first line"))
    with pytest.raises(PositionLost):
        [piece async for piece in read_logs(log.files, log.path, options, lambda: True)]


async def test_follow_begins_before_the_first_line(log: Log) -> None:
    over = asyncio.Event()

    async def write_later() -> None:
        await asyncio.sleep(0)
        log.write("hello")
        over.set()

    task = asyncio.create_task(write_later())
    assert await log.read(over.is_set, follow=True) == "hello\n"
    await task


async def test_removing_takes_the_rotated_pieces_too(log: Log) -> None:
    for _ in range(2):
        log.write("x")
        log.rotate()
    log.write("x")
    await log.files.remove(log.path)
    assert await log.read() == ""
    await log.files.remove(log.path)


@pytest.mark.parametrize(
    ("stamp", "value"),
    [
        ("1970-01-01T00:00:01Z", 10**9),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("1970-01-01T00:00:00.000000007Z", 7),
        ("rubbish", 0),
        ("", 0),
    ],
)
def test_stamps(stamp: str, value: int) -> None:
    assert parse_stamp(stamp.encode()) == value
