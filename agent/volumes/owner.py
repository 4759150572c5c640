"""fsGroup: a group owns a volume and all that it holds (the kubelet's SetVolumeOwnership)."""

from __future__ import annotations

import os
import stat

from shoal.agent.volumes.walk import walk

READ_WRITE = 0o660
ENTER = 0o110


def give_to_group(root: str, gid: int, *, always: bool) -> None:
    """The group reads and writes everything below `root`, and what is made there becomes its own. Unless `always`, a
    root that is right already is taken as the sign that all is. Raises OSError."""
    top = os.stat(root, follow_symlinks=False)
    wanted = READ_WRITE | ENTER | stat.S_ISGID
    if not always and top.st_gid == gid and stat.S_IMODE(top.st_mode) & wanted == wanted:
        return
    for entry in walk(root):
        _give(entry.name, entry.fd, gid)
    _give(root, None, gid)  # last: it is the sign


def _give(name: str, folder: int | None, gid: int) -> None:
    """By a descriptor, so that a link that a container puts there meanwhile leads nowhere."""
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return
    try:
        status = os.fstat(fd)
        os.chown(f"/proc/self/fd/{fd}", -1, gid)
        if stat.S_ISLNK(status.st_mode):
            return
        more = READ_WRITE | (ENTER | stat.S_ISGID if stat.S_ISDIR(status.st_mode) else 0)
        os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(status.st_mode) | more)
    finally:
        os.close(fd)
