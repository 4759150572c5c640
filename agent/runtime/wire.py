"""What agent, spawner and supervisors say to each other, over unix SEQPACKET sockets.

    agent ── <run>/spawner.sock ──▶ spawner ── <run>/pods/<uid>.sock ──▶ supervisor (one per pod)

One packet is one JSON object; descriptors travel beside it (SCM_RIGHTS). A message over MAX_PACKET goes into a sealed
memfd, the packet says {"memfd": bytes} and the memfd is the first descriptor. Every packet carries its sender's
SO_PEERCRED; both listeners refuse other users.

    request   {"id": n, "op": ..., ...}       agent -> spawner, relayed to the pod's supervisor when it has a "pod"
    answer    {"id": n, "ok": {...}}          with exec and attach also descriptors, named by "fds"
              {"id": n, "error": {"kind": "start" | "gone" | "fault", "reason", "message", "exit_code"}}
    event     {"event": "started" | "exited", "run": [pod, name, attempt], ...}   to agents that sent "subscribe"

Operations of the spawner: ping, subscribe, ready (answers once every supervisor has read its pod's records), pods,
ensure_sandbox, remove_sandbox; relayed: ensure_sandbox, remove_sandbox, start, signal, remove, exec, attach, probe
(answers when its command has ended, or after its time-out).
Between spawner and supervisor besides: {"op": "adopt"} asks for all duplicates, each sent as {"event": "keep", "key",
"fds": [names], ...} with its descriptors; {"event": "drop", "key"} ends one; {"event": "ready"} says that the records
have been read; {"op": "reaped", "pid", "status", "at"} tells of a container that had fallen to the spawner.
"""

from __future__ import annotations

import array
import errno
import json
import os
import re
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_PACKET = 64 * 1024  # bytes of one packet; more goes through a memfd
MAX_MESSAGE = 64 * 1024 * 1024  # bytes of one message
MAX_DESCRIPTORS = 16  # in one packet
MAX_QUEUED = 4096  # messages that wait for a slow reader; then its connection is cut
BACKLOG = 64
ID_PATTERN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")
_UCRED = struct.Struct("=iII")

Message = dict[str, Any]


class WireError(Exception):
    """The other side broke the protocol; its connection is of no more use."""


class Refused(WireError):
    """The request cannot be done; the message says why."""


class Closed(WireError):
    """The other side has closed the connection."""


@dataclass(slots=True)
class Kept:
    """Duplicates that outlive their owner, held by the spawner. `facts` travel with them."""

    key: str
    fds: dict[str, int] = field(default_factory=dict)
    facts: Message = field(default_factory=dict)

    def close(self) -> None:
        close_all(list(self.fds.values()))
        self.fds = {}


def checked_name(value: object, what: str) -> str:
    """`value` when it can be a file name and nothing more. Raises WireError."""
    if isinstance(value, str) and ID_PATTERN.match(value):
        return value
    raise WireError(f"{what} {value!r} is not a name: letters, digits, '.', '_' and '-', at most 253")


def checked_run(value: object) -> tuple[str, str, int]:
    """(pod, container, attempt) from a message's list. Raises WireError."""
    if not isinstance(value, list | tuple) or len(value) != 3 or not isinstance(value[2], int) or value[2] < 0:
        raise WireError(f"{value!r} does not name a run: [pod uid, container, attempt]")
    return checked_name(value[0], "pod uid"), checked_name(value[1], "container"), value[2]


