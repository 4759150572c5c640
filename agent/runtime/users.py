"""Looks a container's user up in the image's own passwd and group files (passwd(5), group(5)).

Our own parser, on bytes: libc's would load libraries and follow paths of the host. The files are opened inside the
image's root. Standard library only.
"""

from __future__ import annotations

import os
import stat

from shoal.agent.runtime import syscalls

MAX_FILE = 4 << 20  # bytes of a passwd or group file that are read
MAX_ID = (1 << 31) - 1  # larger ids overflow in many programs
ID_DIGITS = 10
MAX_GROUPS = 1024
ROOT_ONLY = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS


class UserError(Exception):
    """`code` is one of the numbers below: it travels from the child to its parent."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


NO_USER, NO_GROUP, BAD_ID, IS_ROOT = 1, 2, 3, 4


class Identity:
    """Who the container's process is: user, group, supplementary groups, home folder."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: bytes = b"/") -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def find(root: int, user: bytes, run_as_user: int | None, run_as_group: int | None, non_root: bool) -> Identity:
    """The identity of `user` ("", "uid", "name", either with ":group") in the image whose root is open as `root`.

    The numbers given win over the image's. What looks like a number is one, whatever names the image's files contain:
    a user called "1000" with uid 0 must not turn runAsUser 1000 into root. Raises UserError.
    """
    wanted, _, group = user.partition(b":")
    if run_as_user is not None:
        wanted, group = b"%d" % run_as_user, b""
    passwd = read_table(root, b"etc/passwd")
    groups = read_table(root, b"etc/group")
    uid, gid, name, home = _user(passwd, wanted or b"0")
    if non_root and uid == 0:
        raise UserError(IS_ROOT)
    extra: list[int] = []
    if run_as_group is not None:
        gid = _checked(run_as_group)
    elif group:
        gid = _group(groups, group)
    if name and not group:
        extra = memberships(groups, name, gid)
    return Identity(uid, gid, extra, home if home.startswith(b"/") else b"/")


def read_table(root: int, path: bytes) -> list[list[bytes]]:
    """The colon-separated rows of a file in the image; [] when it is missing or no regular file."""
    try:
        fd = syscalls.openat2(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, ROOT_ONLY)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        text = b""
        while len(text) < MAX_FILE and (part := os.read(fd, MAX_FILE - len(text))):
            text += part
    finally:
        os.close(fd)
    return parse(text)


def parse(text: bytes) -> list[list[bytes]]:
    """Rows of passwd or group; comments and rows with fewer than three fields are left out."""
    rows = (line.strip().split(b":") for line in text.split(b"\n") if not line.startswith(b"#"))
    return [row for row in rows if len(row) > 2]


def memberships(groups: list[list[bytes]], name: bytes, gid: int) -> list[int]:
    """Supplementary groups that list `name` as a member, without the primary one."""
    found = {int(row[2]) for row in groups if len(row) > 3 and is_id(row[2]) and name in row[3].split(b",") and row[3]}
    return sorted(found - {gid})[:MAX_GROUPS]


def is_id(text: bytes) -> bool:
    """Whether a field is a decimal id in range."""
    return text.isdigit() and len(text) <= ID_DIGITS and int(text) <= MAX_ID


def _checked(value: int) -> int:
    if not 0 <= value <= MAX_ID:
        raise UserError(BAD_ID)
    return value


def _user(passwd: list[list[bytes]], wanted: bytes) -> tuple[int, int, bytes, bytes]:
    """(uid, primary gid, name, home); a number without a row is in group 0 and has no name."""
    if wanted.isdigit():
        number = _checked(int(wanted) if len(wanted) <= ID_DIGITS else MAX_ID + 1)
        row = next((row for row in passwd if is_id(row[2]) and int(row[2]) == number), None)
        if row is None:
            return number, 0, b"", b""
    else:
        row = next((row for row in passwd if row[0] == wanted), None)
    if row is None:
        raise UserError(NO_USER)
    if len(row) < 4 or not is_id(row[2]) or not is_id(row[3]):
        raise UserError(BAD_ID)
    return int(row[2]), int(row[3]), row[0], row[5] if len(row) > 5 else b""


def _group(groups: list[list[bytes]], wanted: bytes) -> int:
    if wanted.isdigit():
        return _checked(int(wanted) if len(wanted) <= ID_DIGITS else MAX_ID + 1)
    row = next((row for row in groups if row[0] == wanted), None)
    if row is None or not is_id(row[2]):
        raise UserError(NO_GROUP)
    return int(row[2])
