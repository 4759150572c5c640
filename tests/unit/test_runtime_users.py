"""passwd and group, parsed by ourselves, from a folder that stands for the image's root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.agent.runtime import users

PASSWD = "# comment\nroot:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/false\nbad:x:abc:1::/:\nshort:x:7\n"
GROUP = "root:x:0:\nweb:x:34:\nlogs:x:50:web,other\nempty:x:51:\nbroken:x:zz:web\n"


@contextmanager
def image(folder: Path, passwd: str = PASSWD, group: str = GROUP) -> Iterator[int]:
    (folder / "etc").mkdir()
    (folder / "etc/passwd").write_text(passwd)
    (folder / "etc/group").write_text(group)
    fd = os.open(folder, os.O_PATH)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups", "home"),
    [
        (b"", 0, 0, [], b"/root"),
        (b"web", 33, 34, [50], b"/var/www"),
        (b"33", 33, 34, [50], b"/var/www"),
        (b"web:logs", 33, 50, [], b"/var/www"),
        (b"web:77", 33, 77, [], b"/var/www"),
        (b"1234", 1234, 0, [], b"/"),
        (b"1234:5", 1234, 5, [], b"/"),
    ],
)
def test_users(tmp_path: Path, user: bytes, uid: int, gid: int, groups: list[int], home: bytes) -> None:
    with image(tmp_path) as root:
        found = users.find(root, user, None, None, False)
    assert (found.uid, found.gid, found.groups, found.home) == (uid, gid, groups, home)


@pytest.mark.parametrize(
    ("user", "code"),
    [
        (b"nobody", users.NO_USER),
        (b"-1", users.NO_USER),
        (b"bad", users.BAD_ID),
        (b"short", users.BAD_ID),
        (b"2147483648", users.BAD_ID),
        (b"9" * 5000, users.BAD_ID),
        (b"web:none", users.NO_GROUP),
        (b"web:broken", users.NO_GROUP),
        (b"web:99999999999", users.BAD_ID),
    ],
)
def test_refusals(tmp_path: Path, user: bytes, code: int) -> None:
    with image(tmp_path) as root, pytest.raises(users.UserError) as caught:
        users.find(root, user, None, None, False)
    assert caught.value.code == code


def test_run_as_and_non_root(tmp_path: Path) -> None:
    with image(tmp_path) as root:
        assert users.find(root, b"root", 33, None, True).gid == 34
        assert users.find(root, b"root", 33, 9, True).gid == 9
        with pytest.raises(users.UserError) as caught:
            users.find(root, b"web", 0, None, True)
        assert caught.value.code == users.IS_ROOT


def test_an_image_without_files(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    try:
        assert users.find(fd, b"", None, None, False).uid == 0
    finally:
        os.close(fd)


def test_links_stay_inside_the_image(tmp_path: Path) -> None:
    """/etc/passwd of the image points at an absolute path: the image's, not the host's."""
    (tmp_path / "outside").write_text("web:x:0:0::/:\n")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").symlink_to(tmp_path / "outside")
    fd = os.open(root, os.O_PATH)
    try:
        assert users.read_table(fd, b"etc/passwd") == []
    finally:
        os.close(fd)


@given(st.binary(max_size=400))
def test_any_bytes_are_parsed(text: bytes) -> None:
    for row in users.parse(text):
        assert len(row) > 2
    users.memberships(users.parse(text), b"web", 0)
