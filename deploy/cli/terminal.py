"""Our end of a command in a container: standard input as frames, and our terminal lent to it for `exec -t`."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty as ttys
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
def lent_to(*, interactive: bool, tty: bool) -> Iterator[Iterator[s.TunnelFrame]]:
    """The frames of our input. A terminal passes every key on, Ctrl-C too, and is as before afterwards."""
    source = Input(reading=interactive, terminal=tty)
    frames = source.frames() if interactive or tty else iter(())
    if not tty:
        yield frames
        return
    with lent(source, raw=interactive and sys.stdin.isatty()):
        yield frames


@contextmanager
def lent(source: Input, *, raw: bool) -> Iterator[None]:
    """Tells of new window sizes. `raw`: our terminal is put back however we end, save by SIGKILL."""
    before = termios.tcgetattr(sys.stdin.fileno()) if raw else None

    def restore() -> None:
        if before is not None:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)

    def end(number: int, _frame: object) -> None:
        restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    handlers = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP) if raw}
    handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda _number, _frame: source.resized())
    try:
        if raw:
            ttys.setraw(sys.stdin.fileno(), termios.TCSADRAIN)  # what was typed ahead is kept
        yield
    finally:
        restore()
        for number, handler in handlers.items():
            signal.signal(number, handler)
