"""Trees as tar streams: round trips of odd trees, hostile streams, a tree that changes under the writer."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from shoal.proto.filetree import CHUNK, END, MAX_DEPTH, Entry, Kind, Reader, TreeFault, Unpacker, header, pack


def packed(path: Path, warnings: list[str] | None = None) -> bytes:
    found = os.open(path, os.O_PATH)
    try:
        return b"".join(pack(found, path.name, (warnings if warnings is not None else []).append))
    finally:
        os.close(found)


def reader(data: bytes | Iterable[bytes]) -> Reader:
    pieces: Iterator[bytes] = (
        iter([data[at : at + 1000] for at in range(0, len(data), 1000)]) if isinstance(data, bytes) else iter(data)
    )
    return Reader(lambda: next(pieces, b""))


def unpack(data: bytes | Iterable[bytes], folder: Path, name: str | None = None) -> None:
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        Unpacker(parent, name).unpack(reader(data))
    finally:
        os.close(parent)


def stream(*entries: Entry | bytes) -> bytes:
    parts = [entry if isinstance(entry, bytes) else header(entry) for entry in entries]
    return b"".join(parts) + END


def file(path: str, data: bytes = b"x") -> bytes:
    return header(Entry(path, Kind.FILE, size=len(data))) + data + bytes(-len(data) % 512)


def described(folder: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything below: kind, mode, content or target, and the time of files."""
    found: dict[bytes, tuple[object, ...]] = {}
    for where, folders, files in os.walk(os.fsencode(folder)):
        for name in [*folders, *files]:
            path = os.path.join(where, name)
            status = os.lstat(path)
            content: bytes | None = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as opened:
                    content = opened.read()
            kind = stat.S_IFMT(status.st_mode)
            mode = 0 if stat.S_ISLNK(status.st_mode) else stat.S_IMODE(status.st_mode)
            time = round(status.st_mtime, 3) if stat.S_ISREG(status.st_mode) else 0
            found[os.path.relpath(path, os.fsencode(folder))] = (kind, mode, content, time)
    return found


def odd_tree(top: Path) -> Path:
    top.mkdir()
    (top / "empty folder").mkdir()
    (top / "a").mkdir()
    (top / "a" / ("long" * 40)).write_bytes(b"")
    (top / "a" / "new\nline, \t and \\ and ünïcode").write_bytes(b"text")
    with open(os.fsencode(top) + b"/a/no utf-8 \xff\xfe", "wb") as odd:
        odd.write(b"bytes")
    deep = top
    for _ in range(20):
        deep = deep / ("d" * 30)
        deep.mkdir()
    (deep / "bottom").write_bytes(os.urandom(3 * CHUNK + 17))
    (top / "block").write_bytes(bytes(512))
    (top / "run").write_bytes(b"#!")
    (top / "run").chmod(0o751)
    (top / "read only").write_bytes(b"r")
    (top / "read only").chmod(0o400)
    (top / "link").symlink_to("run")
    (top / "broken").symlink_to("/nowhere/at/all")
    os.utime(top / "run", (1e9, 1e9 + 0.25))
    (top / "closed").mkdir()
    (top / "closed" / "in").write_bytes(b"in")
    (top / "closed").chmod(0o555)
    return top


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    top = odd_tree(tmp_path / "top")
    (tmp_path / "out").mkdir()
    unpack(packed(top), tmp_path / "out")
    assert described(tmp_path / "out" / "top") == described(top)
    unpack(packed(top), tmp_path / "out", "again")
    unpack(packed(top), tmp_path / "out", "again")  # over itself
    assert described(tmp_path / "out" / "again") == described(top)
    (tmp_path / "whole").mkdir()
    unpack(packed(top), tmp_path / "whole", "")
    assert described(tmp_path / "whole") == described(top)


def test_others_read_the_stream(tmp_path: Path) -> None:
    top = odd_tree(tmp_path / "top")
    with tarfile.open(fileobj=io.BytesIO(packed(top))) as archive:
        names = {os.fsencode(name) for name in archive.getnames()}
    assert names == {b"top", *(b"top/" + name for name in described(top))}


def test_a_single_file_gets_the_name_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "two").symlink_to("/etc/passwd")
    unpack(packed(tmp_path / "one"), tmp_path, "two")
    assert (tmp_path / "two").read_bytes() == b"1" and not (tmp_path / "two").is_symlink()


