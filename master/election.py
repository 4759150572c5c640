"""Who leads: a key in etcd under a lease. Its create revision is the leader's epoch.

By the own clock the lease counts from when its renewal was *sent*: a leader stops before etcd lets another in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from shoal.master.model import Fault, NoSpace, Unavailable
from shoal.master.store import keys
from shoal.master.store.port import Compare, KeyValue, Lease, Port, Put
from shoal.master.store.space import make_room
from shoal.proto.v1 import store_pb2 as s

log = logging.getLogger("shoal.election")

LEASE_TTL_S = 4.0
RENEW_PERIOD_S = 1.0
CLOCK_DRIFT = 0.02  # of the lease: how much the clocks of leader and etcd may disagree
RETRY_S = 0.5
LAST_ROOM_RETRY_S = 30.0  # making room blocks etcd for a while


@dataclass(frozen=True, slots=True)
class LeaderInfo:
    """The leader as its key names it."""

    address: str  # host:port
    identity: str
    epoch: int


class Leadership:
    """One term. `renewed` and `lose` may be called from the renewing thread's callbacks on the loop only."""

    def __init__(self, epoch: int, lease: Lease, sent: float, clock: Callable[[], float]) -> None:
        self.epoch = epoch
        self.lease = lease
        self.lost = asyncio.Event()
        self.why = ""
        self._clock = clock
        self.valid_until = sent + lease.ttl * (1 - CLOCK_DRIFT)

    def valid(self) -> bool:
        return not self.lost.is_set() and self._clock() < self.valid_until

    def renewed(self, sent: float, ttl: float) -> None:
        """A renewal that was sent at `sent` gave this many seconds. A float's assignment is safe from any thread."""
        self.valid_until = max(self.valid_until, sent + ttl * (1 - CLOCK_DRIFT))

    def lose(self, why: str) -> None:
        """For good. The first reason stays."""
        if not self.lost.is_set():
            self.why = why
            log.warning("leadership of epoch %d is lost: %s", self.epoch, why)
            self.lost.set()


class Renewer(Protocol):
    """Renews a leadership's lease every RENEW_PERIOD_S until it is lost or stopped."""

    def start(self, leadership: Leadership) -> None: ...
    async def stop(self) -> None: ...


class TaskRenewer:
    """Renews in a coroutine over the port. A real master uses `store.etcd_lease.ThreadRenewer`."""

    def __init__(self, port: Port, clock: Callable[[], float]) -> None:
        self._port, self._clock = port, clock
        self._task: asyncio.Task[None] | None = None

    def start(self, leadership: Leadership) -> None:
        self._task = asyncio.create_task(self._run(leadership), name="renew-lease")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self, leadership: Leadership) -> None:
        while not leadership.lost.is_set():
            sent = self._clock()
            try:
                ttl = await self._port.keepalive(leadership.lease.id)
            except Fault as fault:
                log.info("the leader's lease was not renewed: %s", fault)
            else:
                if ttl <= 0:
                    leadership.lose("its lease has run out in etcd")
                    return
                leadership.renewed(sent, ttl)
            await asyncio.sleep(max(0.0, sent + RENEW_PERIOD_S - self._clock()))


