"""Processes that outlive whoever started them: known by pid and start time, watched by pidfd."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process for ever: its pid may be used again, the pair may not (until the next boot)."""

    pid: int
    start_ticks: int  # /proc/<pid>/stat, field 22

    def alive(self) -> bool:
        return start_ticks(self.pid) == self.start_ticks

    def send(self, number: int) -> None:
        """Signals it; one that has ended is no error."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                if self.alive():
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

    def wait(self, seconds: float) -> bool:
        """True once it has ended."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if not self.alive():
                return True
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if poll.poll(seconds * 1000):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(self.pid, os.WNOHANG)
                return True
            return False
        finally:
            os.close(descriptor)

    def end(self, grace_seconds: float) -> None:
        """TERM, then KILL when the grace is over; returns when it has ended."""
        self.send(signal.SIGTERM)
        if not self.wait(grace_seconds):
            self.send(signal.SIGKILL)
            self.wait(10.0)


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None for a process that has ended (a zombie counts as ended)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def identify(pid: int) -> Process | None:
    ticks = start_ticks(pid)
    return None if ticks is None else Process(pid, ticks)


class Register:
    """Which process runs under which name: one small file each in the cluster's run folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, process: Process) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        new = self._folder / f".{name}.new"
        new.write_text(json.dumps({"pid": process.pid, "start_ticks": process.start_ticks, "at": time.time()}) + "\n")
        os.replace(new, self._folder / f"{name}.json")

    def get(self, name: str) -> Process | None:
        """The living process of that name."""
        try:
            raw = json.loads((self._folder / f"{name}.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        process = Process(raw["pid"], raw["start_ticks"])
        return process if process.alive() else None

    def names(self) -> list[str]:
        return sorted(p.stem for p in self._folder.glob("*.json")) if self._folder.is_dir() else []

    def drop(self, name: str) -> None:
        (self._folder / f"{name}.json").unlink(missing_ok=True)
