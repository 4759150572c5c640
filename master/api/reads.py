"""Get, List and Watch: stored bytes passed through, never encoded again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing

from shoal.master.api import admission
from shoal.master.api.faults import Invalid, Timeout
from shoal.master.api.writes import envelope_of
from shoal.master.model import CLUSTER_SCOPED, KINDS, NotFound, Object
from shoal.master.ports import ReadFace
from shoal.proto.selector import FieldSelector, SelectorError, parse_fields, parse_selector
from shoal.proto.v1 import cluster_pb2 as c

PATIENCE = 10.0  # seconds until a revision that was asked for is here


class Reads:
    """The reading verbs over the store's cache."""

    def __init__(self, store: ReadFace) -> None:
        self._store = store

    async def get(self, request: c.GetRequest) -> c.Object:
        key = admission.normal_key(request.key)
        await self.reach(request.min_revision)
        record = self._store.view.record(key)
        if record is None:
            raise NotFound(f"{key} not found")
        return envelope_of(record)

    async def list(self, request: c.ListRequest) -> c.ListResponse:
        predicate = chooser([request.kind], "", request.label_selector, request.field_selector)
        if request.limit < 0:
            raise Invalid(f"limit must not be negative, it is {request.limit}")
        await self.reach(request.min_revision)
        namespace = None if request.kind in CLUSTER_SCOPED or not request.namespace else request.namespace
        page = self._store.list_page(request.kind, namespace, predicate, request.limit, request.continue_token)
        return c.ListResponse(
            objects=[envelope_of(record) for record in page.records],
            revision=page.revision,
            continue_token=page.continue_token,
            remaining=page.remaining,
        )

    async def watch(self, request: c.WatchRequest) -> AsyncIterator[c.WatchBatch]:
        predicate = chooser(request.kinds, request.namespace, request.label_selector, request.field_selector)
        await self.reach(0)
        async with aclosing(self._store.watch(set(request.kinds), request.from_revision, predicate)) as batches:
            async for batch in batches:
                events = [c.WatchEvent(type=event.type, object=envelope_of(event.record)) for event in batch.events]
                yield c.WatchBatch(revision=batch.revision, events=events)

    async def reach(self, revision: int) -> None:
        """Waits until the view has this revision and may be answered from. Raises Fault."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._store.readable(revision)
        except TimeoutError:
            have = self._store.view.revision
            raise Timeout(
                f"revision {revision} has not come within {PATIENCE:g} s; here is {have}: ask again"
            ) from None


def chooser(kinds: Iterable[str], namespace: str, labels: str, fields: str) -> Callable[[Object], bool] | None:
    """What a reader wants to see; None: everything. Raises Invalid."""
    names = list(kinds)
    if not names:
        raise Invalid(f"no kind is named: choose from {', '.join(KINDS)}")
    for kind in names:
        admission.check_kind(kind)
    try:
        selector = parse_selector(labels)
        by_kind: dict[str, FieldSelector] = {kind: parse_fields(fields, kind) for kind in names} if fields else {}
    except SelectorError as error:
        raise Invalid(str(error)) from None
    if selector.empty and not by_kind and not namespace:
        return None

    def chosen(obj: Object) -> bool:
        if namespace and obj.kind not in CLUSTER_SCOPED and obj.metadata.namespace != namespace:
            return False
        if not selector.empty and not selector.matches(obj.metadata.labels):
            return False
        return not by_kind or by_kind[obj.kind].matches(obj)

    return chosen
