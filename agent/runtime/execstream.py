"""The agent's ends of a process that runs inside a container: port.ExecStream over pipes or a terminal."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import signal
import struct
import termios
from collections.abc import Callable

from shoal.agent.runtime import wire
from shoal.agent.runtime.port import RuntimeGone

READ_SIZE = 64 * 1024  # bytes
END_OF_TRANSMISSION = b"\x04"  # what a terminal's reader takes as the end of input


class PipeStream:
    """`fds` are ours by name: terminal, or stdin (if wanted), stdout and stderr; status and pidfd always."""

    def __init__(self, fds: dict[str, int]) -> None:
        self._fds = fds
        self._code: int | None = None
        self._reading = {name: fd for name, fd in fds.items() if name in ("terminal", "stdout", "stderr")}
        for name, fd in fds.items():
            if name != "pidfd":
                os.set_blocking(fd, False)

    async def write(self, data: bytes) -> None:
        """Waits until the process has room. Data for a process that does not read any more is dropped."""
        fd = self._fds.get("terminal", self._fds.get("stdin", -1))
        view = memoryview(data)
        while view and fd >= 0:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                await _ready([], [fd])
            except OSError as fault:
                if fault.errno in (errno.EPIPE, errno.EIO):
                    return
                raise

    async def close_input(self) -> None:
        if "terminal" in self._fds:
            await self.write(END_OF_TRANSMISSION)
        elif "stdin" in self._fds:
            os.close(self._fds.pop("stdin"))

    async def read(self) -> tuple[str, bytes]:
        """A background child that holds the pipes open does not hold up the end: that comes with the process."""
        while self._reading:
            name = self._readable()
            if name is None:
                if self._has_ended() and self._readable() is None:
                    break
                await _ready([*self._reading.values(), self._fds["pidfd"]], [])
                continue
            data = self._take(self._reading[name])
            if data is None:
                continue
            if data:
                return ("stdout" if name == "terminal" else name), data
            del self._reading[name]
        return "end", b""

    def _readable(self) -> str | None:
        poller = select.poll()
        for fd in self._reading.values():
            poller.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(0)}
        return next((name for name, fd in self._reading.items() if fd in ready), None)

    def _has_ended(self) -> bool:
        poller = select.poll()
        poller.register(self._fds["pidfd"], select.POLLIN)
        return bool(poller.poll(0))

    def _take(self, fd: int) -> bytes | None:
        try:
            return os.read(fd, READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as fault:
            if fault.errno == errno.EIO:  # a terminal whose last user has gone
                return b""
            raise

    async def resize(self, rows: int, columns: int) -> None:
        if "terminal" in self._fds:
            fcntl.ioctl(self._fds["terminal"], termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def wait(self) -> int:
        """Raises RuntimeGone when the code was lost with the helpers that could have known it."""
        fd = self._fds["status"]
        text = b""
        while self._code is None:
            try:
                piece = os.read(fd, 64)
            except BlockingIOError:
                await _ready([fd], [])
                continue
            text += piece
            if not piece:
                raise RuntimeGone("the exit code of the command is lost: its supervisor ended")
            if text.endswith(b"\n"):
                self._code = int(text)
        return self._code

    async def close(self) -> None:
        if "pidfd" in self._fds:
            try:
                signal.pidfd_send_signal(self._fds["pidfd"], signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._reading = {}
        wire.close_all(list(self._fds.values()))
        self._fds = {}


class AttachStream(PipeStream):
    """A container's own streams: nothing ends with them. The exit code on `status` comes when all has been written."""

    def __init__(self, fds: dict[str, int]) -> None:
        super().__init__({**fds, "pidfd": os.dup(fds["status"])})

    async def close_input(self) -> None:
        if "control" in self._fds and "stdin" in self._fds:
            await self.write(END_OF_TRANSMISSION)
        else:
            await super().close_input()

    async def resize(self, rows: int, columns: int) -> None:
        if "control" in self._fds:
            fcntl.ioctl(self._fds["control"], termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def close(self) -> None:
        self._reading = {}
        wire.close_all(list(self._fds.values()))
        self._fds = {}


async def _ready(readers: list[int], writers: list[int]) -> None:
    """Waits until one of the descriptors can be read or written."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def done() -> None:
        if not future.done():
            future.set_result(None)

    undo: list[Callable[[], object]] = []
    try:
        for fd in readers:
            loop.add_reader(fd, done)
            undo.append(lambda fd=fd: loop.remove_reader(fd))  # type: ignore[misc]
        for fd in writers:
            loop.add_writer(fd, done)
            undo.append(lambda fd=fd: loop.remove_writer(fd))  # type: ignore[misc]
        await future
    finally:
        for call in undo:
            call()
