"""Those who listen to a container's streams beside its log (attach). Used by the supervisor, on its Poller.

Each has pipes of its own. One that reads too slowly loses what does not fit, and reads how much that was; nobody waits
for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from functools import partial

from shoal.agent.runtime import wire

PIPE_SIZE = 1024 * 1024  # bytes that a reader can be behind; less where the user's share of pipe memory is used up
MAX_LISTENERS = 32  # of one container


class Listener:
    """Our ends of one reader's pipes: streams by name, and `status` for the exit code."""

    __slots__ = ("dropped", "fds", "status")

    def __init__(self, fds: dict[str, int], status: int) -> None:
        self.fds = fds
        self.status = status
        self.dropped = dict.fromkeys(fds, 0)

    def put(self, name: str, data: bytes) -> bool:
        """Writes what there is room for. False: the reader has gone."""
        fd = self.fds.get(name, -1)
        try:
            if fd >= 0:
                self._say_dropped(name, fd)
                self.dropped[name] += len(data) - os.write(fd, data)
        except BlockingIOError:
            self.dropped[name] += len(data)
        except OSError as fault:
            return fault.errno != errno.EPIPE
        return True

    def _say_dropped(self, name: str, fd: int) -> None:
        lost = self.dropped[name]
        if lost:
            note = f"\r\n[shoal: {lost} bytes are missing here: this reader was too slow]\r\n".encode()
            os.write(fd, note)  # below PIPE_BUF: whole, or BlockingIOError
            self.dropped[name] = 0

    def close(self) -> None:
        wire.close_all([*self.fds.values(), self.status])


class Listeners:
    """All of one container."""

    def __init__(self, poller: wire.Poller) -> None:
        self._poller = poller
        self._all: list[Listener] = []

    def add(self, names: Sequence[str]) -> dict[str, int]:
        """A new one; the reader's ends by name, with `status`. They are the caller's to close. Raises OSError."""
        if len(self._all) >= MAX_LISTENERS:
            raise wire.Refused(f"{MAX_LISTENERS} are attached to this container already; end one of them")
        theirs: dict[str, int] = {}
        ours: dict[str, int] = {}
        try:
            for name in (*names, "status"):
                theirs[name], ours[name] = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(ours[name], False)
                if name != "status":
                    _enlarge(ours[name])
        except OSError:
            wire.close_all([*theirs.values(), *ours.values()])
            raise
        listener = Listener({name: ours[name] for name in names}, ours["status"])
        self._all.append(listener)
        self._poller.watch(listener.status, partial(self._remove, listener))  # its reader has gone
        return theirs

    def put(self, name: str, data: bytes) -> None:
        for listener in list(self._all):
            if not listener.put(name, data):
                self._remove(listener)

    def _remove(self, listener: Listener) -> None:
        if listener in self._all:
            self._all.remove(listener)
            self._poller.forget(listener.status)
            listener.close()

    def end(self, code: int | None) -> None:
        """Tells the exit code, if it is known, and closes all."""
        for listener in list(self._all):
            if code is not None:
                try:
                    os.write(listener.status, f"{code}\n".encode())
                except OSError:
                    pass  # gone meanwhile
            self._remove(listener)


def _enlarge(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        pass
