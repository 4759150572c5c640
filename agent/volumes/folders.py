"""Folders that containers fill: emptyDir on disk, and Shoal's own persistent volumes. Made whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from shoal.agent.runtime.trees import delete_tree
from shoal.agent.volumes.walk import walk

OPEN_MODE = 0o777  # as the kubelet: any user of the pod may write
BLOCK = 512  # bytes, of st_blocks
HALF = ".new-"
CHECK_EVERY = 256  # entries, between two looks at the clock


def ensure_folder(path: str, gid: int | None = None) -> None:
    """The folder, mode 0777 whatever the umask; with `gid`, of that group and setgid. Raises OSError."""
    if os.path.isdir(path):
        return
    parent, _, name = path.rpartition("/")
    os.makedirs(parent, 0o700, exist_ok=True)
    half = f"{parent}/{HALF}{name}"
    delete_tree(half)
    os.mkdir(half, 0o700)
    if gid is not None:
        os.chown(half, -1, gid)
    os.chmod(half, OPEN_MODE | (stat.S_ISGID if gid is not None else 0))
    os.rename(half, path)


def disk_usage(path: str, over: float, clock: Callable[[], float]) -> int:
    """Bytes of disk below `path`, each file counted once however many names it has. Past `over` (of `clock`) it is what
    was counted until then: never too much. Raises OSError."""
    total, seen = 0, set()
    for number, entry in enumerate(walk(path)):
        status = entry.status
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
        total += status.st_blocks * BLOCK
        if number % CHECK_EVERY == 0 and clock() > over:
            break
    return total
