"""Evict: a deletion that asks the disruption budgets first (policy/v1 Eviction)."""

from __future__ import annotations

from collections.abc import Callable

from shoal.master.api import admission
from shoal.master.api.faults import Invalid, failure_of
from shoal.master.api.writes import envelope_of
from shoal.master.controllers.base import active, terminate, terminating
from shoal.master.model import Change, Conflict, Fault, Key, NotFound, Record
from shoal.master.planning import budgets
from shoal.master.stores import WriteFace
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o


class Blocked(Fault):
    """A budget forbids it now; later it may not."""

    reason = "Conflict"


class Evictions:
    """The verb `evict` over the store."""

    def __init__(self, store: WriteFace, now: Callable[[], float]) -> None:
        self._store, self._now = store, now

    async def evict(self, request: c.EvictRequest) -> c.WriteResponse:
        """Raises Invalid for what is no pod; all else is the result's failure."""
        admission.check_request(request.request_id, 1)
        key = admission.normal_key(request.key)
        if key.kind != "Pod":
            raise Invalid(f"a {key.kind} cannot be evicted: only a Pod can")
        try:
            result = await self._evicted(key, request)
        except Fault as fault:
            result = c.WriteResult(failure=failure_of(fault))
        return c.WriteResponse(results=[result], revision=result.object.revision)

    async def _evicted(self, key: Key, request: c.EvictRequest) -> c.WriteResult:
        record = self._store.view.record(key)
        if record is None:
            raise NotFound(f"{key} not found")
        pod = record.message
        assert isinstance(pod, o.Pod)
        if request.uid and pod.metadata.uid != request.uid:
            raise Conflict(f"{key} is another pod now")
        if terminating(pod) or not active(pod):
            return c.WriteResult(object=envelope_of(record), action="unchanged")  # it is leaving, or has ended
        counting = budgets.Guards(self._store.view).of(pod)
        for budget in counting:
            if why := budgets.forbids(budget, pod):
                raise Blocked(f"{key} cannot be evicted now: PodDisruptionBudget {budget.metadata.name}: {why}")
        change = terminate(pod, self._now())
        if request.dry_run or change is None:
            return c.WriteResult(object=envelope_of(record), action="deleted")
        return await self._write(counting, change)

    async def _write(self, counting: list[o.PodDisruptionBudget], change: Change) -> c.WriteResult:
        taken = await self._store.write([budgets.take(budget) for budget in counting]) if counting else []
        for result in taken:
            if isinstance(result, Fault):
                raise result
        (done,) = await self._store.write([change])
        if isinstance(done, Fault):
            raise done
        return c.WriteResult(object=envelope_of(done) if isinstance(done, Record) else None, action="deleted")
