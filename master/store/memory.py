"""The port's adapter for unit tests and simulation: etcd's model in memory, on the running loop's (virtual) time."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shoal.master.model import Invalid, NoSpace, TooLarge, Unavailable
from shoal.master.store.port import (
    MAX_REQUEST_BYTES,
    MAX_TXN_OPS,
    Compacted,
    Compare,
    DeleteKey,
    HistoryEvent,
    KeyValue,
    Lease,
    Page,
    Put,
    Status,
    TxnResult,
    WatchBatch,
    Write,
)

MIN_TTL_S = 2.0  # etcd's, at its default election timeout


class _Version(NamedTuple):
    mod: int
    create: int
    value: bytes | None  # None: deleted
    lease: int


@dataclass(slots=True)
class _LeaseState:
    ttl: float
    expires: float
    timer: asyncio.TimerHandle
    keys: set[bytes] = field(default_factory=set)


class MemoryEtcd:
    """The server's state, shared by the ports of all its clients."""

    def __init__(self, quota_bytes: int = 0) -> None:
        self.revision = 1  # an empty etcd is at revision 1
        self.compacted = 0
        self.quota_bytes = quota_bytes
        self.no_space = False
        self.size = 0
        self.in_use = 0
        self._keys: list[bytes] = []
        self._versions: dict[bytes, list[_Version]] = {}
        self._history: list[tuple[int, list[HistoryEvent]]] = []
        self._leases: dict[int, _LeaseState] = {}
        self._next_lease = 1
        self._changed: set[asyncio.Future[None]] = set()

    # ---- reading ----
    def get(self, key: bytes, revision: int = 0) -> KeyValue | None:
        versions = self._versions.get(key)
        if not versions:
            return None
        at = len(versions) if not revision else bisect_right(versions, revision, key=lambda v: v.mod)
        if not at or versions[at - 1].value is None:
            return None
        version = versions[at - 1]
        return KeyValue(key, version.value or b"", version.create, version.mod, version.lease)

    def range(self, start: bytes, end: bytes, limit: int, revision: int) -> Page:
        if revision > self.revision:
            raise Invalid(f"revision {revision} is in the future: etcd is at {self.revision}")
        if revision and revision < self.compacted:
            raise Compacted(f"revision {revision} has been compacted", self.compacted)
        if not end:
            found = self.get(start, revision)
            return Page(self.revision, [found] if found else [], False)
        items: list[KeyValue] = []
        for at in range(bisect_left(self._keys, start), bisect_left(self._keys, end)):
            if found := self.get(self._keys[at], revision):
                if limit and len(items) == limit:
                    return Page(self.revision, items, True)
                items.append(found)
        return Page(self.revision, items, False)

    def batches_from(self, start: bytes, end: bytes, revision: int, most: int) -> tuple[int, list[WatchBatch]]:
        """Up to `most` revisions from this one on, and the revision to go on at."""
        if revision < self.compacted:
            raise Compacted(f"revision {revision} has been compacted: list again", self.compacted)
        first = bisect_left(self._history, revision, key=lambda entry: entry[0])
        batches: list[WatchBatch] = []
        for number, events in self._history[first : first + most]:
            if chosen := [event for event in events if start <= event.key < end]:
                batches.append(WatchBatch(number, chosen))
            revision = number + 1
        if first + most >= len(self._history):
            revision = max(revision, self.revision + 1)
        return revision, batches

    async def changed(self) -> None:
        """Returns after the next revision, or when the watches are cut."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.add(future)
        try:
            await future
        finally:
            self._changed.discard(future)

    def wake(self) -> None:
        for future in list(self._changed):
            if not future.done():
                future.set_result(None)

    # ---- writing ----
    def txn(self, compares: Sequence[Compare], writes: Sequence[Write], otherwise: Sequence[bytes]) -> TxnResult:
        self._check(compares, writes, otherwise)
        if not all(self._holds(compare) for compare in compares):
            return TxnResult(False, self.revision, [self.get(key) for key in otherwise])
        effective = [write for write in writes if isinstance(write, Put) or self.get(write.key)]
        for write in effective:
            if isinstance(write, Put) and write.lease and write.lease not in self._leases:
                raise Invalid("requested lease not found")
        if effective:
            self._commit(effective)
        return TxnResult(True, self.revision, ())

    def _check(self, compares: Sequence[Compare], writes: Sequence[Write], otherwise: Sequence[bytes]) -> None:
        if max(len(compares), len(writes), len(otherwise)) > MAX_TXN_OPS:
            raise Invalid(f"too many operations in txn request: at most {MAX_TXN_OPS}")
        if len({write.key for write in writes}) != len(writes):
            raise Invalid("duplicate key given in txn request")
        puts = [write for write in writes if isinstance(write, Put)]
        size = sum(len(put.key) + len(put.value) for put in puts)
        if size > MAX_REQUEST_BYTES:
            raise TooLarge(f"request is too large: {size} bytes, at most {MAX_REQUEST_BYTES}")
        if puts:
            self._check_space(size)

    def _check_space(self, size: int) -> None:
        if self.quota_bytes and not self.no_space and self.size + size > self.quota_bytes:
            self.no_space = True
        if self.no_space:
            raise NoSpace("mvcc: database space exceeded; compact and defragment it, or raise its quota")

    def _holds(self, compare: Compare) -> bool:
        kv = self.get(compare.key)
        if compare.target == "value":
            return kv is not None and kv.value == compare.value
        have = 0 if kv is None else kv.create_revision if compare.target == "create" else kv.mod_revision
        return have == compare.value

    def _commit(self, writes: Sequence[Write]) -> None:
        self.revision += 1
        events: list[HistoryEvent] = []
        for write in writes:
            old = self.get(write.key)
            if old and old.lease in self._leases:
                self._leases[old.lease].keys.discard(write.key)
            if isinstance(write, Put):
                created = old.create_revision if old else self.revision
                version = _Version(self.revision, created, write.value, write.lease)
                if write.lease:
                    self._leases[write.lease].keys.add(write.key)
            else:
                version = _Version(self.revision, 0, None, 0)
            self._append(write.key, version)
            events.append(HistoryEvent(write.key, version.value, version.create, self.revision, version.lease))
        self._history.append((self.revision, events))
        self.wake()

    def _append(self, key: bytes, version: _Version) -> None:
        if key not in self._versions:
            insort(self._keys, key)
            self._versions[key] = []
        self._versions[key].append(version)
        grown = len(key) + len(version.value or b"")
        self.in_use += grown
        self.size = max(self.size, self.in_use)

    # ---- leases ----
    def grant(self, ttl: float) -> Lease:
        if self.no_space:
            raise NoSpace("mvcc: database space exceeded")
        number, self._next_lease = self._next_lease, self._next_lease + 1
        ttl = max(ttl, MIN_TTL_S)
        loop = asyncio.get_running_loop()
        timer = loop.call_at(loop.time() + ttl, self._expire, number)
        self._leases[number] = _LeaseState(ttl, loop.time() + ttl, timer)
        return Lease(number, ttl)

    def keepalive(self, number: int) -> float:
        lease = self._leases.get(number)
        if lease is None:
            return 0.0
        loop = asyncio.get_running_loop()
        lease.timer.cancel()
        lease.expires = loop.time() + lease.ttl
        lease.timer = loop.call_at(lease.expires, self._expire, number)
        return lease.ttl

    def _expire(self, number: int) -> None:
        lease = self._leases.pop(number, None)
        if lease is None:
            return
        lease.timer.cancel()
        if keys := sorted(lease.keys):
            self._commit([DeleteKey(key) for key in keys])

    def revoke(self, number: int) -> None:
        self._expire(number)

    # ---- space ----
    def compact(self, revision: int) -> None:
        if revision > self.revision:
            raise Invalid(f"revision {revision} is in the future: etcd is at {self.revision}")
        if revision <= self.compacted:
            return
        self.compacted = revision
        for key in list(self._keys):
            versions = self._versions[key]
            keep = max(0, bisect_right(versions, revision, key=lambda v: v.mod) - 1)
            if versions[keep].value is None and versions[keep].mod <= revision:
                keep += 1
            self._versions[key] = versions[keep:]
            if not self._versions[key]:
                del self._versions[key]
                self._keys.pop(bisect_left(self._keys, key))
        self._history = [entry for entry in self._history if entry[0] >= revision]
        self.in_use = sum(len(k) + len(v.value or b"") for k, versions in self._versions.items() for v in versions)

    def close(self) -> None:
        """Ends its timers."""
        for lease in self._leases.values():
            lease.timer.cancel()


@dataclass(slots=True)
class Faults:
    """What goes wrong for one client. Counts are used up first; then each call draws."""

    rng: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311
    cut: bool = False  # no call gets through and every watch breaks
    frozen: bool = False  # calls hang until it thaws or time out
    refuse_next: int = 0  # transactions that are not sent
    lose_next: int = 0  # transactions that are carried out and whose answer is lost
    refuse_rate: float = 0.0
    lose_rate: float = 0.0
    delay: tuple[float, float] = (0.0, 0.0)  # seconds, drawn per call and watch batch

    def refuses(self) -> bool:
        if self.refuse_next:
            self.refuse_next -= 1
            return True
        return self.refuse_rate > 0 and self.rng.random() < self.refuse_rate

    def loses(self) -> bool:
        if self.lose_next:
            self.lose_next -= 1
            return True
        return self.lose_rate > 0 and self.rng.random() < self.lose_rate


WATCH_REVISIONS = 1000  # etcd's watchBatchMaxRevs


class Memory:
    """One client of a MemoryEtcd. `cut_watches()` breaks its streams once."""

    def __init__(self, server: MemoryEtcd, faults: Faults | None = None, timeout: float = 2.0) -> None:
        self.server = server
        self.faults = faults or Faults()
        self._timeout = timeout
        self._cuts = 0

    async def range(self, start: bytes, end: bytes = b"", *, limit: int = 0, revision: int = 0) -> Page:
        await self._reach()
        return self.server.range(start, end, limit, revision)

    async def txn(
        self, compares: Sequence[Compare], writes: Sequence[Write], otherwise: Sequence[bytes] = ()
    ) -> TxnResult:
        await self._reach()
        if self.faults.refuses():
            raise Unavailable("etcd (in memory) refuses the call")
        result = self.server.txn(compares, writes, otherwise)
        if self.faults.loses():
            raise Unavailable("etcd (in memory): the answer was lost", "unknown")
        await self._delay()
        if self.faults.cut or self.faults.frozen:
            raise Unavailable("etcd (in memory): the answer was lost", "unknown")
        return result

    async def watch(self, start: bytes, end: bytes, from_revision: int) -> AsyncGenerator[WatchBatch]:
        await self._reach()
        cuts, revision = self._cuts, from_revision
        while True:
            if self._cuts != cuts or self.faults.cut:
                raise Unavailable("etcd (in memory) ended the watch")
            if self.faults.frozen:
                await self._reach()
            revision, batches = self.server.batches_from(start, end, revision, WATCH_REVISIONS)
            for batch in batches:
                await self._delay()
                if self._cuts != cuts or self.faults.cut:
                    raise Unavailable("etcd (in memory) ended the watch")
                yield batch
            if revision > self.server.revision:
                await self.server.changed()

    async def grant(self, ttl: float) -> Lease:
        await self._reach()
        return self.server.grant(ttl)

    async def keepalive(self, lease: int) -> float:
        await self._reach()
        return self.server.keepalive(lease)

    async def revoke(self, lease: int) -> None:
        await self._reach()
        self.server.revoke(lease)

    async def compact(self, revision: int) -> None:
        await self._reach()
        self.server.compact(revision)

    async def status(self) -> Status:
        await self._reach()
        state = self.server
        return Status(state.revision, "memory", state.size, state.in_use, state.no_space)

    async def defragment(self) -> None:
        await self._reach()
        self.server.size = self.server.in_use

    async def disarm(self) -> None:
        await self._reach()
        self.server.no_space = False

    async def close(self) -> None:
        self.cut_watches()

    def cut_off(self) -> None:
        """Nothing gets through from now on, and open watches break."""
        self.faults.cut = True
        self.cut_watches()

    def heal(self) -> None:
        self.faults.cut = self.faults.frozen = False

    def cut_watches(self) -> None:
        """Every open watch ends with Unavailable."""
        self._cuts += 1
        self.server.wake()

    async def _delay(self) -> None:
        low, high = self.faults.delay
        await asyncio.sleep(self.faults.rng.uniform(low, high) if high else 0)

    async def _reach(self) -> None:
        """The way to the server. Raises Unavailable."""
        await self._delay()
        if self.faults.cut:
            raise Unavailable("etcd (in memory) is out of reach")
        waited = 0.0
        while self.faults.frozen:
            if waited >= self._timeout:
                raise Unavailable("etcd (in memory) does not answer", "unknown")
            await asyncio.sleep(0.1)
            waited += 0.1
