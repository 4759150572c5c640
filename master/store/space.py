"""Keeping etcd small: regular compaction, and making room when its quota is used up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from shoal.master.model import Fault
from shoal.master.store import keys
from shoal.master.store.port import Compacted, Port
from shoal.proto.v1 import store_pb2 as s

log = logging.getLogger("shoal.store")

KEEP_S = 3600.0  # history that is kept
LEAST_KEEP_S = 60.0  # however full etcd is
QUOTA_SHARE = 0.25  # of the quota: above it less history is kept
DEFAULT_QUOTA_BYTES = 8 << 30
PERIOD_S = 300.0
DEFRAGMENT_SHARE = 0.5  # of the file unused, and the file above the quota's share: give it back
ROOM_PERIOD_S = 30.0  # making room blocks etcd for a while: not more often


async def revision_at(port: Port, time: float) -> int:
    """The newest revision that was committed at or before this time (seconds, Unix), as the leaders' clocks have it;
    0 when history does not reach back so far."""
    page = await port.range(keys.COMMIT)
    if not page.items:
        return 0
    low, high = 0, page.revision  # known: everything at `low` is old enough or forgotten; the answer is at most `high`
    if _time(page.items[0].value) <= time:
        return page.items[0].mod_revision
    found = 0
    while low + 1 < high:
        middle = (low + high) // 2
        try:
            older = await port.range(keys.COMMIT, revision=middle)
        except Compacted:
            low = middle
            continue
        if not older.items or _time(older.items[0].value) <= time:
            low = found = middle
        else:
            high = middle
    return found


def _time(commit: bytes) -> float:
    return s.CommitRecord.FromString(commit).time_ms / 1000


class Compactor:
    """The leader's loop. `now` is the wall clock in seconds."""

    def __init__(self, port: Port, now: Callable[[], float], quota_bytes: int = DEFAULT_QUOTA_BYTES) -> None:
        self.keep = KEEP_S
        self.compacted = 0  # the last revision that was compacted to
        self._port, self._now, self._quota = port, now, quota_bytes
        self._last_room = float("-inf")

    async def run(self, no_space: asyncio.Event) -> None:
        """Compacts every PERIOD_S, and at once when `no_space` is set."""
        while True:
            try:
                async with asyncio.timeout(PERIOD_S):
                    await no_space.wait()
            except TimeoutError:
                await self._quietly(self.compact())
                continue
            await asyncio.sleep(max(0.0, self._last_room + ROOM_PERIOD_S - asyncio.get_running_loop().time()))
            no_space.clear()
            self._last_room = asyncio.get_running_loop().time()
            await self._quietly(make_room(self._port))

    async def compact(self) -> None:
        """Forgets history that is too old, and more when etcd fills up."""
        status = await self._port.status()
        if status.db_size_in_use > self._quota * QUOTA_SHARE:
            self.keep = max(self.keep / 2, LEAST_KEEP_S)
        else:
            self.keep = min(self.keep * 2, KEEP_S)
        revision = await revision_at(self._port, self._now() - self.keep)
        if revision > self.compacted:
            await self._port.compact(revision)
            self.compacted = revision
            log.info("compacted etcd's history up to revision %d (%.0f s are kept)", revision, self.keep)
        unused = status.db_size - status.db_size_in_use
        if status.db_size > self._quota * QUOTA_SHARE and unused > status.db_size * DEFRAGMENT_SHARE:
            await self._port.defragment()

    async def _quietly(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Fault as fault:
            log.warning("etcd's history was not compacted, tried again later: %s", fault)
        except Exception:
            # Without compaction etcd fills up: one bad answer must not end it for the whole term.
            log.exception("etcd's history was not compacted, tried again later")


async def make_room(port: Port) -> None:
    """Drops all history, gives the space back and takes the alarm off. Watchers that are behind must list again.
    When live objects fill the quota the alarm comes back: then the quota must be raised."""
    status = await port.status()
    log.warning(
        "etcd's quota is used up (%d bytes, %d in use): dropping its history", status.db_size, status.db_size_in_use
    )
    await port.compact(status.revision)
    await port.defragment()
    await port.disarm()
