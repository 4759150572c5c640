"""One agent's session, seen from the master: what it has still to hear, and the loops that send and receive.

Nothing is queued per change: the session holds a set of dirty uids and builds the next increment when the last write
has finished. Acknowledgements keep only their newest value.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from shoal.master.dispatcher import assignments
from shoal.master.dispatcher.acks import Acks
from shoal.master.dispatcher.table import Table
from shoal.master.model import Key, View
from shoal.master.ports import Authority, Stream, StreamClosed
from shoal.proto.references import VOLUME
from shoal.proto.v1 import session_pb2 as s

UNWRITTEN_REPORTS = 16  # status reports of one session in flight to etcd; then its stream is not read


class Feed(Protocol):
    """What a session needs of its dispatcher."""

    @property
    def view(self) -> View: ...
    @property
    def table(self) -> Table: ...
    @property
    def fed(self) -> int: ...
    @property
    def authority(self) -> Authority: ...
    @property
    def acks(self) -> Acks: ...
    def heard(self, session: Session, message: s.Up) -> None: ...
    def held_back(self) -> None: ...
    def nodes_told(self, session: Session) -> None: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end: the node, and which copy of it."""

    node: str
    instance: str
    boot: str
    address: str = ""

    def same_machine(self, other: Peer) -> bool:
        return (self.instance, self.boot) == (other.instance, other.boot)


