"""What the API and the dispatcher need of others, as protocols: the store's reads, leadership, streams of frames."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from typing import Protocol

from shoal.master.model import Object, Record, View
from shoal.master.stores import StoreFace
from shoal.proto.v1 import session_pb2 as s

Predicate = Callable[[Object], bool]


class Page(Protocol):
    """One page of a list, of one revision."""

    @property
    def records(self) -> Sequence[Record]: ...
    @property
    def revision(self) -> int: ...
    @property
    def continue_token(self) -> str: ...
    @property
    def remaining(self) -> int: ...


class Seen(Protocol):
    """One event as a watcher with a selector sees it; a deleted object's record is its last state."""

    @property
    def type(self) -> str: ...
    @property
    def record(self) -> Record: ...


class Batch(Protocol):
    """Whole revisions; without events a bookmark."""

    @property
    def revision(self) -> int: ...
    @property
    def events(self) -> Sequence[Seen]: ...


class ReadFace(Protocol):
    """The store's reading side; followers have it too."""

    @property
    def view(self) -> View: ...
    def list_page(
        self, kind: str, namespace: str | None, predicate: Predicate | None, limit: int, continue_token: str
    ) -> Page: ...
    def watch(
        self, kinds: Collection[str] | None, from_revision: int, predicate: Predicate | None
    ) -> AsyncGenerator[Batch, None]: ...
    async def readable(self, min_revision: int = 0) -> None:
        """Returns when the view may be answered from. Raises Unavailable, NotLeader, Expired."""
        ...


class ApiStore(StoreFace, ReadFace, Protocol):
    """What the API needs of the store."""

    @property
    def view(self) -> View: ...


class Authority(Protocol):
    """Leadership as far as the dispatcher cares: its epoch, and whether it still holds by our own clock."""

    @property
    def epoch(self) -> int: ...
    def valid(self) -> bool: ...


class Stream(Protocol):
    """The master's end of one agent's Session. After close() or the peer's end, receive() gives None and send()
    raises StreamClosed."""

    async def send(self, message: s.Down) -> None: ...
    async def receive(self) -> s.Up | None: ...
    def close(self) -> None: ...


class TunnelStream(Protocol):
    """The master's end of one Tunnel call; the same rules as Stream."""

    async def send(self, frame: s.TunnelFrame) -> None: ...
    async def receive(self) -> s.TunnelFrame | None: ...
    def close(self) -> None: ...


class StreamClosed(Exception):
    """The other side is gone; nothing more can be sent."""
