"""Our end of a command in a container: standard input as frames, and our terminal lent to it for `exec -t`."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from shoal.deploy.cli.client import FRAME_BYTES
from shoal.proto.v1 import session_pb2 as s


class Input:
    """Standard input (when `reading`) and the window's size (when `terminal`), read by the call's own thread."""

    def __init__(self, *, reading: bool, terminal: bool) -> None:
        self._stdin = sys.stdin.fileno() if reading else None
        self._terminal = terminal
        self._woken, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def resized(self) -> None:
        """The window has another size now; from a signal handler."""
        try:
            os.write(self._waker, b"r")
        except BlockingIOError:
            pass  # it will be looked at anyway

    def frames(self) -> Iterator[s.TunnelFrame]:
        """Frames as they come, up to the end of the input; a terminal's size goes first."""
        if self._terminal:
            yield s.TunnelFrame(resize=_size())
        watched = [self._woken, *([] if self._stdin is None else [self._stdin])]
        while self._terminal or self._stdin is not None:
            ready, _, _ = select.select(watched, [], [])
            if self._woken in ready:
                os.read(self._woken, FRAME_BYTES)
                yield s.TunnelFrame(resize=_size())
            if self._stdin in ready:
                data = os.read(self._stdin, FRAME_BYTES)
                if not data:
                    break
                yield s.TunnelFrame(data=data)
        yield s.TunnelFrame(close_input=True)


def _size() -> s.TerminalSize:
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except OSError:  # our output goes to a file: the other end needs some size
        return s.TerminalSize(rows=24, columns=80)
    return s.TerminalSize(rows=size.lines, columns=size.columns)


@contextmanager
def lent(source: Input, *, raw: bool) -> Iterator[None]:
    """Tells of new window sizes; `raw`: our terminal passes every key on, Ctrl-C too, and is as before afterwards."""
    before = termios.tcgetattr(sys.stdin.fileno()) if raw else None
    earlier = signal.signal(signal.SIGWINCH, lambda _number, _frame: source.resized())
    try:
        if raw:
            tty.setraw(sys.stdin.fileno())
        yield
    finally:
        if before is not None:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, earlier)