class Election:
    """One candidate. `address` is where it answers once it leads; `identity` is one per process.
    `make_room` is called when etcd has no space even for a lease."""

    def __init__(
        self,
        port: Port,
        renewer: Renewer,
        address: str,
        identity: str,
        clock: Callable[[], float],
        make_room: Callable[[Port], Awaitable[None]] = make_room,
        ttl: float = LEASE_TTL_S,
    ) -> None:
        self.leader: LeaderInfo | None = None  # as far as known
        self._port, self._renewer, self._clock, self._ttl = port, renewer, clock, ttl
        self._record = s.LeaderRecord(address=address, identity=identity)
        self._make_room = make_room

    async def campaign(self) -> Leadership:
        """Returns when elected, with the renewals under way. Retries while etcd is away."""
        pause = RETRY_S
        while True:
            try:
                await self._wait_for_vacancy()
                if leadership := await self._try():
                    self._renewer.start(leadership)
                    return leadership
            except NoSpace:
                log.warning("etcd has no space left, not even for the leader's lease")
                await self._try_to_make_room()
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_ROOM_RETRY_S)
            except Fault as fault:
                log.info("the campaign goes on in %.1f s: %s", RETRY_S, fault)
                await asyncio.sleep(RETRY_S)

    async def resign(self, leadership: Leadership) -> None:
        """Gives the leadership back at once, so that another need not wait for the lease."""
        leadership.why = leadership.why or "resigned"
        leadership.lost.set()
        await self._renewer.stop()
        try:
            await self._port.revoke(leadership.lease.id)
        except Fault as fault:
            log.info("the lease could not be given back, it runs out by itself: %s", fault)

    async def look(self) -> LeaderInfo | None:
        """Reads who leads. Raises Unavailable."""
        page = await self._port.range(keys.LEADER)
        self.leader = info_of(page.items[0]) if page.items else None
        return self.leader

    async def _try_to_make_room(self) -> None:
        try:
            await self._make_room(self._port)
        except Fault as fault:
            log.warning("no room could be made in etcd: %s", fault)

    async def _wait_for_vacancy(self) -> None:
        while True:
            page = await self._port.range(keys.LEADER)
            if not page.items:
                self.leader = None
                return
            self.leader = info_of(page.items[0])
            async with aclosing(self._port.watch(keys.LEADER, keys.LEADER + b"\0", page.revision + 1)) as batches:
                async for batch in batches:
                    if any(event.value is None for event in batch.events):
                        break

    async def _try(self) -> Leadership | None:
        """Puts our key where none is. None when another was faster."""
        sent = self._clock()
        lease = await self._port.grant(self._ttl)
        try:
            kv = await self._claim(lease, sent)
        except Unavailable:
            await self._give_back(lease)
            raise
        if kv is None or kv.lease != lease.id:
            await self._give_back(lease)
            return None
        self.leader = info_of(kv)
        log.info("elected: epoch %d at %s", kv.create_revision, self._record.address)
        return Leadership(kv.create_revision, lease, sent, self._clock)

    async def _claim(self, lease: Lease, sent: float) -> KeyValue | None:
        """The leader key after trying to make it ours. A lost answer is asked for again while the lease lasts."""
        put = Put(keys.LEADER, self._record.SerializeToString(), lease.id)
        while True:
            try:
                result = await self._port.txn((Compare(keys.LEADER, "create", 0),), (put,), (keys.LEADER,))
            except Unavailable as error:
                if self._clock() >= sent + lease.ttl:
                    raise
                log.info("the leader key is tried again: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            if result.succeeded:
                return KeyValue(put.key, put.value, result.revision, result.revision, lease.id)
            return result.found[0]

    async def _give_back(self, lease: Lease) -> None:
        try:
            await self._port.revoke(lease.id)
        except Fault as fault:
            log.info("a lease could not be given back, it runs out by itself: %s", fault)


def info_of(kv: KeyValue) -> LeaderInfo:
    record = s.LeaderRecord.FromString(kv.value)
    return LeaderInfo(record.address, record.identity, kv.create_revision)


async def ensure_incarnation(port: Port, make_id: Callable[[], str]) -> str:
    """The cluster's incarnation, made by whoever asks first. A restored cluster is given a new one by the restore."""
    while True:
        page = await port.range(keys.INCARNATION)
        if page.items:
            return s.ClusterIncarnation.FromString(page.items[0].value).id
        record = s.ClusterIncarnation(id=make_id()).SerializeToString()
        try:
            await port.txn((Compare(keys.INCARNATION, "create", 0),), (Put(keys.INCARNATION, record),))
        except Unavailable as error:
            if error.outcome == "none":
                raise