class Session:
    """Owned by the dispatcher; every method runs in its loop."""

    def __init__(
        self, stream: Stream, peer: Peer, session_id: str, feed: Feed, over: Collection[str] = frozenset()
    ) -> None:
        """`over`: pods that have ended and of which the agent holds nothing any more; it is not told of them, as it
        would run them again."""
        self.peer = peer
        self.id = session_id
        self.over = over
        self.dirty = assignments.Dirty()
        self.volumes: set[Key] = set()  # that the agent has been told of, or is about to be
        self.table_at = 0  # how far the agent knows the node table
        self.last_sequence = (0, 0)  # of the newest report that was taken
        self.closed = asyncio.Event()
        self._stream = stream
        self._feed = feed
        self._wake = asyncio.Event()
        self._opens: deque[s.Open] = deque()
        self._status_ack: s.Sequence | None = None
        self._ack_due = self._ack_held = False
        self._heartbeat_ack: int | None = None
        self._parts: deque[s.Assignments] = deque()
        self._complete_due = True
        self._nodes_due = self._telling_nodes = False
        self._position = s.Position()
        self._unwritten = 0
        self._room = asyncio.Event()
        self._room.set()

    # ---- told by the dispatcher ----
    def wake(self) -> None:
        self._wake.set()

    def open(self, request: s.Open) -> None:
        self._opens.append(request)
        self._wake.set()

    def ack_heartbeat(self, number: int) -> None:
        self._heartbeat_ack = number
        self._wake.set()

    def taken(self) -> None:
        """A report went to the writer."""
        self._unwritten += 1
        if self._unwritten >= UNWRITTEN_REPORTS:
            self._room.clear()

    def written(self, sequence: s.Sequence | None) -> None:
        """A report has been dealt with; `sequence` is acknowledged once everything before it is in etcd."""
        self._unwritten -= 1
        self._room.set()
        if sequence is not None:
            self.ack_status(sequence)

    def ack_status(self, sequence: s.Sequence) -> None:
        """Goes with the next message, or alone after a while."""
        self._status_ack = s.Sequence(agent_start=sequence.agent_start, counter=sequence.counter)
        if not self._ack_held:
            self._ack_held = self._feed.acks.hold_back(self)
        if not self._ack_held:
            self._ack_due = True
            self._wake.set()

    def ack_now(self) -> None:
        self._ack_held = False
        self._ack_due = self._status_ack is not None
        if self._ack_due:
            self._wake.set()

    def tell_nodes(self) -> None:
        """There is news of the node table; nodes_told says when it has gone out."""
        self._nodes_due = self._telling_nodes = True
        self._wake.set()

    def request_complete(self) -> None:
        """The agent saw a gap: everything anew, whatever is under way."""
        self._complete_due = True
        self._parts.clear()
        self._wake.set()

    def close(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            self._stream.close()
            self._wake.set()
            self._room.set()

    # ---- the loops ----
    async def run(self, welcome: s.Welcome) -> None:
        """Until the stream ends or the session is closed."""
        try:
            await self._stream.send(s.Down(welcome=welcome))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send_loop())
                group.create_task(self._receive_loop())
        except* StreamClosed:
            pass
        finally:
            self.close()

    async def _receive_loop(self) -> None:
        while not self.closed.is_set():
            await self._room.wait()
            if not await self._receive_one():
                break
        self.close()

    async def _receive_one(self) -> bool:
        """In a function of its own: nothing of the last message is kept while the next one is waited for."""
        message = await self._stream.receive()
        if message is not None and not self.closed.is_set():
            self._feed.heard(self, message)
        return message is not None

    async def _send_loop(self) -> None:
        self._wake.set()
        while not self.closed.is_set():
            await self._wake.wait()
            self._wake.clear()
            while not self.closed.is_set() and (message := self._next()) is not None:
                await self._stream.send(message)
                if self._telling_nodes and not self._nodes_due:
                    self._telling_nodes = False
                    self._feed.nodes_told(self)

    def _next(self) -> s.Down | None:
        """The next message, the small ones first."""
        acknowledged = self._status_ack
        if self._ack_due:
            self._status_ack, self._ack_due = None, False
            return s.Down(status_ack=s.StatusAck(sequence=acknowledged))
        down = self._next_news()
        if down is not None and acknowledged is not None:
            self._status_ack = None
            down.acknowledged.sequence.CopyFrom(acknowledged)
        return down

    def _next_news(self) -> s.Down | None:
        if self._heartbeat_ack is not None:
            number, self._heartbeat_ack = self._heartbeat_ack, None
            return s.Down(heartbeat_ack=s.HeartbeatAck(number=number))
        if self._opens:
            return s.Down(open=self._opens.popleft())
        if not self._feed.authority.valid():
            self._feed.held_back()  # somebody else may lead: no orders until that is known
            return None
        return self._next_assignment()

    def _next_assignment(self) -> s.Down | None:
        view, table, fed = self._feed.view, self._feed.table, self._feed.fed
        message = None
        if (self.dirty or self._nodes_due) and not self._complete_due and not self._parts:
            message = self._increment()
            self._complete_due = message is None
        if self._complete_due:
            self._complete_due = self._nodes_due = False
            self.dirty.clear()
            self._position = s.Position(epoch=self._feed.authority.epoch, revision=fed)
            self._parts.extend(assignments.complete(view, table, self.peer.node, self._position, self.over))
            self.table_at = table.changes
            self.volumes.clear()
            self._note_volumes(self._parts)
        if self._parts:
            return s.Down(assignments=self._parts.popleft())
        if message is not None:
            self._position = s.Position()  # a copy: a part of a message would keep all of it in memory
            self._position.CopyFrom(message.results_in)
            self._note_volumes([message])
            return s.Down(assignments=message)
        return None

    def _increment(self) -> s.Assignments | None:
        """None when only a COMPLETE can tell it."""
        news, table = None, self._feed.table
        if self._nodes_due and self.table_at < table.flushed and (news := table.news(self.table_at)) is None:
            return None
        feed = self._feed
        message = assignments.increment(feed.view, self.peer.node, self.dirty, feed.fed, self._position, news)
        if message is not None and self._nodes_due:
            self._nodes_due, self.table_at = False, max(self.table_at, table.flushed)
        return message

    def _note_volumes(self, messages: Iterable[s.Assignments]) -> None:
        for message in messages:
            self.volumes |= {Key(x.kind, "", x.name) for x in message.upsert_objects if x.kind == VOLUME}
            self.volumes -= {Key(x.kind, "", x.name) for x in message.remove_objects if x.kind == VOLUME}
