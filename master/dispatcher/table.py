"""The node table, which every agent is told of: made once, shared by all sessions; and who tells them.

With N sessions each new node is N messages. So changes go out in blocks: what has come while the last block went round
is the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from shoal.master.dispatcher.nodes import table_entry
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

NODES_PER_PART = 2000  # an entry has at most some 330 bytes
NODES_PER_BLOCK = 10_000
BLOCKS_KEPT = 16  # a session that is further behind is told everything
STALE_SHARE, STALE_LEAST = 8, 64  # the shared parts are made anew when so many entries (1/8 of all) have changed
AT_ONCE = 64  # sessions that are being told: bounds the memory of what is on its way
REST_FACTOR = 4  # times what a round took: many nodes that come leave time for everything else


@dataclass(frozen=True, slots=True)
class Block:
    """Changes after `after` and up to `upto`, both counts of changes."""

    after: int
    upto: int
    names: tuple[str, ...]
    message: s.Assignments


class Table:
    """Every node's entry. `changes` counts; `flushed` is the count up to which blocks have been made."""

    def __init__(self, found: Iterable[o.Node]) -> None:
        self.changes = self.flushed = 0
        self._entries = {node.metadata.name: table_entry(node) for node in found}
        self._fresh: dict[str, None] = {}  # changed since the last block
        self._blocks: deque[Block] = deque(maxlen=BLOCKS_KEPT)
        self._base: list[s.Assignments] | None = None
        self._since: dict[str, None] = {}  # changed since the base

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, node: o.Node) -> bool:
        """True when its entry is new or another one now."""
        entry = table_entry(node)
        if self._entries.get(entry.name) == entry:
            return False
        self._entries[entry.name] = entry
        self._changed(entry.name)
        return True

    def drop(self, name: str) -> bool:
        if self._entries.pop(name, None) is None:
            return False
        self._base = None  # a COMPLETE cannot say that one is gone
        self._changed(name)
        return True

    def _changed(self, name: str) -> None:
        self.changes += 1
        self._fresh[name] = self._since[name] = None

    def parts(self) -> list[s.Assignments]:
        """The whole table as the first parts of a COMPLETE, by name, later changes last. They are the caller's own."""
        if self._base is None or len(self._since) > max(STALE_LEAST, len(self._entries) // STALE_SHARE):
            ordered = [self._entries[name] for name in sorted(self._entries)]
            starts = range(0, len(ordered), NODES_PER_PART)
            self._base = [s.Assignments(upsert_nodes=ordered[at : at + NODES_PER_PART]) for at in starts]
            self._since.clear()
        parts = []
        for shared in self._base or [s.Assignments()]:
            part = s.Assignments()
            part.CopyFrom(shared)
            parts.append(part)
        parts[-1].upsert_nodes.extend(self._entries[name] for name in self._since)
        return parts

    def flush(self) -> None:
        """Makes a block of what has changed since the last."""
        names = tuple(self._fresh)[:NODES_PER_BLOCK]
        for name in names:
            del self._fresh[name]
        upto = self.changes if not self._fresh else self.flushed + len(names)
        self._blocks.append(Block(self.flushed, upto, names, self._message(names)))
        self.flushed = upto

    @property
    def pending(self) -> bool:
        return bool(self._fresh)

    def news(self, after: int) -> s.Assignments | None:
        """What blocks tell of the changes after this count; None when that is too long ago. Nobody changes it."""
        wanted = [block for block in self._blocks if block.upto > after]
        if not wanted or wanted[0].after > after:
            return None
        if len(wanted) == 1:
            return wanted[0].message
        return self._message(dict.fromkeys(name for block in wanted for name in block.names))

    def _message(self, names: Iterable[str]) -> s.Assignments:
        message = s.Assignments()
        for name in names:
            entry = self._entries.get(name)
            if entry is not None:
                message.upsert_nodes.append(entry)
            else:
                message.remove_nodes.append(name)
        return message


class Listener(Protocol):
    """A session, as the spreader sees it."""

    table_at: int  # the count of changes that its agent knows

    def tell_nodes(self) -> None:
        """The next message is to bring the news; Spreader.told follows when it is written, or the session is over."""


class Spreader:
    """Carries changes of the table to all sessions, one round at a time."""

    def __init__(self, table: Table, sessions: Callable[[], Collection[Listener]], clock: Callable[[], float]) -> None:
        self._table = table
        self._sessions = sessions
        self._clock = clock
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._telling: set[Listener] = set()

    def changed(self) -> None:
        self._news.set()

    def told(self, session: Listener) -> None:
        self._telling.discard(session)
        self._room.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            started = self._clock()
            self._table.flush()
            for session in list(self._sessions()):
                await self._tell(session)
            if self._table.pending:
                self._news.set()
            await asyncio.sleep(REST_FACTOR * (self._clock() - started))

    async def _tell(self, session: Listener) -> None:
        while len(self._telling) >= AT_ONCE:
            self._room.clear()
            await self._room.wait()
        if session.table_at < self._table.flushed and session in self._sessions():
            self._telling.add(session)
            session.tell_nodes()
