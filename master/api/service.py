"""The Cluster service as plain async functions over messages; transports and identities are adapters' work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping

from shoal.master.api.evictions import Evictions
from shoal.master.api.images import Images
from shoal.master.api.planning import Planning
from shoal.master.api.reads import Reads
from shoal.master.api.streams import Nodes, Streams
from shoal.master.api.top import Top
from shoal.master.api.why import SchedulerFace, Why
from shoal.master.api.writes import Writes
from shoal.master.ports import ApiStore
from shoal.master.scheduler.profiles import BUILT_IN, Profile
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import session_pb2 as s


class ClusterService:
    """Every verb of cluster.proto. Raises Fault for what concerns the whole call; per object a result says it."""

    def __init__(
        self,
        store: ApiStore,
        nodes: Nodes,
        now: Callable[[], float],
        version: Callable[[], c.VersionResponse],
        profiles: Mapping[str, Profile] = BUILT_IN,
        scheduler: Callable[[], SchedulerFace | None] = lambda: None,
    ) -> None:
        self._store = store  # what a write looks at first must not be stale either: readable() says
        self._writes = Writes(store, now, profiles)
        self._reads = Reads(store)
        self._streams = Streams(store.view, nodes)
        self._top = Top(store.view, nodes)
        self._images = Images(store.view, nodes)
        self._planning = Planning(store, now, version, profiles)
        self._evictions = Evictions(store, now)
        self._why = Why(store, scheduler, profiles, now)
        self._version = version

    async def create(self, request: c.WriteRequest) -> c.WriteResponse:
        await self._store.readable()
        return await self._writes.create(request)

    async def update(self, request: c.WriteRequest) -> c.WriteResponse:
        await self._store.readable()
        return await self._writes.update(request)

    async def apply(self, request: c.WriteRequest) -> c.WriteResponse:
        await self._store.readable()
        return await self._writes.apply(request)

    async def delete(self, request: c.DeleteRequest) -> c.WriteResponse:
        await self._store.readable()
        return await self._writes.delete(request)

    async def scale(self, request: c.ScaleRequest) -> c.WriteResponse:
        await self._store.readable()
        return await self._writes.scale(request)

    async def get(self, request: c.GetRequest) -> c.Object:
        return await self._reads.get(request)

    async def list(self, request: c.ListRequest) -> c.ListResponse:
        return await self._reads.list(request)

    def watch(self, request: c.WatchRequest) -> AsyncIterator[c.WatchBatch]:
        return self._reads.watch(request)

    def logs(self, request: c.LogsRequest) -> AsyncIterator[s.TunnelFrame]:
        return self._streams.logs(request)

    def exec(self, requests: AsyncIterator[c.ExecRequest]) -> AsyncIterator[s.TunnelFrame]:
        return self._streams.exec(requests)

    def attach(self, requests: AsyncIterator[c.AttachRequest]) -> AsyncIterator[s.TunnelFrame]:
        return self._streams.attach(requests)

    def copy(self, requests: AsyncIterator[c.CopyRequest]) -> AsyncIterator[s.TunnelFrame]:
        return self._streams.copy(requests)

    async def top(self, request: c.TopRequest) -> c.TopResponse:
        await self._store.readable()
        return await self._top.top(request)

    def load_image(self, requests: AsyncIterator[c.LoadImageRequest]) -> AsyncIterator[c.LoadImageResponse]:
        return self._images.load(requests)

    def remove_image(self, request: c.RemoveImageRequest) -> AsyncIterator[c.LoadImageResponse]:
        return self._images.remove(request)

    def image(self, request: c.ImageRequest) -> AsyncIterator[c.LoadImageResponse]:
        return self._images.image(request)

    def save_image(self, request: c.SaveImageRequest) -> AsyncIterator[s.TunnelFrame]:
        return self._images.save(request)

    async def plan(self, request: c.PlanRequest) -> c.PlanResponse:
        return await self._planning.plan(request)

    async def carry_out(self, request: c.CarryOutRequest) -> c.CarryOutResponse:
        return await self._planning.carry_out(request)

    async def what_if(self, request: c.WhatIfRequest) -> c.WhatIfResponse:
        return await self._planning.what_if(request)

    async def fit(self, request: c.FitRequest) -> c.FitResponse:
        return await self._planning.fit(request)

    async def rebalance(self, request: c.RebalanceRequest) -> c.RebalanceResponse:
        return await self._planning.rebalance(request)

    async def why(self, request: c.WhyRequest) -> c.WhyResponse:
        await self._store.readable()
        return await self._why.why(request)

    async def evict(self, request: c.EvictRequest) -> c.WriteResponse:
        await self._store.readable()
        return await self._evictions.evict(request)

    async def version(self, request: c.VersionRequest) -> c.VersionResponse:
        return self._version()