def _in_folder(path: str, use: Callable[[str], None]) -> None:
    """Calls `use` with a short name of `path`: socket addresses are limited to 107 bytes."""
    folder, name = os.path.split(path)
    fd = os.open(folder or ".", os.O_PATH | os.O_CLOEXEC)
    try:
        use(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def listen(path: str) -> socket.socket:
    """A non-blocking listener at `path` (0600), in place of a dead one's. The caller holds the lock of that place."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    mask = os.umask(0o177)
    try:
        _in_folder(path, sock.bind)
    finally:
        os.umask(mask)
    sock.listen(BACKLOG)
    return sock


def connect(path: str) -> socket.socket:
    """A non-blocking connection to `path`. Raises OSError (ENOENT, ECONNREFUSED, EAGAIN: backlog full)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        _in_folder(path, sock.connect)
    except BaseException:
        sock.close()
        raise
    return sock


def peer(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end, as the kernel tells them."""
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def accept(listener: socket.socket) -> socket.socket | None:
    """The next connection, or None: nobody is there, or its user is not ours."""
    try:
        sock, _ = listener.accept()
    except OSError:
        return None
    if peer(sock)[1] != os.geteuid():
        sock.close()
        return None
    sock.setblocking(False)
    return sock


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Sends one message. Raises BlockingIOError when the reader is slow, OSError when it is gone."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) <= MAX_PACKET:
        _sendmsg(sock, data, fds)
        return
    if len(data) > MAX_MESSAGE:
        raise WireError(f"a message of {len(data)} bytes is over the limit of {MAX_MESSAGE}")
    memfd = os.memfd_create("shoal-message", os.MFD_CLOEXEC)
    try:
        os.truncate(memfd, len(data))
        view = memoryview(data)
        while view:
            view = view[os.write(memfd, view) :]
        _sendmsg(sock, json.dumps({"memfd": len(data)}).encode(), [memfd, *fds])
    finally:
        os.close(memfd)


def _sendmsg(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[Message, list[int]]:
    """One message and its descriptors, which are the caller's to close.

    Raises BlockingIOError (nothing there), Closed, or WireError (not a message, too large, descriptors cut off).
    """
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    try:
        data, ancillary, flags, _ = sock.recvmsg(MAX_PACKET, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError as fault:
        raise Closed(str(fault)) from fault
    fds = array.array("i")
    for level, kind, piece in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(piece[: len(piece) - len(piece) % fds.itemsize])
    held = list(fds)
    try:
        if not data:
            raise Closed("the other side closed the connection")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise WireError("a packet was larger than the protocol allows")
        return _decode(data, held), held
    except BaseException:
        close_all(held)
        raise


def _decode(data: bytes, fds: list[int]) -> Message:
    try:
        message = json.loads(data)
        if isinstance(message, dict) and set(message) == {"memfd"}:
            message = json.loads(_from_memfd(fds, message["memfd"]))
    except ValueError as fault:
        raise WireError(f"a packet is not JSON: {fault}") from fault
    if not isinstance(message, dict):
        raise WireError("a packet is not a JSON object")
    return message


def _from_memfd(fds: list[int], size: object) -> bytes:
    if not fds or not isinstance(size, int) or not 0 < size <= MAX_MESSAGE:
        raise WireError(f"a message of {size!r} bytes by memfd is refused (limit {MAX_MESSAGE})")
    with os.fdopen(fds.pop(0), "rb", buffering=0) as memfd:
        pieces, offset = [], 0
        while offset < size:
            piece = os.pread(memfd.fileno(), size - offset, offset)
            if not piece:
                raise WireError("a memfd is shorter than its message says")
            pieces.append(piece)
            offset += len(piece)
    return b"".join(pieces)


def close_all(fds: Sequence[int]) -> None:
    """Closes raw descriptors; one that is already closed is no error."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError as fault:
            if fault.errno != errno.EBADF:
                raise


class Poller:
    """A single-threaded loop of descriptors and timers, for programs that may load nothing but the standard library."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: dict[object, tuple[float, Callable[[], None]]] = {}
        self.running = True

    def watch(self, fd: int, on_ready: Callable[[], None], *, write: bool = False) -> None:
        """Calls `on_ready` whenever `fd` can be read (with `write`: or written); replaces an earlier watch."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if write else 0)
        if fd in self._selector.get_map():
            self._selector.modify(fd, events, on_ready)
        else:
            self._selector.register(fd, events, on_ready)

    def forget(self, fd: int) -> None:
        """Ends a watch; to be called before the descriptor is closed."""
        try:
            self._selector.unregister(fd)
        except (KeyError, ValueError):
            pass

    def after(self, seconds: float, key: object, call: Callable[[], None]) -> None:
        """Calls once, after `seconds`; the same key again replaces the call."""
        self._timers[key] = (time.monotonic() + seconds, call)

    def cancel(self, key: object) -> None:
        self._timers.pop(key, None)

    def run(self) -> None:
        """Runs until `running` is False."""
        while self.running:
            self.step()

    def step(self, longest: float | None = None) -> None:
        """Waits for the next thing that happens (at most `longest` seconds) and handles it."""
        now = time.monotonic()
        wait = min((at - now for at, _ in self._timers.values()), default=None)
        if longest is not None:
            wait = longest if wait is None else min(wait, longest)
        for key, _ in self._selector.select(None if wait is None else max(wait, 0)):
            if key.fd in self._selector.get_map():  # an earlier call of this round may have ended it
                key.data()
        now = time.monotonic()
        for name, (at, call) in list(self._timers.items()):
            if at <= now and self._timers.get(name) == (at, call):
                del self._timers[name]
                call()

    def close(self) -> None:
        self._selector.close()
        self._timers.clear()


class Channel:
    """One connection on a Poller: sends in order without ever blocking, hands each message to `on_message`."""

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        on_message: Callable[[Channel, Message, list[int]], None],
        on_close: Callable[[Channel], None],
    ) -> None:
        self.sock, self.open = sock, True
        self._poller, self._on_message, self._on_close = poller, on_message, on_close
        self._queue: deque[tuple[Message, list[int]]] = deque()
        poller.watch(sock.fileno(), self._ready)

    @property
    def backlog(self) -> bool:
        """Whether messages wait for the reader."""
        return bool(self._queue)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Sends now or queues (with duplicates of `fds`); a reader that is too slow is cut off."""
        if not self.open or (not self._queue and self._try(message, fds)):
            return
        if not self._is_open():
            return
        if len(self._queue) >= MAX_QUEUED:
            self.close()
            return
        self._queue.append((message, [os.dup(fd) for fd in fds]))
        self._poller.watch(self.sock.fileno(), self._ready, write=True)

    def _is_open(self) -> bool:
        return self.open

    def _try(self, message: Message, fds: Sequence[int]) -> bool:
        try:
            send(self.sock, message, fds)
        except BlockingIOError:
            return False
        except OSError as fault:
            if fault.errno in (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS):
                return False
            self.close()
            return False
        return True

    def _ready(self) -> None:
        while self._queue and self.open:
            message, fds = self._queue[0]
            if not self._try(message, fds):
                break
            self._queue.popleft()
            close_all(fds)
            if not self._queue:
                self._poller.watch(self.sock.fileno(), self._ready)
        while self.open:
            try:
                message, fds = receive(self.sock)
            except BlockingIOError:
                return
            except (WireError, OSError):
                self.close()
                return
            self._on_message(self, message, fds)

    def close(self) -> None:
        """Closes the connection and tells the owner, once."""
        if not self.open:
            return
        self.open = False
        self._poller.forget(self.sock.fileno())
        self.sock.close()
        for _, fds in self._queue:
            close_all(fds)
        self._queue.clear()
        self._on_close(self)

    def abandon(self) -> None:
        """After a fork: forgets the socket without closing it, so that a later owner of its number is safe."""
        self.open = False
        self.sock.detach()
        self._queue.clear()
