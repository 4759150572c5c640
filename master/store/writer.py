"""The one writer: makes fenced transactions of what arrived while the last was in flight, one at a time, no timer.

A change is decided (preconditions, edits) when its group is built, on committed state only. A group without an answer
is sent again until its outcome is known; nothing later is sent or acknowledged before.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from shoal.master.model import Change, Fault, Key, NoSpace, NotLeader, Record, Unavailable
from shoal.master.store import keys
from shoal.master.store.apply import Applied, Cache
from shoal.master.store.codec import pack
from shoal.master.store.decide import Removal, Wanted, decide, key_of_change
from shoal.master.store.fence import Committed, Fence, Refused, encode
from shoal.master.store.port import MAX_TXN_OPS, DeleteKey, Port, Put, Write
from shoal.proto.v1 import store_pb2 as s

log = logging.getLogger("shoal.store")

MAX_GROUP_OBJECTS = MAX_TXN_OPS - 1  # the commit record takes one operation
MAX_GROUP_BYTES = 1 << 20
LOW_LANE_SHARE = 8  # places of a full group that the low lane gets, so that it never starves
MAX_WAITING = 50_000  # changes
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 1.0

Result: TypeAlias = Record | Fault | None


class Leader(Protocol):
    """What the writer needs of a leadership."""

    epoch: int  # the leader key's create revision
    lost: asyncio.Event

    def valid(self) -> bool:
        """By the own clock the lease still runs."""
        ...

    def lose(self, why: str) -> None: ...


@dataclass(slots=True)
class Stats:
    """Counts since the start."""

    groups: int = 0
    objects: int = 0
    resends: int = 0
    refusals: int = 0  # changes refused with a Fault
    waiting: int = 0  # changes not yet answered


class _Call:
    """One `write`: its results come together."""

    __slots__ = ("future", "left", "results", "written")

    def __init__(self, size: int, future: asyncio.Future[list[Result]]) -> None:
        self.results: list[Result] = [None] * size
        self.left = size
        self.future = future
        self.written = False  # some of it is committed

    def fail(self, error: Unavailable | NotLeader) -> None:
        """Fails the whole call; a fresh exception, as one must not be raised in several places."""
        if self.future.done():
            return
        if self.written:
            self.future.set_exception(Unavailable(f"{error}; some of the call's changes were made", "unknown"))
        elif isinstance(error, Unavailable):
            self.future.set_exception(Unavailable(str(error), error.outcome))
        else:
            self.future.set_exception(NotLeader(str(error)))


class _Item:
    __slots__ = ("call", "change", "index")

    def __init__(self, call: _Call, index: int, change: Change) -> None:
        self.call = call
        self.index = index
        self.change = change

    def settle(self, result: Result, written: bool = False) -> None:
        call = self.call
        call.written |= written
        call.results[self.index] = result
        call.left -= 1
        if not call.left and not call.future.done():
            call.future.set_result(call.results)


class _Lane:
    """Waiting changes: first come, first served by key; the changes of one key stay in order."""

    def __init__(self) -> None:
        self.order: deque[Key] = deque()
        self.chains: dict[Key, deque[_Item]] = {}

    def add(self, key: Key, item: _Item) -> None:
        chain = self.chains.get(key)
        if chain is None:
            self.chains[key] = deque((item,))
            self.order.append(key)
        else:
            chain.append(item)

    def drain(self) -> list[_Item]:
        items = [item for chain in self.chains.values() for item in chain]
        self.order.clear()
        self.chains.clear()
        return items


class _Group:
    """One transaction in the making."""

    def __init__(self) -> None:
        self.entries: dict[Key, tuple[_Item, Wanted | Removal]] = {}
        self.writes: list[Write] = []
        self.size = 0

    def fits(self, key: bytes, value: bytes) -> bool:
        return not self.entries or self.size + len(key) + len(value) <= MAX_GROUP_BYTES

    def add(self, key: Key, item: _Item, outcome: Wanted | Removal, write: Write) -> None:
        self.entries[key] = (item, outcome)
        self.writes.append(write)
        self.size += len(write.key) + (len(write.value) if isinstance(write, Put) else 0)

    def calls(self) -> list[_Call]:
        return [item.call for item, _ in self.entries.values()]


class Writer:
    """Runs for one leadership. `commit(revision, changes)` takes committed groups into the cache, in order."""

    def __init__(
        self,
        port: Port,
        cache: Cache,
        fence: Fence,
        leader: Leader,
        now: Callable[[], float],
        commit: Callable[[int, list[Applied]], None],
        max_group: int = MAX_GROUP_OBJECTS,
    ) -> None:
        self.stats = Stats()
        self.no_space = asyncio.Event()  # etcd refused a group for want of space; whoever makes room clears it
        self._port, self._cache, self._fence, self._leader = port, cache, fence, leader
        self._now, self._commit, self._max_group = now, commit, max_group
        self._high, self._low = _Lane(), _Lane()
        self._work = asyncio.Event()
        self._closed: NotLeader | None = None
        self._group = _Group()  # in flight
        self._in_doubt = False

    async def write(self, changes: Sequence[Change], low_priority: bool = False) -> list[Result]:
        """One result per change in order: the committed record, None for a deleted object, or the Fault that refused
        it. Raises Unavailable or NotLeader for all. When cancelled, what was not yet sent is not done."""
        self._admit(len(changes))
        if not changes:
            return []
        call = _Call(len(changes), asyncio.get_running_loop().create_future())
        lane = self._low if low_priority else self._high
        for index, change in enumerate(changes):
            item = _Item(call, index, change)
            try:
                lane.add(key_of_change(change), item)
            except Fault as fault:
                item.settle(fault)
        self.stats.waiting += len(changes)
        self._work.set()
        try:
            results = await call.future
        finally:
            self.stats.waiting -= len(changes)
        self.stats.refusals += sum(isinstance(result, Fault) for result in results)
        return results

    def _admit(self, count: int) -> None:
        if self._closed is not None:
            raise NotLeader(str(self._closed))
        if self._leader.lost.is_set():
            raise NotLeader("this master no longer leads: ask the leader")
        if not self._leader.valid():
            raise Unavailable("etcd does not answer this leader, nothing can be written; it goes on when etcd is back")
        if self.stats.waiting + count > MAX_WAITING:
            raise Unavailable(f"{self.stats.waiting} changes are waiting to be written: ask again later")

    async def run(self) -> None:
        """Writes until the leadership is lost or the task is cancelled; then whoever waits gets an error."""
        try:
            while not self._leader.lost.is_set():
                await self._work.wait()
                if not self._leader.valid():
                    self._fail_waiting(Unavailable("etcd does not answer this leader; nothing was written"))
                if group := self._build():
                    self._group = group
                    await self._send(group)
                elif not self._high.order and not self._low.order:
                    self._work.clear()
        except Exception as error:
            log.exception("the writer stops: it met an error that it does not know")
            self._leader.lose(f"the writer failed: {error!r}")
        finally:
            for call in self._group.calls():  # those that were answered stay as they are
                call.fail(Unavailable("this master stopped before etcd answered", "unknown"))
            self._closed = NotLeader("this master no longer leads: ask the leader")
            self._fail_waiting(self._closed)

    def stop(self) -> None:
        """The leadership is lost: an idle `run` returns."""
        self._work.set()

    def _fail_waiting(self, error: Unavailable | NotLeader) -> None:
        for item in self._high.drain() + self._low.drain():
            item.call.fail(error)

    # ---- building ----
    def _build(self) -> _Group | None:
        group = _Group()
        share = min(LOW_LANE_SHARE, self._max_group // 2) if self._low.order else 0
        self._fill(group, self._high, self._max_group - share)
        self._fill(group, self._low, self._max_group)
        self._fill(group, self._high, self._max_group)
        return group if group.entries else None

    def _fill(self, group: _Group, lane: _Lane, most: int) -> None:
        for _ in range(len(lane.order)):
            if len(group.entries) >= most:
                return
            key = lane.order.popleft()
            chain = lane.chains[key]
            if key not in group.entries and not self._take(group, key, chain):
                lane.order.appendleft(key)
                return
            if chain:
                lane.order.append(key)
            else:
                del lane.chains[key]

    def _take(self, group: _Group, key: Key, chain: deque[_Item]) -> bool:
        """Moves the key's first change that writes something into the group, answering those before it that need
        no write. False when the group has no room for it."""
        while chain:
            item = chain[0]
            if item.call.future.done():  # the caller has given up, or the call has failed
                chain.popleft()
                continue
            outcome = decide(item.change, self._cache.record(key))
            if isinstance(outcome, Wanted | Removal):
                raw = keys.encode(key)
                value = pack(outcome.body) if isinstance(outcome, Wanted) else b""
                if not group.fits(raw, value):
                    return False
                chain.popleft()
                group.add(key, item, outcome, Put(raw, value) if isinstance(outcome, Wanted) else DeleteKey(raw))
                return True
            chain.popleft()
            item.settle(outcome)
        return True

    # ---- sending ----
    async def _send(self, group: _Group) -> None:
        """Commits a group, whatever it takes, or fails its callers."""
        record = self._fence.next(self._now(), len(group.entries))
        writes = [*group.writes, Put(keys.COMMIT, encode(record))]
        self._in_doubt = False
        delay = FIRST_RETRY_S
        while True:
            try:
                verdict = await self._try(record, writes)
            except Unavailable as error:
                self._in_doubt |= error.outcome == "unknown"
                if self._give_up(group, error):
                    return
            except Fault as fault:  # etcd refused it; an earlier sending may have been carried out all the same
                if isinstance(fault, NoSpace):
                    self.no_space.set()
                if not self._in_doubt:
                    self._refuse(group, fault)
                    return
            else:
                self._conclude(group, record, verdict)
                return
            self.stats.resends += 1
            await asyncio.sleep(delay)
            delay = min(delay * 2, LAST_RETRY_S)

    async def _try(self, record: s.CommitRecord, writes: Sequence[Write]) -> Committed | Refused:
        result = await self._port.txn(self._fence.compares(), writes, Fence.READS)
        return self._fence.judge(record, result, self._in_doubt)

    def _give_up(self, group: _Group, error: Unavailable) -> bool:
        """After a failed sending: whether to leave it. A leader whose lease may have run out tells its callers now;
        a group in doubt is still sent again, so that nothing overtakes it, until another leader is known."""
        if self._leader.valid() and not self._leader.lost.is_set():
            return False
        outcome = "unknown" if self._in_doubt else "none"
        for call in group.calls():
            call.fail(Unavailable(f"{error}; the leader's lease may have run out", outcome))
        self._fail_waiting(Unavailable(f"{error}; nothing was written"))
        return not self._in_doubt or self._leader.lost.is_set()

    def _refuse(self, group: _Group, fault: Fault) -> None:
        if not isinstance(fault, NoSpace):
            log.error("etcd refused a group of %d objects: %s", len(group.entries), fault)
        for item, _ in group.entries.values():
            item.settle(fault)

    def _conclude(self, group: _Group, record: s.CommitRecord, verdict: Committed | Refused) -> None:
        if isinstance(verdict, Refused):
            self._leader.lose(verdict.why)
            for call in group.calls():
                if verdict.certain:
                    call.fail(NotLeader(f"{verdict.why}; nothing was written"))
                else:
                    call.fail(Unavailable(f"{verdict.why} before an answer came", "unknown"))
            return
        self._fence.advance(record)
        revision = verdict.revision
        applied: list[Applied] = []
        for key, (_, outcome) in group.entries.items():
            new = None
            if isinstance(outcome, Wanted):
                new = Record(key, outcome.message, outcome.body, revision, outcome.created or revision)
            applied.append(Applied(key, new))
        self.stats.groups += 1
        self.stats.objects += len(applied)
        self._commit(revision, applied)
        for (item, _), (_, new) in zip(group.entries.values(), applied, strict=True):
            item.settle(new, written=True)
