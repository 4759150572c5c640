"""Those who listen to a container's streams beside its log."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from shoal.agent.runtime import wire
from shoal.agent.runtime.listeners import Listeners


@pytest.fixture
def poller() -> Iterator[wire.Poller]:
    made = wire.Poller()
    yield made
    made.close()


def drained(fd: int, size: int = 1 << 22) -> bytes:
    os.set_blocking(fd, False)
    seen = b""
    try:
        while part := os.read(fd, size):
            seen += part
    except BlockingIOError:
        pass
    return seen


def test_what_a_slow_reader_lost_is_told_in_its_place(poller: wire.Poller) -> None:
    listeners = Listeners(poller)
    slow, quick = listeners.add(["stdout"]), listeners.add(["stdout"])
    piece, total = b"x" * 65536, 0
    for _ in range(64):  # 4 MiB, more than any pipe
        listeners.put("stdout", piece)
        total += len(drained(quick["stdout"]))
    assert total == 64 * len(piece)
    got = len(drained(slow["stdout"]))
    assert got < total
    listeners.put("stdout", b"again")
    note, _, rest = drained(slow["stdout"]).partition(b"]\r\n")
    assert f"{total - got} bytes are missing".encode() in note
    assert rest == b"again"
    assert drained(quick["stdout"]) == b"again"
    listeners.end(3)
    assert drained(slow["status"]) == b"3\n"
    wire.close_all([*slow.values(), *quick.values()])


def test_a_reader_that_has_gone_is_forgotten(poller: wire.Poller) -> None:
    listeners = Listeners(poller)
    gone, other = listeners.add(["stdout", "stderr"]), listeners.add(["stdout"])
    wire.close_all(list(gone.values()))
    poller.step(1.0)
    listeners.put("stdout", b"hello")
    listeners.put("stderr", b"not for everyone")
    assert drained(other["stdout"]) == b"hello"
    listeners.end(None)
    assert os.read(other["status"], 10) == b""
    wire.close_all(list(other.values()))
