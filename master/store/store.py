"""The store: committed objects, changes to them, and who hears of it. The face that the rest of the master uses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

from shoal.master.model import KINDS, Change, Expired, Fault, NotLeader, Unavailable, View
from shoal.master.store import keys, space
from shoal.master.store.apply import Applied, Cache
from shoal.master.store.fence import Fence
from shoal.master.store.load import applied_of, difference, list_objects, newest, start_with_history
from shoal.master.store.pages import ListPage, list_page
from shoal.master.store.port import Compacted, KeyValue, Port
from shoal.master.store.port import WatchBatch as PortBatch
from shoal.master.store.watch import WINDOW_EVENTS, Hub, Predicate, Subscription, WatchBatch, Window
from shoal.master.store.writer import MAX_GROUP_OBJECTS, Leader, Result, Stats, Writer

log = logging.getLogger("shoal.store")

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 2.0
CATCH_UP_PATIENCE_S = 10.0  # without a revision that is known to be there: the member that answers is cut off


class Store:
    """One per master process. `follow()` at the start, `open(leadership)` when elected, and `follow()` again when the
    leadership is lost; cache, subscriptions and watches live through these. `now` is the wall clock in seconds."""

    def __init__(
        self,
        port: Port,
        now: Callable[[], float],
        *,
        quota_bytes: int = space.DEFAULT_QUOTA_BYTES,
        max_group: int = MAX_GROUP_OBJECTS,
        window_events: int = WINDOW_EVENTS,
    ) -> None:
        self._port, self._now = port, now
        self._quota_bytes, self._max_group, self._window_events = quota_bytes, max_group, window_events
        self._cache = Cache()
        self._hub = Hub(Window(window_events))
        self._loaded = False
        self._resume = 0  # the revision at which the watch on etcd goes on
        self._leader: Leader | None = None
        self._writer: Writer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.relists = 0  # times that history was gone and everything was listed again

    # ---- roles ----
    async def follow(self) -> None:
        """Becomes a follower: catches up with everything committed by now, then keeps up in the background.
        Retries while etcd is away."""
        await self._stop()
        await self._retrying(self._arrive)
        self._spawn(self._follow(), "follow-etcd")

    async def open(self, leadership: Leader) -> None:
        """Becomes the leader: catches up with everything that was committed before its key, then serves.
        Raises NotLeader when the key is another's by now, Unavailable when etcd does not answer; `follow` then."""
        await self._stop()
        page = await self._port.range(keys.LEADER)
        if not page.items or page.items[0].create_revision != leadership.epoch:
            leadership.lose("its key is not in etcd any more")
            raise NotLeader("the leadership was lost before the store was open")
        # Read after the key was taken: whatever an older leader still sends fails its fence.
        fence = Fence(leadership.epoch, await self._arrive())
        writer = Writer(self._port, self._cache, fence, leadership, self._now, self._commit, self._max_group)
        self._leader, self._writer = leadership, writer
        self._spawn(writer.run(), "write")
        self._spawn(self._end_with(leadership, writer), "end-of-term")
        self._spawn(space.Compactor(self._port, self._now, self._quota_bytes).run(writer.no_space), "compact")
        log.info("the store is open at revision %d, epoch %d", self._cache.revision, leadership.epoch)

    async def close(self) -> None:
        """Ends all its tasks. Writes that wait are failed. The port stays open: it is the caller's."""
        await self._stop()

    @property
    def leading(self) -> bool:
        """Open, and the lease still runs by the own clock."""
        return self._leader is not None and self._leader.valid()

    @property
    def epoch(self) -> int:
        """The leadership's epoch; 0 for a follower."""
        return self._leader.epoch if self._leader else 0

    @property
    def stats(self) -> Stats:
        """The writer's counts; zeros for a follower."""
        return self._writer.stats if self._writer else Stats()

    # ---- reading ----
    @property
    def view(self) -> View:
        """Committed state. Its messages are shared and its collections live: clone, and use before the next await."""
        return self._cache

    async def readable(self, min_revision: int = 0) -> None:
        """Returns when the view may be answered from. A leader whose lease may have run out raises Unavailable; a
        follower answers only for a `min_revision`, once it has that, and else raises NotLeader."""
        if self._leader is not None:
            if not self._leader.valid():
                raise Unavailable(
                    "this leader's lease may have run out: etcd does not answer it; it goes on when etcd is back"
                )
            if min_revision > self._cache.revision:
                raise Expired(f"revision {min_revision} is not of this cluster's history: list again")
        elif not min_revision:
            raise NotLeader("this master does not lead: ask the leader, or name a min_revision")
        else:
            await self.wait_revision(min_revision)

    async def wait_revision(self, min_revision: int) -> None:
        """Returns once the view is at this revision or a newer one."""
        await self._hub.reach(min_revision)

    def list_page(
        self,
        kind: str,
        namespace: str | None = None,
        predicate: Predicate | None = None,
        limit: int = 0,
        continue_token: str = "",
    ) -> ListPage:
        """Objects of a kind by namespace and name; all pages are of the first one's revision.
        Raises Expired, Invalid."""
        return list_page(self._cache, self._hub.window, kind, namespace, predicate, limit, continue_token)

    def subscribe(self, kinds: Collection[str] | None = None) -> Subscription:
        """Everything that is applied from now on. Read the view first, without an await in between; or subscribe
        before `follow` or `open`, and the first load comes as additions."""
        return self._hub.subscribe(kinds)

    async def watch(
        self, kinds: Collection[str] | None, from_revision: int = 0, predicate: Predicate | None = None
    ) -> AsyncGenerator[WatchBatch]:
        """For clients: batches of whole revisions after `from_revision` (0: from now on); the first comes at once and
        may be a bookmark. Raises Expired when those are not kept any more: list again. Close the generator."""
        if self._leader is not None and from_revision > self._cache.revision:
            raise Expired(f"revision {from_revision} is not of this cluster's history: list again")
        async with aclosing(self._hub.watch(kinds, from_revision or self._cache.revision, predicate)) as batches:
            async for batch in batches:
                yield batch

    async def revision_at(self, time: float) -> int:
        """The newest revision committed at or before this time (Unix seconds); 0 when history is shorter."""
        return await space.revision_at(self._port, time)

    # ---- writing ----
    async def write(self, changes: Sequence[Change], *, low_priority: bool = False) -> list[Result]:
        """One result per change, in order: the committed record (the current one when there was nothing to do), None
        for a deleted object, or the Fault that refused it. Each change stands for itself. Raises Unavailable or
        NotLeader for all; Unavailable with outcome "unknown" when some may have been made."""
        if self._writer is None:
            raise NotLeader("this master does not lead: ask the leader")
        return await self._writer.write(changes, low_priority)

    # ---- within ----
    def _commit(self, revision: int, changes: list[Applied], keep: bool = True) -> None:
        """One revision into the cache and on to everybody who listens."""
        self._hub.publish(revision, self._cache.apply(revision, changes), keep)

    async def _arrive(self) -> KeyValue | None:
        """Loads unless it has, and applies all that was committed by now; gives the newest commit record."""
        while not self._loaded:
            try:
                await self._load()
            except Compacted as fault:  # just now
                log.info("loading begins anew: %s", fault)
        commits = (await self._port.range(keys.COMMIT)).items
        if not commits:
            return None
        await self._catch_up(commits[0].mod_revision)
        return commits[0]

    async def _load(self) -> None:
        """The first load: a state from which history then fills the event window."""
        start = await start_with_history(self._port, self._window_events // 2)  # no long wait
        listed = await list_objects(self._port, start.read)
        self._commit(start.revision, listed, keep=False)
        self._resume, self._loaded = start.read + 1, True
        log.info("loaded %d objects at revision %d", len(listed), start.revision)

    async def _reload(self) -> None:
        """After a compaction: the newest state; what it differs in is told, event by event it cannot be."""
        start = await newest(self._port)
        listed = await list_objects(self._port, start.read)
        self.relists += 1
        self._commit(start.revision, difference(self._cache, listed, list(KINDS)), keep=False)
        self._resume = start.read + 1
        log.warning("listed again: %d objects at revision %d", len(listed), start.revision)

    async def _catch_up(self, revision: int) -> None:
        """Applies history up to this revision, which a commit made; lists anew when history is gone. Raises Unavailable
        when etcd breaks off or falls silent."""
        loop = asyncio.get_running_loop()
        while self._cache.revision < revision:
            try:
                async with asyncio.timeout(CATCH_UP_PATIENCE_S) as patience, aclosing(self._watch_port()) as batches:
                    async for batch in batches:
                        patience.reschedule(loop.time() + CATCH_UP_PATIENCE_S)
                        self._take(batch)
                        if self._cache.revision >= revision:
                            return
            except TimeoutError:
                raise Unavailable(
                    f"etcd's watch does not tell revision {revision} for {CATCH_UP_PATIENCE_S:g} s, which is there"
                ) from None
            except Compacted as fault:
                log.warning("%s", fault)
                await self._reload()

    def _watch_port(self) -> AsyncGenerator[PortBatch]:
        self._resume = max(self._resume, self._cache.revision + 1)
        return self._port.watch(keys.ROOT, keys.ROOT_END, self._resume)

    def _take(self, batch: PortBatch) -> None:
        """A revision from the watch. Only commits count: every master then knows the same revisions."""
        if batch.revision < self._resume or not batch.events:  # a stale member may repeat what was seen
            return
        if any(event.key == keys.COMMIT for event in batch.events):
            self._commit(batch.revision, applied_of(batch.events))
        self._resume = batch.revision + 1

    async def _follow(self) -> None:
        """Feeds the cache from etcd's watch for ever."""
        delay = FIRST_RETRY_S
        while True:
            try:
                async with aclosing(self._watch_port()) as batches:
                    async for batch in batches:
                        self._take(batch)
                        delay = FIRST_RETRY_S
            except Compacted as fault:
                log.warning("%s", fault)
                await self._retrying(self._reload)
            except Fault as fault:
                log.warning("the watch on etcd is resumed in %.1f s: %s", delay, fault)
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_RETRY_S)

    async def _retrying(self, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        delay = FIRST_RETRY_S
        while True:
            try:
                await work()
                return
            except (Unavailable, Compacted) as fault:
                log.warning("etcd is asked again in %.1f s: %s", delay, fault)
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_RETRY_S)

    async def _end_with(self, leader: Leader, writer: Writer) -> None:
        await leader.lost.wait()
        writer.stop()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_report)
        self._tasks.append(task)

    async def _stop(self) -> None:
        """Ends the role that it has; the cache stays as it is."""
        tasks, self._tasks = self._tasks, []
        self._leader = self._writer = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("the store's task %s failed", task.get_name(), exc_info=error)