def test_special_files_are_skipped_and_said(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    os.mkfifo(top / "pipe")
    (top / "file").write_bytes(b"f")
    warnings: list[str] = []
    (tmp_path / "out").mkdir()
    unpack(packed(top, warnings), tmp_path / "out")
    assert list(described(tmp_path / "out")) == [b"top", b"top/file"]
    assert warnings == ["top/pipe is a device, a socket or a pipe: skipped"]


def test_a_file_that_shrinks_is_filled_up(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"x" * 10 * CHUNK)
    found, warnings = os.open(big, os.O_PATH), list[str]()
    pieces = pack(found, "big", warnings.append)
    first = next(pieces)
    os.truncate(big, CHUNK)
    unpack([first, *pieces], tmp_path, "out")
    os.close(found)
    assert (tmp_path / "out").stat().st_size == 10 * CHUNK
    assert "became shorter" in warnings[0]


FOLDER, LINK = Kind.FOLDER, Kind.LINK
HOSTILE = {
    "above": (stream(file("../evil")), "could lead outside"),
    "absolute": (stream(file("/evil")), "could lead outside"),
    "in between": (stream(Entry("top", FOLDER), file("top/../evil")), "could lead outside"),
    "through a link": (stream(Entry("top", FOLDER), Entry("top/l", LINK, target=".."), file("top/l/evil")), "before"),
    "link then folder": (
        stream(Entry("top", FOLDER), Entry("top/l", LINK, target=".."), Entry("top/l", FOLDER), file("top/l/evil")),
        "is no folder",
    ),
    "two tops": (stream(file("one"), file("evil")), "is not in one"),
    "no folder": (stream(file("one/evil")), "before its folder"),
    "not in order": (
        stream(Entry("t", FOLDER), Entry("t/a", FOLDER), Entry("t/b", FOLDER), file("t/a/evil")),
        "before its folder",
    ),
    "too deep": (stream(*(Entry("/".join("d" * n), FOLDER) for n in range(1, MAX_DEPTH + 3))), "could lead outside"),
    "rubbish": (b"evil" * 1000, "damaged"),
    "broken off": (file("evil", b"x" * 2000)[:1000], "broke off"),
    "nothing": (END, "nothing was sent"),
    "empty": (b"", "broke off"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_is_written_outside(what: str, tmp_path: Path) -> None:
    data, text = HOSTILE[what]
    (tmp_path / "target").mkdir()
    with pytest.raises(TreeFault, match=text):
        unpack(data, tmp_path / "target")
    assert not list(tmp_path.rglob("evil")) and sorted(os.listdir(tmp_path)) == ["target"]
    assert not [name for name in tmp_path.rglob("*") if name.name.startswith(".shoal-cp")]


def made(change: Callable[[tarfile.TarInfo], None]) -> bytes:
    info = tarfile.TarInfo("top")
    change(info)
    return info.tobuf(tarfile.USTAR_FORMAT) + END


def test_kinds_and_sizes_that_are_not_taken(tmp_path: Path) -> None:
    for kind in (tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_LONGNAME):
        with pytest.raises(TreeFault, match="not taken"):
            unpack(made(lambda info, kind=kind: setattr(info, "type", kind)), tmp_path)  # type: ignore[misc]
    huge = tarfile.TarInfo("top")
    huge.type, huge.size = tarfile.XHDTYPE, 1 << 30
    with pytest.raises(TreeFault, match="at most"):
        unpack(huge.tobuf(tarfile.USTAR_FORMAT) + END, tmp_path)
    wrong = tarfile.TarInfo("top")
    wrong.type, wrong.size = tarfile.XHDTYPE, 512
    for record in (b"99 path=a\n", b"0 path=a\n", b"x path=a\n", b"3 a"):
        with pytest.raises(TreeFault, match="damaged"):
            unpack(wrong.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + END, tmp_path)


def test_setuid_does_not_travel(tmp_path: Path) -> None:
    (tmp_path / "su").write_bytes(b"")
    (tmp_path / "su").chmod(0o4755)
    unpack(packed(tmp_path / "su"), tmp_path, "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_a_full_disk_says_so_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"No space left on device: 'top/file'"):
        unpack(stream(Entry("top", FOLDER), file("top/file")), tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["top"]


def test_who_swaps_folders_for_links_leads_nobody_outside(tmp_path: Path) -> None:
    """A racing container: folders of the target become links to a place outside while files are written there."""
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    over = threading.Event()

    def race() -> None:
        while not over.is_set():
            try:
                os.rename(target / "top" / "sub", target / "moved")
                os.symlink(outside, target / "top" / "sub")
                os.unlink(target / "top" / "sub")
                os.rename(target / "moved", target / "top" / "sub")
            except OSError:
                pass

    racer = threading.Thread(target=race)
    racer.start()
    entries = [file(f"top/sub/{number}") for number in range(50)]
    try:
        for _ in range(20):
            with contextlib.suppress(TreeFault, OSError):
                unpack(stream(Entry("top", FOLDER), Entry("top/sub", FOLDER), *entries), target)
    finally:
        over.set()
        racer.join()
    assert os.listdir(outside) == []
    unpack(stream(Entry("top", FOLDER), Entry("top/sub", FOLDER), *entries), target)
    assert len(os.listdir(target / "top/sub")) == len(entries), "without a racer all of it arrives"


def test_a_folder_that_becomes_a_link_at_once_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same race, won by whoever changes the tree."""
    outside, target, mkdir = tmp_path / "outside", tmp_path / "target", os.mkdir
    outside.mkdir()
    target.mkdir()

    def swapped(name: str, mode: int, *, dir_fd: int) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        if name == "sub":
            os.rmdir(name, dir_fd=dir_fd)
            os.symlink(outside, name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", swapped)
    with pytest.raises(TreeFault, match="is no folder"):
        unpack(stream(Entry("top", FOLDER), Entry("top/sub", FOLDER), file("top/sub/evil")), target)
    assert os.listdir(outside) == []
