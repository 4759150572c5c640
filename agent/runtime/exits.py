"""How a run ended, read from what it leaves before that is freed: code, message, resources. Standard library only."""

from __future__ import annotations

import os
import stat
import time

from shoal.agent.runtime import mounts, records
from shoal.agent.runtime.cgroups import Cgroups

MAX_MESSAGE = 4096  # bytes of the termination file's end


def of_status(status: int, cgroups: Cgroups, path: str, work: str) -> records.Record:
    """The record of a wait status (waitpid(2)); `path` is the run's cgroup, `work` its folder."""
    resources = cgroups.resources(path)
    record = records.exit_of_status(status, time.time(), oom_kills=resources["oom_kills"])
    return {**record, "message": termination_message(work), "resources": resources}


def termination_message(work: str) -> str:
    """The end of the termination file, "" without one. Only the container has written to it."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(f"{work}/{mounts.TERMINATION}", flags)
    except OSError:
        return ""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return ""
        data = os.pread(fd, MAX_MESSAGE, max(status.st_size - MAX_MESSAGE, 0))
        return data.decode(errors="replace")[:MAX_MESSAGE]
    except OSError:
        return ""
    finally:
        os.close(fd)
