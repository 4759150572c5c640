"""What comes back through a tunnel, written to our own standard output and error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import BinaryIO

from shoal.deploy.cli.failures import FAILED, CommandError
from shoal.deploy.cli.printers.text import lines_of
from shoal.proto.v1 import session_pb2 as s


def copy_out(frames: Iterator[s.TunnelFrame]) -> int:
    """Writes the frames' data until their end; gives the exit code that the end carries. Raises CommandError."""
    for frame in frames:
        kind = frame.WhichOneof("frame")
        if kind == "data":
            _write(sys.stdout.buffer, frame.data)
        elif kind == "stderr":
            _write(sys.stderr.buffer, frame.stderr)
        elif kind == "progress":
            print(lines_of(frame.progress), file=sys.stderr)
        elif kind == "end":
            if frame.end.error:
                raise CommandError(frame.end.error, frame.end.exit_code or FAILED)
            return frame.end.exit_code
    raise CommandError("the stream broke off before its end")


def _write(target: BinaryIO, data: bytes) -> None:
    target.write(data)
    target.flush()
