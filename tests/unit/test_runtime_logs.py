"""The container log's format, rotation, and what happens while the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shoal.agent.runtime.logs import MAX_PIECE, RETRY_SECONDS, LogFile, Stamper, rfc3339_nano, rotated

T = b"2026-01-02T03:04:05.000000006Z"


def line(stream: str, tag: str, text: str) -> bytes:
    return T + f" {stream} {tag} {text}\n".encode()


def test_time_is_rfc3339_with_nanoseconds() -> None:
    assert rfc3339_nano(0) == b"1970-01-01T00:00:00.000000000Z"
    assert rfc3339_nano(1_700_000_000_000_000_007) == b"2023-11-14T22:13:20.000000007Z"


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"a\nb\n"], [("F", "a"), ("F", "b")]),
        ([b"a", b"b\n"], [("F", "ab")]),
        ([b"\n\n"], [("F", ""), ("F", "")]),
        ([b"x" * MAX_PIECE + b"\n"], [("F", "x" * MAX_PIECE)]),
        ([b"x" * (MAX_PIECE + 1) + b"\n"], [("P", "x" * MAX_PIECE), ("F", "x")]),
        (
            [b"a\n" + b"x" * 2 * MAX_PIECE + b"\nb\n"],
            [("F", "a"), ("P", "x" * MAX_PIECE), ("F", "x" * MAX_PIECE), ("F", "b")],
        ),
        ([b"x" * (MAX_PIECE + 5)], [("P", "x" * MAX_PIECE), ("F", "x" * 5)]),
        ([b"x" * MAX_PIECE, b"\n"], [("F", "x" * MAX_PIECE)]),
        ([b""], []),
    ],
)
def test_lines_and_pieces(chunks: list[bytes], expected: list[tuple[str, str]]) -> None:
    stamper = Stamper("stdout")
    found = b"".join(stamper.feed(chunk, T) for chunk in chunks) + stamper.flush(T, final=True)
    assert found == b"".join(line("stdout", tag, text) for tag, text in expected)


def test_a_line_without_end_is_flushed_as_a_piece() -> None:
    stamper = Stamper("stderr")
    assert stamper.feed(b"prompt> ", T) == b""
    assert stamper.flush(T, final=False) == line("stderr", "P", "prompt> ")
    assert stamper.feed(b"yes\n", T) == line("stderr", "F", "yes")
    assert stamper.flush(T, final=True) == b""


def test_rotation_keeps_whole_lines_and_at_most_the_given_files(tmp_path: Path) -> None:
    path = tmp_path / "deep/x.log"
    log = LogFile(str(path), 100, 3)
    for start in range(0, 40, 4):
        log.append(b"".join(b"line %03d of this log\n" % n for n in range(start, start + 4)), T)
    log.close()
    files = rotated(str(path))
    assert [Path(file).name for file in files] == ["x.log", "x.log.1", "x.log.2"]
    contents = [Path(file).read_bytes() for file in reversed(files)]
    assert all(0 < len(content) <= 100 and content.endswith(b"\n") for content in contents)
    numbers = [int(text.split()[1]) for text in b"".join(contents).splitlines()]
    assert numbers == list(range(numbers[0], 40))


def test_a_line_larger_than_a_file_is_kept_whole(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "x.log"), 10, 2)
    log.append(b"short\n" + b"y" * 50 + b"\nshort\n", T)
    log.close()
    assert (tmp_path / "x.log").read_bytes() == b"short\n"
    assert (tmp_path / "x.log.1").read_bytes() == b"y" * 50 + b"\n"


def test_one_file_only_starts_anew(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "x.log"), 12, 1)
    for n in range(5):
        log.append(b"line %d\n" % n, T)
    log.close()
    assert [Path(file).read_bytes() for file in rotated(str(tmp_path / "x.log"))] == [b"line 4\n"]


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"whole\nhal")
    log = LogFile(str(path), 1000, 2)
    log.append(b"next\n", T)
    log.close()
    assert path.read_bytes() == b"whole\nnext\n"


class Disk:
    """A disk that takes `room` bytes; its clock stands still until moved."""

    def __init__(self, room: int) -> None:
        self.room, self.time = room, 0.0

    def write(self, fd: int, data: bytes) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = os.write(fd, data[: self.room])
        self.room -= count
        return count


def test_a_full_disk_drops_counts_and_says_so_later(tmp_path: Path) -> None:
    disk, path = Disk(14), tmp_path / "x.log"
    log = LogFile(str(path), 10_000, 2, monotonic=lambda: disk.time, write=disk.write)
    log.append(b"first\n", T)
    log.append(b"second line\n", T)  # fits in part: nothing of it may stay
    assert path.read_bytes() == b"first\n"
    log.append(b"third\nfourth\n", T)
    assert (log.dropped_lines, log.dropped_bytes) == (3, 25)
    disk.room = 10_000
    log.append(b"fifth\n", T)  # not tried again yet
    assert path.read_bytes() == b"first\n"
    disk.time += RETRY_SECONDS
    log.append(b"sixth\n", T)
    text = path.read_text().splitlines()
    assert text[0] == "first"
    assert text[1].endswith("stderr F shoal: 4 lines (31 bytes) are missing here: the disk was full")
    assert text[2:] == ["sixth"]
    assert log.dropped_lines == 0
    log.close()


def test_what_was_dropped_is_said_at_the_end(tmp_path: Path) -> None:
    disk, path = Disk(0), tmp_path / "x.log"
    log = LogFile(str(path), 10_000, 2, monotonic=lambda: disk.time, write=disk.write)
    log.append(b"lost\n", T)
    disk.room = 10_000
    log.finish(T)
    assert path.read_text().splitlines() == [
        f"{T.decode()} stderr F shoal: 1 lines (5 bytes) are missing here: the disk was full"
    ]


def test_a_folder_that_cannot_be_made_drops_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    log = LogFile(str(tmp_path / "file/x.log"), 100, 2)
    log.append(b"lost\n", T)
    assert log.dropped_lines == 1
    log.close()
