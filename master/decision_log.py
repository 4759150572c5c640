"""The decision log on disk: a thread writes what the scheduling loop hands over, so that the loop never waits.

Two files: PATH, and PATH.1 before it, together about the size that was asked for, more if the state alone takes more
than half of a file. Each begins with the whole state.
When the disk is full or slow, what cannot be written is lost, that is said, and a new file begins as soon as it can.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

from shoal.master.scheduler.journal import Entry, Planned, State, Writer

log = logging.getLogger("shoal.scheduler")

PENDING_LIMIT = 100_000  # pods and other entries that wait to be written
RETRY_SECONDS = 10.0
MIB = 1 << 20


class DecisionLog:
    """A journal's sink. `start` and `close` are for the program's beginning and end."""

    def __init__(self, path: Path, mib: int, version: str, pending_limit: int = PENDING_LIMIT) -> None:
        self._path, self._limit, self._pending_limit = path, mib * MIB // 2, pending_limit
        self._writer = Writer(version)
        self._todo: deque[Entry | State] = deque()
        self._weight = 0  # of what waits: pods
        self._changed = threading.Condition()
        self._full = False  # the file is, and no other has been asked for
        self._coming = 0  # states that wait to be written
        self._lost = False  # something was, since the last file was begun
        self._ended = False
        self._file: BinaryIO | None = None
        self._written = 0
        self._enough = self._limit  # bytes; then another file begins
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._run, name="decision log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """When what was handed over is written."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    # ---- in the loop ----
    def begin(self, state: State) -> None:
        with self._changed:
            if self._lost:
                log.warning("decision log %s: some decisions were lost; a new file begins", self._path)
            self._todo.append(state)
            self._weight += _weight(state)
            self._full, self._lost, self._coming = False, False, self._coming + 1
            self._changed.notify()

    def put(self, entry: Entry) -> bool:
        with self._changed:
            if self._lost or self._weight > self._pending_limit:
                self._lost = True
                return False
            self._todo.append(entry)
            self._weight += _weight(entry)
            self._changed.notify()
        return True

    def wants_state(self) -> bool:
        return self._full or (self._lost and not self._weight and time.monotonic() >= self._retry_at)

    # ---- in the thread ----
    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._todo and not self._ended:
                    self._changed.wait()
                if not self._todo:
                    break
                todo, self._todo = self._todo, deque()
            for entry in todo:
                self._write(entry)
            self._flush()
            with self._changed:
                self._weight -= sum(_weight(entry) for entry in todo)
        self._shut()

    def _write(self, entry: Entry | State) -> None:
        try:
            if isinstance(entry, State):
                with self._changed:
                    self._coming -= 1
                self._open()
                lines = self._writer.begin(entry)
            elif self._file is None:
                return
            else:
                lines = self._writer.lines(entry)
            assert self._file is not None
            for line in lines:
                self._written += self._file.write(line)
            if isinstance(entry, State):
                self._enough = max(self._limit, self._written + self._limit // 2)
        except Exception as error:  # this thread must not end: what the loop hands over would be lost unseen
            self._fail(error)
            return
        with self._changed:
            self._full = self._written > self._enough and not self._coming

    def _open(self) -> None:
        """The file before becomes PATH.1. Only this user may read it."""
        self._shut()
        if self._path.exists():
            os.replace(self._path, self._path.with_name(self._path.name + ".1"))
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._file, self._written = os.fdopen(handle, "wb", buffering=MIB), 0

    def _flush(self) -> None:
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        why = error.strerror if isinstance(error, OSError) else repr(error)
        log.warning("decision log %s: %s; tried again in %g s", self._path, why, RETRY_SECONDS)
        with self._changed:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._lost = True
            self._full = False
        self._shut()

    def _shut(self) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as error:
            log.warning("decision log %s: %s", self._path, error.strerror)
        self._file = None


def _weight(entry: Entry | State) -> int:
    """About how many pods it speaks of."""
    if isinstance(entry, State):
        return len(entry.holds)
    return 1 + (len(entry.queue) if isinstance(entry, Planned) else 0)
