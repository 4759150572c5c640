"""A client that watches everything through crashes and elections: it must see each revision once, whole, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import aclosing

from shoal.master.core import Master
from shoal.master.model import KINDS, Expired, Fault, Key
from shoal.proto.v1 import cluster_pb2 as c
from tests.sim.watchdog import Broken
from tests.sim.world import World

PATIENCE_SECONDS = 5.0  # of silence; then the client connects anew, perhaps to another master
PAUSE_SECONDS = 0.3


class Watcher:
    """`run` until cancelled; `judge` at the end."""

    def __init__(self, world: World, kinds: Collection[str]) -> None:
        self.world, self.kinds, self.rng = world, kinds, world.fork()
        self.position = 0  # everything up to here has been seen; 0: begin anew
        self.expired = 0
        self.seen = 0  # revisions

    async def run(self) -> None:
        while True:
            leader = self.world.leader()
            try:
                if leader is not None and leader.core is not None and leader.core.leading() is not None:
                    await self._watch(leader.core)
            except Expired:
                self.expired += 1
                self.position = 0
            except (Fault, TimeoutError):
                pass
            await asyncio.sleep(self.rng.uniform(0, PAUSE_SECONDS))

    async def _watch(self, core: Master) -> None:
        if not self.position:
            self.position = (await core.service.list(c.ListRequest(kind="Namespace"))).revision
        request = c.WatchRequest(kinds=sorted(self.kinds), from_revision=self.position)
        async with aclosing(core.service.watch(request)) as batches:  # type: ignore[type-var]
            while True:
                async with asyncio.timeout(self.rng.uniform(0.5, PATIENCE_SECONDS)):
                    batch = await anext(batches)
                self._take(batch)

    def _take(self, batch: c.WatchBatch) -> None:
        """Compares the batch with what etcd has committed since the last one."""
        if batch.revision < self.position:
            raise Broken(f"a watch went back from revision {self.position} to {batch.revision}")
        told: dict[int, list[str]] = {}
        for event in batch.events:
            message = KINDS[event.object.kind].FromString(event.object.body)
            key = Key(event.object.kind, message.metadata.namespace, message.metadata.name)
            told.setdefault(event.object.revision, []).append(str(key))
        if list(told) != sorted(told):
            raise Broken(f"a watch told revisions out of order: {list(told)}")
        self.world.watchdog.look()
        for revision in range(self.position + 1, batch.revision + 1):
            truth = sorted(map(str, self._truth(revision)))
            if truth != sorted(told.pop(revision, [])):
                raise Broken(f"a watch after {self.position} told revision {revision} wrongly; it changed {truth}")
            self.seen += 1
        if told:
            raise Broken(f"a watch at {self.position} told revisions from elsewhere: {sorted(told)}")
        self.position = batch.revision

    def _truth(self, revision: int) -> list[Key]:
        return [key for key in self.world.watchdog.committed.get(revision, ()) if key.kind in self.kinds]

    def judge(self) -> None:
        """Raises Broken when it is behind at the end, or was told Expired without a reason."""
        newest = max((revision for revision in self.world.watchdog.committed if self._truth(revision)), default=0)
        if self.position < newest:
            raise Broken(f"a watch has seen revisions up to {self.position} only, the newest is {newest}")
        if self.expired and not self.world.compactions:
            raise Broken(f"a watch expired {self.expired} times, and history was never compacted")
