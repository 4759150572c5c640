"""The commands that run inside a pod's containers (exec): their pipes or terminals, and their exit codes."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from shoal.agent.runtime import launch, wire

REAPED_SECONDS = 5.0  # how long the spawner may take to tell an orphan's code
PREFIX = "exec/"  # of the keys of their duplicates


@dataclass(slots=True)
class Execution:
    """One process: its exit code and a newline go out on `status`, a pipe whose read end the agent has."""

    key: str
    pid: int
    pidfd: int
    status: int
    own: bool  # our child: we can wait for it


class Executions:
    """All of one pod. `tell` sends to the spawner, which holds duplicates."""

    def __init__(self, poller: wire.Poller, tell: Callable[[wire.Message, list[int]], None]) -> None:
        self._poller, self._tell = poller, tell
        self._running: dict[str, Execution] = {}
        self._count = 0

    def begin(self, start: Callable[[list[int]], launch.Launched], *, terminal: bool, stdin: bool) -> dict[str, int]:
        """Makes the ends, calls `start` with the process's three, and gives ours by name: terminal, or stdin (if
        wanted), stdout and stderr; then status and pidfd. They are the caller's to close."""
        ours, theirs = open_ends(terminal=terminal, stdin=stdin)
        status = -1
        try:
            ours["status"], status = os.pipe2(os.O_CLOEXEC)  # before the start: out of descriptors, nothing may run
            launched = start(theirs)
            if launched.terminal >= 0:
                os.close(ours["terminal"])
                ours["terminal"] = launched.terminal
            ours["pidfd"] = os.dup(launched.pidfd)
        except BaseException:
            wire.close_all([*ours.values(), status])
            raise
        finally:
            wire.close_all(sorted(set(theirs)))
        self._count += 1
        self._add(Execution(f"{PREFIX}{self._count}", launched.pid, launched.pidfd, status, True))
        return ours

    def adopt(self, kept: wire.Kept) -> None:
        """Takes up a command of a dead predecessor."""
        self._count = max(self._count, int(kept.key.removeprefix(PREFIX)))
        pid = int(kept.facts.get("pid", 0))
        self._add(Execution(kept.key, pid, kept.fds["pidfd"], kept.fds["status"], False))

    def _add(self, execution: Execution) -> None:
        self._running[execution.key] = execution
        self._keep(execution)
        self._poller.watch(execution.pidfd, partial(self._on_end, execution))
        self._poller.watch(execution.status, partial(self._abandoned, execution))

    def keep_all(self) -> None:
        """Gives duplicates of all to a spawner that has just connected."""
        for execution in self._running.values():
            self._keep(execution)

    def _keep(self, execution: Execution) -> None:
        message = {"event": "keep", "key": execution.key, "fds": ["pidfd", "status"], "facts": {"pid": execution.pid}}
        self._tell(message, [execution.pidfd, execution.status])

    def _on_end(self, execution: Execution) -> None:
        """An orphan's code comes from the spawner, if at all."""
        self._poller.forget(execution.pidfd)
        if execution.own:
            _, status = os.waitpid(execution.pid, 0)
            self._finish(execution, status)
        else:
            self._poller.after(REAPED_SECONDS, execution.key, partial(self._finish, execution, None))

    def on_reaped(self, pid: int, status: int) -> None:
        """The spawner has waited for process `pid`."""
        for execution in list(self._running.values()):
            if execution.pid == pid:
                self._finish(execution, status)

    def _abandoned(self, execution: Execution) -> None:
        """The agent has closed its end of the status pipe, or has died: nobody is left to end the command."""
        self._poller.forget(execution.status)
        try:
            signal.pidfd_send_signal(execution.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def _finish(self, execution: Execution, status: int | None) -> None:
        """Writes the exit code for the agent; without one the pipe just ends."""
        if self._running.pop(execution.key, None) is None:
            return
        self._poller.forget(execution.pidfd)
        self._poller.forget(execution.status)
        self._poller.cancel(execution.key)
        if status is not None:
            write_code(execution.status, status)
        wire.close_all([execution.pidfd, execution.status])
        self._tell({"event": "drop", "key": execution.key}, [])

    def reap_killed(self, seconds: float) -> None:
        """Waits for our children after a kill: unreaped, they would hold up the end of their container."""
        for execution in list(self._running.values()):
            if execution.own and ends_within(execution.pidfd, seconds):
                self._on_end(execution)


def write_code(status_pipe: int, status: int) -> None:
    """Tells the agent an exit code (`status` is a wait status)."""
    code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    try:
        os.write(status_pipe, f"{code}\n".encode())
    except OSError:
        pass  # the agent no longer listens


def open_ends(*, terminal: bool, stdin: bool) -> tuple[dict[str, int], list[int]]:
    """(our ends by name, the process's stdin, stdout and stderr): pipes, or one terminal for all three."""
    if terminal:
        master, slave = os.openpty()
        return {"terminal": master}, [slave, slave, slave]
    ours: dict[str, int] = {}
    if stdin:
        read, ours["stdin"] = os.pipe2(os.O_CLOEXEC)
    else:
        read = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    ours["stdout"], out = os.pipe2(os.O_CLOEXEC)
    ours["stderr"], err = os.pipe2(os.O_CLOEXEC)
    return ours, [read, out, err]


def ends_within(pidfd: int, seconds: float) -> bool:
    """Waits for a process's end; no process (-1) has ended."""
    if pidfd < 0:
        return True
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))
