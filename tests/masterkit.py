"""Stands in for the master's neighbours in tests: a store in memory, a leadership, and streams without a network."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from shoal.master.core import Master, Settings
from shoal.master.dispatcher.dispatcher import Config
from shoal.master.election import TaskRenewer
from shoal.master.metrics import Meters
from shoal.master.model import (
    KINDS,
    AlreadyExists,
    Change,
    Conflict,
    Create,
    Event,
    Fault,
    Key,
    Modify,
    NotFound,
    Object,
    Record,
    Unavailable,
    key_of,
)
from shoal.master.ports import StreamClosed
from shoal.master.store.memory import Faults, Memory, MemoryEtcd
from shoal.proto.v1 import session_pb2 as s
from tests.memory_view import MemoryView

PATIENCE_S = 60.0  # a condition may take
QUICK = Config(heartbeat_period=0.2, hello_patience=1.0, tunnel_patience=1.0)


class MemoryStore:
    """The store's face; every write is one group. `fault`, when set, is raised by each write."""

    def __init__(self) -> None:
        self.view = MemoryView()
        self.fault: Fault | None = None
        self.gate: asyncio.Event | None = None  # when set, writes wait for it
        self.writes: list[list[Change]] = []
        self.after: list[Change] = []  # what somebody else writes before the next writer hears of its success
        self._feeds: list[tuple[Collection[str] | None, asyncio.Queue[tuple[int, list[Event]]]]] = []

    async def write(self, changes: Sequence[Change], *, low_priority: bool = False) -> list[Record | Fault | None]:
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        self.writes.append(list(changes))
        self.view.revision += 1
        events: list[Event] = []
        results = [self._one(change, events) for change in changes]
        for change in self.after:
            self._one(change, events)
        self.after = []
        for kinds, queue in self._feeds:
            wanted = [event for event in events if kinds is None or event.key.kind in kinds]
            if wanted:
                queue.put_nowait((self.view.revision, wanted))
        return results

    def _one(self, change: Change, events: list[Event]) -> Record | Fault | None:
        if isinstance(change, Create):
            key = key_of(change.object)
            if (old := self.view.records.get(key)) is not None:
                same = old.message.metadata.uid == change.object.metadata.uid
                return old if same else AlreadyExists(f"{key} already exists")
            return self._put(key, change.object, None, events)
        old = self.view.records.get(change.key)
        if old is None:
            return NotFound(f"{change.key} not found")
        if change.uid and change.uid != old.message.metadata.uid:
            return Conflict(f"{change.key} is another object now")
        if change.revision and change.revision != old.revision:
            return Conflict(f"{change.key} was changed meanwhile")
        if isinstance(change, Modify):
            clone = KINDS[change.key.kind]()
            clone.MergeFromString(old.body)
            return self._put(change.key, clone, old, events) if change.edit(clone) else old
        del self.view.records[change.key]
        events.append(Event(change.key, self.view.revision, old, None))
        return None

    def _put(self, key: Key, message: Object, old: Record | None, events: list[Event]) -> Record:
        body = message.SerializeToString(deterministic=True)
        created = old.created if old else self.view.revision
        record = Record(key, message, body, self.view.revision, created)
        self.view.records[key] = record
        events.append(Event(key, self.view.revision, old, record))
        return record

    def subscribe(self, kinds: Collection[str] | None) -> AsyncIterator[tuple[int, list[Event]]]:
        queue: asyncio.Queue[tuple[int, list[Event]]] = asyncio.Queue()
        self._feeds.append((kinds, queue))

        async def take() -> AsyncIterator[tuple[int, list[Event]]]:
            while True:
                yield await queue.get()

        return take()


class Leader:
    """A leadership that a test can take away."""

    def __init__(self, epoch: int = 7) -> None:
        self.epoch = epoch
        self.holds = True

    def valid(self) -> bool:
        return self.holds


class MemoryStream:
    """One session's two ends: the master's is this object, the agent's are say() and hear()."""

    def __init__(self, window: int = 1000) -> None:
        self._up: asyncio.Queue[s.Up | None] = asyncio.Queue()
        self._down: asyncio.Queue[s.Down | None] = asyncio.Queue(window)
        self.closed = False

    async def send(self, message: s.Down) -> None:
        if self.closed:
            raise StreamClosed("closed")
        await self._down.put(message)

    async def receive(self) -> s.Up | None:
        return await self._up.get()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._up.put_nowait(None)

    def say(self, message: s.Up) -> None:
        self._up.put_nowait(message)

    def hang_up(self) -> None:
        self._up.put_nowait(None)

    async def hear(self) -> s.Down:
        async with asyncio.timeout(PATIENCE_S):
            message = await self._down.get()
        assert message is not None
        return message

    async def hear_only(self, which: str) -> s.Down:
        """The next message, which must be of this kind."""
        message = await self.hear()
        assert message.WhichOneof("message") == which, message
        return message

    def silent(self) -> bool:
        return self._down.empty()


async def until(condition: Callable[[], bool], what: str = "the condition") -> None:
    """Waits for a condition, giving the loop its turns."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)
    assert condition(), what


def unavailable() -> Unavailable:
    return Unavailable("etcd does not answer")


@asynccontextmanager
async def memory_master(
    server: MemoryEtcd | None = None,
    *,
    name: str = "m0",
    loops: bool = True,
    faults: Faults | None = None,
    config: Config = QUICK,
) -> AsyncIterator[Master]:
    """A whole master over the store in memory, leading unless another does."""
    etcd = server or MemoryEtcd()
    port = Memory(etcd, faults)
    clock = asyncio.get_running_loop().time
    settings = Settings(name, f"{name}.example:7000", config, loops)
    meters = Meters(CollectorRegistry())
    master = Master(settings, port, TaskRenewer(port, clock), time.time, clock, random.Random(1), meters)
    running = asyncio.ensure_future(master.run())
    try:
        await until(lambda: master.leading() is not None or bool(master.leader_address()))
        yield master
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await master.close()
        if server is None:
            etcd.close()
