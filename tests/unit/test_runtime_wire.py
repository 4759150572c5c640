"""The messages between agent, spawner and supervisors: sizes, descriptors, and senders that break the rules."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from shoal.agent.runtime import wire

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (ours, theirs):
        sock.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [1, wire.MAX_PACKET - 100, wire.MAX_PACKET + 1, 3_000_000])
def test_messages_of_any_size_arrive_with_their_descriptors(pair: Pair, size: int) -> None:
    before = open_fds()
    read, write = os.pipe()
    wire.send(pair[0], {"op": "x", "text": "é" * (size // 2)}, [write])
    message, fds = wire.receive(pair[1])
    assert message == {"op": "x", "text": "é" * (size // 2)}
    os.write(fds[0], b"through")
    assert os.read(read, 100) == b"through"
    assert not os.get_inheritable(fds[0])
    wire.close_all([read, write, *fds])
    assert open_fds() == before


@pytest.mark.parametrize(
    "packet", [b"{", b"[1]", b"\xff", b'{"memfd":5}', b'{"memfd":-1}', b'{"memfd":"x"}', b'{"memfd":99999999999}']
)
def test_what_is_no_message_is_refused(pair: Pair, packet: bytes) -> None:
    pair[0].send(packet)
    with pytest.raises(wire.WireError):
        wire.receive(pair[1])


def test_a_memfd_that_lies_about_its_size_is_refused(pair: Pair) -> None:
    before = open_fds()
    memfd = os.memfd_create("short")
    os.write(memfd, b"{}")
    socket.send_fds(pair[0], [b'{"memfd":1000}'], [memfd])
    os.close(memfd)
    with pytest.raises(wire.WireError, match="shorter"):
        wire.receive(pair[1])
    assert open_fds() == before


def test_a_packet_that_is_too_large_is_refused(pair: Pair) -> None:
    pair[0].send(b'{"text":"' + b"x" * wire.MAX_PACKET + b'"}')
    with pytest.raises(wire.WireError, match="larger"):
        wire.receive(pair[1])


def test_too_many_descriptors_are_refused_and_closed(pair: Pair) -> None:
    before = open_fds()
    read, write = os.pipe()
    socket.send_fds(pair[0], [b"{}"], [write] * (wire.MAX_DESCRIPTORS + 8))
    with pytest.raises(wire.WireError, match="larger"):
        wire.receive(pair[1])
    wire.close_all([read, write])
    assert open_fds() == before


def test_the_end_and_nothing_yet_are_told_apart(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        wire.receive(pair[1])
    pair[0].close()
    with pytest.raises(wire.Closed):
        wire.receive(pair[1])


def test_a_slow_reader_never_blocks_the_sender_and_is_cut_off(pair: Pair) -> None:
    poller = wire.Poller()
    closed: list[wire.Channel] = []
    channel = wire.Channel(poller, pair[0], lambda *_: None, closed.append)
    sent = 0
    while channel.open and sent < 3 * wire.MAX_QUEUED:
        channel.send({"number": sent, "text": "x" * 1000})
        sent += 1
    assert closed == [channel]
    assert sent > wire.MAX_QUEUED
    poller.close()


def test_a_slow_reader_gets_everything_in_order(pair: Pair) -> None:
    poller = wire.Poller()
    channel = wire.Channel(poller, pair[0], lambda *_: None, lambda _: None)
    for number in range(1000):
        channel.send({"number": number, "text": "x" * 1000})
    assert channel.backlog
    numbers: list[int] = []
    while len(numbers) < 1000:
        try:
            numbers.append(wire.receive(pair[1])[0]["number"])
        except BlockingIOError:
            poller.step(0.1)
    assert numbers == list(range(1000))
    channel.close()
    poller.close()


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "/etc", "a\0b", "-x", "x" * 300, 5, None, "a\n"])
def test_names_that_could_be_paths_are_refused(name: object) -> None:
    with pytest.raises(wire.WireError, match="is not a name"):
        wire.checked_name(name, "pod uid")


@pytest.mark.parametrize("run", [None, [], ["a", "b"], ["a", "b", -1], ["a", "b", "0"], ["a", "../b", 0]])
def test_runs_are_checked(run: object) -> None:
    with pytest.raises(wire.WireError):
        wire.checked_run(run)


def test_listeners_are_closed_to_others_and_reached_by_long_paths(tmp_path: os.PathLike[str]) -> None:
    folder = os.path.join(tmp_path, *["long-folder-name"] * 8)
    os.makedirs(folder)
    path = os.path.join(folder, "x.sock")
    with wire.listen(path) as listener, wire.connect(path) as sock:
        assert os.stat(path).st_mode & 0o777 == 0o600
        accepted = wire.accept(listener)
        assert accepted is not None
        assert wire.peer(accepted) == (os.getpid(), os.geteuid())
        wire.send(sock, {"op": "ping"})
        assert wire.receive(accepted)[0] == {"op": "ping"}
        accepted.close()


def test_timers_run_in_time_and_can_be_replaced_and_cancelled() -> None:
    poller, calls = wire.Poller(), []
    poller.after(0.0, "a", lambda: calls.append("old"))
    poller.after(0.0, "a", lambda: calls.append("new"))
    poller.after(0.0, "b", lambda: calls.append("b"))
    poller.cancel("b")
    poller.step(1.0)
    assert calls == ["new"]
    poller.close()
