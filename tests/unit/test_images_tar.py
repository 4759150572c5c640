"""Our tar reader against what Python's tarfile and GNU tar's formats write."""

from __future__ import annotations

import io
import tarfile

import pytest

from shoal.agent.images.port import ImageFault
from shoal.agent.images.tar import Entry, Tar
from tests import images as make

MEMBERS = [
    make.folder("d", mode=0o1777),
    make.member("d/f", b"data" * 300, mode=0o4755, uid=7, gid=8),
    make.member("n" * 90 + "/" + "m" * 120, b"long"),
    make.member("unicode-\u00e4\u20ac", b"", mtime=1.5),
    make.member("big-owner", b"", uid=3_000_000, gid=4_000_000),
    make.symlink("s", "t" * 150),
    make.hardlink("h", "d/f"),
    make.device("c", 5, 1),
    make.fifo("p"),
]


def entries(data: bytes, step: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    source = io.BytesIO(data)
    archive = Tar(lambda n: source.read(min(n, step)), "it")
    return [(entry, b"".join(archive.chunks())) for entry in archive]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("step", [1 << 20, 100])
def test_reads_what_tarfile_writes(format: int, step: int) -> None:
    read = entries(make.tar(MEMBERS, format), step)
    assert len(read) == len(MEMBERS)
    for (entry, data), (info, wanted) in zip(read, MEMBERS, strict=True):
        assert entry.name.decode().rstrip("/") == info.name
        assert (entry.mode, entry.uid, entry.gid) == (info.mode, info.uid, info.gid)
        assert data == wanted and entry.real_size == len(wanted)
        assert entry.link.decode() == info.linkname
        if format == tarfile.PAX_FORMAT:
            assert entry.mtime_ns == int(info.mtime * 1e9)
    assert [entry.kind for entry, _ in read[-4:]] == ["symlink", "hardlink", "char", "fifo"]
    assert (read[-2][0].major, read[-2][0].minor) == (5, 1)


def test_ustar_prefix_and_old_form() -> None:
    name = "a" * 120 + "/" + "b" * 90
    [(entry, data)] = entries(make.tar([make.member(name, b"x")], tarfile.USTAR_FORMAT))
    assert entry.name.decode() == name and data == b"x"


def test_xattrs_keep_every_byte() -> None:
    value = b"\x01\x00\x00\x02\n=\xff"
    record = b" SCHILY.xattr.security.capability=" + value + b"\n"
    length = len(record) + 2
    data = _raw("x", f"{length}".encode() + record) + _raw("0", b"", "file")
    [(entry, _)] = entries(data + bytes(1024))
    assert entry.xattrs == {"security.capability": value}


def test_global_headers_apply_until_overridden() -> None:
    data = (
        _raw("g", b"10 uid=77\n")
        + _raw("0", b"", "a")
        + _raw("x", b"10 uid=88\n")
        + _raw("0", b"", "b")
        + _raw("0", b"", "c")
    )
    assert [entry.uid for entry, _ in entries(data)] == [77, 88, 77]


def test_sparse_forms() -> None:
    mapping = b"2\n0\n3\n1024\n2\n".ljust(512, b"\0") + b"abcde"
    one = _raw(
        "x",
        _records(
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "real"),
            ("GNU.sparse.realsize", "2000"),
        ),
    )
    [(entry, data)] = entries(one + _raw("0", mapping, "GNUSparseFile.0/real"))
    assert (entry.name, entry.segments, entry.real_size, data) == (b"real", [(0, 3), (1024, 2)], 2000, b"abcde")
    zero_one = _raw("x", _records(("GNU.sparse.map", "0,3,1024,2"), ("GNU.sparse.size", "2000")))
    [(entry, data)] = entries(zero_one + _raw("0", b"abcde", "f"))
    assert (entry.segments, data) == ([(0, 3), (1024, 2)], b"abcde")
    zero_zero = _raw(
        "x",
        b"".join(
            _records(("GNU.sparse.offset", str(o)), ("GNU.sparse.numbytes", str(n))) for o, n in ((0, 3), (1024, 2))
        )
        + _records(("GNU.sparse.size", "2000")),
    )
    [(entry, data)] = entries(zero_zero + _raw("0", b"abcde", "f"))
    assert (entry.segments, entry.real_size) == ([(0, 3), (1024, 2)], 2000)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"x" * 1024, "not a tar"),
        (b"\1" * 100, "cut off"),
        (make.tar([make.member("f", b"x" * 2000)])[:1024], "cut off"),
        (make.tar([make.member("f")])[:512] + b"\7" * 512, "checksum"),
    ],
)
def test_damage_is_not_the_end(data: bytes, words: str) -> None:
    with pytest.raises(ImageFault, match=words) as caught:
        entries(data)
    assert caught.value.reason == "BadArchive"


def test_lies_are_refused() -> None:
    sparse = ("GNU.sparse.size", "10")
    lies = {
        "claims": _raw("x", b"", size=1 << 30),
        "extended headers": b"".join(_raw("x", b"10 uid=77\n") for _ in range(20)),
        "pax header": _raw("x", b"99 uid=77\n"),
        "not a number in range": _raw("x", b"12 size=abc\n") + _raw("0", b"", "f"),
        "overlaps": _raw("x", _records(("GNU.sparse.map", "0,3,1,2"), sparse)) + _raw("0", b"abcde", "f"),
        "does not fit": _raw("x", _records(("GNU.sparse.map", "0,3"), sparse)) + _raw("0", b"abcde", "f"),
        "not supported": _raw("V", b"", "volume"),
        "end.* after an extended": _raw("x", b"10 uid=77\n") + bytes(1024),
    }
    for words, data in lies.items():
        with pytest.raises(ImageFault, match=words):
            entries(data)


def test_a_long_sparse_map_is_read_in_one_go() -> None:
    """Lines looked at once: reading each block anew made one entry of a kilobyte, packed, cost most of a minute."""
    numbers = b"".join(b"%d\n1\n" % (2 * n) for n in range(70_000))
    text = b"70000\n" + numbers
    text += bytes(-len(text) % 512)
    sparse = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "f")]
    head = _raw("x", _records(*sparse, ("GNU.sparse.realsize", "140000")))
    [(entry, _)] = entries(head + _raw("0", text + b"x" * 70_000, "f") + bytes(1024))
    assert entry.segments is not None and entry.segments[-1] == (139_998, 1)


def test_global_headers_keep_only_what_is_known() -> None:
    """They stay to the end of the archive: each kept key would be memory for the asking."""
    noise = b"".join(_raw("g", _records((f"GNU.sparse.{n}", "x" * 100), ("uid", "7"))) for n in range(10))
    source = io.BytesIO(noise + _raw("0", b"", "f") + bytes(1024))
    archive = Tar(source.read, "it")
    [entry] = list(archive)
    assert entry.uid == 7
    assert set(archive._global) == {b"uid"}


def _records(*pairs: tuple[str, str]) -> bytes:
    out = b""
    for key, value in pairs:
        body = f" {key}={value}\n".encode()
        length = len(body) + 1
        length = len(body) + len(str(len(body) + len(str(length))))
        out += str(length).encode() + body
    return out


def _raw(kind: str, data: bytes, name: str = "header", size: int | None = None) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind.encode(), len(data) if size is None else size
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return header + data + bytes(-len(data) % 512)
