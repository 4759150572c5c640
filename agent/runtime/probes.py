"""Commands that a supervisor runs inside its containers by itself (probes, hooks): to their end, or to their time-out.

Each is born in a cgroup of its own below its container's (a branch), because nothing else holds all that a command may
start: children leave its session and process group, and outlive it. At the time-out the branch is killed as a whole; at
an ordinary end what is left moves to the container, as a postStart hook's background process must live on. A successor
of a dead supervisor kills every branch that it finds. Standard library only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from shoal.agent.runtime import executions, launch, records, wire
from shoal.agent.runtime.cgroups import Cgroups

OUTPUT_BYTES = 10 * 1024  # kept of one command's output; the rest is read and dropped
READ_SIZE = 64 * 1024  # bytes
DRAIN_READS = 16  # of an ended command's pipe: what it started may still write
MAX_RUNNING = 64  # commands of one pod at once
BRANCH = "probe-"
FREE_SECONDS = 0.02  # between attempts to remove a branch; doubles
FREE_ATTEMPTS = 8  # then it stays until the container's end

Answer = Callable[[wire.Message], None]
Start = Callable[[str, list[int], float], launch.Launched]  # branch, the process's three streams, seconds it may take


@dataclass(slots=True)
class Running:
    """One command. `answer` is called once."""

    key: str
    path: str  # the container's cgroup
    branch: str
    reader: int
    answer: Answer
    pid: int = 0
    pidfd: int = -1
    output: bytearray = field(default_factory=bytearray)
    killed: bool = False


class Probes:
    """All of one pod."""

    def __init__(self, poller: wire.Poller, cgroups: Cgroups) -> None:
        self._poller, self._cgroups = poller, cgroups
        self._running: dict[str, Running] = {}
        self._count = 0

    def begin(self, path: str, start: Start, seconds: float, answer: Answer) -> None:
        """Starts a command in the container whose cgroup is `path`. Raises LaunchError, OSError, Refused."""
        if len(self._running) >= MAX_RUNNING:
            raise wire.Refused(f"{MAX_RUNNING} probes and hooks run in this pod already; their processes do not end")
        self._count += 1
        deadline = time.monotonic() + seconds
        branch = self._cgroups.branch(path, f"{BRANCH}{self._count}")
        reader, writer = os.pipe2(os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        running = Running(f"{BRANCH}{self._count}", path, branch, reader, answer)
        try:
            os.set_blocking(reader, False)
            launched = start(branch, [null, writer, writer], seconds)
        except BaseException as fault:
            os.close(reader)
            self._free(branch, FREE_ATTEMPTS)
            if isinstance(fault, launch.LaunchError) and time.monotonic() >= deadline:
                answer({"code": None, "output": ""})
                return
            raise
        finally:
            wire.close_all([null, writer])
        running.pid, running.pidfd = launched.pid, launched.pidfd
        self._running[running.key] = running
        self._poller.watch(running.pidfd, partial(self._on_end, running))
        self._poller.watch(reader, partial(self._read, running))
        self._poller.after(max(deadline - time.monotonic(), 0), running.key, partial(self._time_out, running))

    def _read(self, running: Running) -> None:
        self._take(running)

    def _take(self, running: Running) -> bool:
        """Reads one piece of output; whether there was one."""
        try:
            data = os.read(running.reader, READ_SIZE)
        except BlockingIOError:
            return False
        if not data:
            self._poller.forget(running.reader)
        running.output += data[: OUTPUT_BYTES - len(running.output)]
        return bool(data)

    def _time_out(self, running: Running) -> None:
        """The answer does not wait for the end: a process in the kernel's hands may take its time to die."""
        running.killed = True
        self._cgroups.kill(running.branch)
        self._drain(running)
        running.answer({"code": None, "output": running.output.decode("latin-1")})

    def _on_end(self, running: Running) -> None:
        _, status = os.waitpid(running.pid, 0)
        del self._running[running.key]
        self._poller.cancel(running.key)
        self._poller.forget(running.pidfd)
        self._drain(running)
        self._poller.forget(running.reader)
        wire.close_all([running.pidfd, running.reader])
        if not running.killed:
            code = records.exit_of_status(status, time.time())["code"]
            running.answer({"code": code, "output": running.output.decode("latin-1")})
            self._cgroups.merge(running.branch, running.path)
        self._free(running.branch, FREE_ATTEMPTS)

    def _drain(self, running: Running) -> None:
        for _ in range(DRAIN_READS):
            if not self._take(running):
                return

    def _free(self, branch: str, attempts: int, wait: float = FREE_SECONDS) -> None:
        """Removes an empty branch; processes that were killed need a moment to go."""
        if not self._cgroups.remove(branch) and attempts:
            self._poller.after(wait, ("free", branch), partial(self._free, branch, attempts - 1, 2 * wait))

    def reap_killed(self, seconds: float) -> None:
        """Waits for our children after a kill: unreaped, they would hold up the end of their container."""
        for running in list(self._running.values()):
            if executions.ends_within(running.pidfd, seconds):
                self._on_end(running)

    def clear(self, path: str) -> None:
        """Kills what a dead predecessor ran in a container: nobody would end it at its time-out."""
        for branch in self._cgroups.branches(path, BRANCH):
            self._cgroups.kill(branch)
            self._free(branch, FREE_ATTEMPTS)
