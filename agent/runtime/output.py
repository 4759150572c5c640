"""A container's stdin, stdout and stderr: pipes or a terminal, and their way into its log and to those who listen.

Used by the supervisor, on its Poller. A terminal's output comes as "stdout"; its two ends take the place of a pipe's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from shoal.agent.runtime import logs, wire
from shoal.agent.runtime.init import TIOCGPTPEER
from shoal.agent.runtime.listeners import Listeners

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
        self._stdin = -1  # the write end of the container's stdin
        self.terminal = bool(spec.get("tty"))
        self.stdin, self.stdin_once = bool(spec.get("stdin")), bool(spec.get("stdin_once"))
        self.listeners = Listeners(poller)

    def make(self) -> list[int]:
        """Makes the ends; gives the container's three, of which the first is the caller's to close."""
        if self.terminal:
            master, slave = os.openpty()  # until the container has one of its own
            self._use(master, slave)
            return [os.dup(slave), slave, slave]
        if self.stdin:
            theirs, self._stdin = os.pipe2(os.O_CLOEXEC)
        else:
            theirs = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for name in STREAMS:
            read, write = os.pipe2(os.O_CLOEXEC)
            self._streams[name] = Stream(logs.Stamper(name), read, write)
            os.set_blocking(read, False)
            try:
                fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            except OSError:
                pass  # over the user's share of pipe memory: the default size does
        return [theirs, *(self._streams[name].write for name in STREAMS)]

    def use_terminal(self, master: int) -> None:
        """Takes the terminal that the container has made; it is ours to close from now on."""
        if master >= 0:
            wire.close_all(list(self.descriptors().values()))
            self._use(master, fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))

    def _use(self, master: int, slave: int) -> None:
        os.set_blocking(master, False)
        self._streams = {"stdout": Stream(logs.Stamper("stdout"), master, slave)}

    def adopt(self, fds: Mapping[str, int], pid: int, pipes: Mapping[str, str]) -> None:
        """Takes each pipe from the duplicates, else through the descriptor of process `pid` if it is still that pipe
        (`pipes`: what identities() said of it)."""
        for name in STREAMS:
            ends = [fds[f"{name}_read"], fds[f"{name}_write"]] if f"{name}_read" in fds else []
            ends = ends or reopen(f"/proc/{pid}/fd/{STREAMS.index(name) + 1}", pipes.get(name, "none"))
            if ends:
                self._streams[name] = Stream(logs.Stamper(name), *ends)
        self._stdin = fds.get("stdin_write", -1)

    def attach(self, *, stdin: bool) -> dict[str, int]:
        """The ends of one who listens from now on, by name, the caller's to close: stdout, stderr, status; `stdin` if
        wanted; of a terminal also `control`. Raises Refused, OSError."""
        master = self._streams["stdout"].read if self.terminal and "stdout" in self._streams else -1
        source = master if self.terminal else self._stdin
        if stdin and (not self.stdin or source < 0):
            why = "has been closed (stdinOnce)" if self.stdin else "is not open: set stdin: true in its manifest"
            raise wire.Refused(f"the container's stdin {why}; attach without it")
        ends = self.listeners.add(list(self._streams))
        if stdin:
            ends["stdin"] = os.dup(source)
        if master >= 0:
            ends["control"] = os.dup(master)
        if stdin and self.stdin_once and not self.terminal:
            os.close(self._stdin)  # so that the reader's end is the last one
            self._stdin = -1
        return ends

    def descriptors(self) -> dict[str, int]:
        """All ends by name, as `adopt` takes them."""
        ends = {
            f"{name}_{end}": getattr(pipe, end) for name, pipe in self._streams.items() for end in ("read", "write")
        }
        return {**ends, **({"stdin_write": self._stdin} if self._stdin >= 0 else {})}

    def identities(self) -> dict[str, str]:
        """What the kernel calls each pipe: pipe:[inode]."""
        names = {name: os.readlink(f"/proc/self/fd/{pipe.read}") for name, pipe in self._streams.items()}
        return {name: pipe for name, pipe in names.items() if pipe.startswith("pipe:")}

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
        except OSError as fault:
            if fault.errno != errno.EIO:
                raise
            self._poller.forget(pipe.read)  # a terminal whose session has ended
            return 0
        stamp = logs.rfc3339_nano(time.time_ns())
        self._log.append(pipe.stamper.feed(data, stamp), stamp)
        self.listeners.put(pipe.stamper.name, data)
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
        self._streams, self._stdin = {}, -1
        self.listeners.end(None)


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
