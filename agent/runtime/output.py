"""A container's stdout and stderr: the pipes, and their way into its log. Used by the supervisor, on its Poller."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from shoal.agent.runtime import logs, wire

READ_SIZE = 256 * 1024  # bytes read from a pipe at once
PIPE_SIZE = 256 * 1024  # bytes that a container can be ahead of its log
DRAIN_LIMIT = 64 * 1024 * 1024  # bytes read from an ended container's pipe: someone outside may still write
FLUSH_SECONDS = 0.2  # a line without end is written as a piece after this silence
LOG_BYTES, LOG_FILES = 10 * 1024 * 1024, 5  # where the spec says nothing
STREAMS = ("stdout", "stderr")


@dataclass(slots=True)
class Stream:
    """One pipe. The write end is ours too: so its read end never ends, and the container may open it again."""

    stamper: logs.Stamper
    read: int
    write: int


class Output:
    """Both streams and the log of one run."""

    def __init__(self, poller: wire.Poller, spec: wire.Message) -> None:
        path = str(spec.get("log_path") or "")
        self._log = logs.LogFile(path, spec.get("log_max_bytes", LOG_BYTES), spec.get("log_max_files", LOG_FILES))
        self._poller = poller
        self._streams: dict[str, Stream] = {}

    def make(self) -> None:
        """Makes both pipes."""
        for name in STREAMS:
            read, write = os.pipe2(os.O_CLOEXEC)
            self._streams[name] = Stream(logs.Stamper(name), read, write)
            os.set_blocking(read, False)
            try:
                fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            except OSError:
                pass  # over the user's share of pipe memory: the default size does

    def adopt(self, fds: Mapping[str, int], pid: int, pipes: Mapping[str, str]) -> None:
        """Takes each pipe from the duplicates, else through the descriptor of process `pid` if it is still that pipe
        (`pipes`: what identities() said of it)."""
        for name in STREAMS:
            ends = [fds[f"{name}_read"], fds[f"{name}_write"]] if f"{name}_read" in fds else []
            ends = ends or reopen(f"/proc/{pid}/fd/{STREAMS.index(name) + 1}", pipes.get(name, "none"))
            if ends:
                self._streams[name] = Stream(logs.Stamper(name), *ends)

    def write_end(self, name: str) -> int:
        return self._streams[name].write

    def descriptors(self) -> dict[str, int]:
        """All ends by name, as `adopt` takes them."""
        return {
            f"{name}_{end}": getattr(pipe, end) for name, pipe in self._streams.items() for end in ("read", "write")
        }

    def identities(self) -> dict[str, str]:
        """What the kernel calls each pipe: pipe:[inode]."""
        return {name: os.readlink(f"/proc/self/fd/{pipe.read}") for name, pipe in self._streams.items()}

    def watch(self) -> None:
        """Begins to move what comes into the log."""
        for pipe in self._streams.values():
            self._poller.watch(pipe.read, partial(self._move, pipe))

    def _move(self, pipe: Stream) -> None:
        self._take(pipe)

    def _take(self, pipe: Stream) -> int:
        """Reads one piece into the log; the number of bytes."""
        try:
            data = os.read(pipe.read, READ_SIZE)
        except BlockingIOError:
            return 0
        stamp = logs.rfc3339_nano(time.time_ns())
        self._log.append(pipe.stamper.feed(data, stamp), stamp)
        if pipe.stamper.pending:
            self._poller.after(FLUSH_SECONDS, ("flush", pipe.read), partial(self._flush, pipe))
        else:
            self._poller.cancel(("flush", pipe.read))
        return len(data)

    def _flush(self, pipe: Stream, *, final: bool = False) -> None:
        stamp = logs.rfc3339_nano(time.time_ns())
        self._log.append(pipe.stamper.flush(stamp, final=final), stamp)

    def finish(self) -> None:
        """After the container's end: all that its pipes still hold goes into the log, and the log is closed."""
        for pipe in self._streams.values():
            left = DRAIN_LIMIT
            while left > 0 and (count := self._take(pipe)):
                left -= count
            self._flush(pipe, final=True)
        self._log.finish(logs.rfc3339_nano(time.time_ns()))
        self._unwatch()

    def _unwatch(self) -> None:
        for pipe in self._streams.values():
            self._poller.forget(pipe.read)
            self._poller.cancel(("flush", pipe.read))

    def close(self) -> None:
        """Closes the pipes."""
        self._unwatch()
        wire.close_all(list(self.descriptors().values()))
        self._streams = {}


def reopen(path: str, pipe: str) -> list[int]:
    """Read and write end of a pipe through /proc/<pid>/fd, if it is `pipe` (pipe:[inode]); else nothing."""
    opened: list[int] = []
    try:
        if os.readlink(path) != pipe:
            return []
        opened.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        # The container may have put something else there meanwhile.
        if all(os.readlink(f"/proc/self/fd/{fd}") == pipe for fd in opened):
            return opened
    except OSError:
        pass
    wire.close_all(opened)
    return []
