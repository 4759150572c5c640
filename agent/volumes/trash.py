"""Deletes folders out of line: moved aside at once, gone when a thread has had the time."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Sequence

from shoal.agent.runtime.trees import delete_tree
from shoal.agent.volumes.memory import unmount_below

log = logging.getLogger(__name__)


class Trash:
    """`root` lies on the file system of what is thrown away. A crash costs nothing: what lies in it at the start goes
    too."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._numbers = 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="shoal-trash", daemon=True)  # never holds the end up

    def open(self) -> None:
        """Raises OSError."""
        os.makedirs(self._root, 0o700, exist_ok=True)
        for name in self.left():
            self._queue.put(f"{self._root}/{name}")
        self._thread.start()

    def left(self) -> Sequence[str]:
        """What is still to be deleted."""
        return os.listdir(self._root)

    def throw(self, path: str) -> None:
        """Moves a folder away; one that is not there is no error. What is mounted in it is let go, never deleted.
        Raises OSError."""
        if not os.path.lexists(path):
            return
        unmount_below(path)
        with self._lock:
            self._numbers += 1
            aside = f"{self._root}/{os.getpid()}-{self._numbers}"
            while os.path.lexists(aside):
                aside += "x"
            os.rename(path, aside)
        self._queue.put(aside)

    def _run(self) -> None:
        while True:
            path = self._queue.get()
            try:
                unmount_below(path)
                gone = delete_tree(path)
            except OSError as fault:
                log.warning("%s: %s", path, fault)
                continue
            if not gone:
                log.warning("%s could not be deleted wholly; the next start of the agent tries again", path)
