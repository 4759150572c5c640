"""Evict: a deletion that asks the disruption budgets first (policy/v1 Eviction)."""

from __future__ import annotations

from collections.abc import Callable

from shoal.master.api import admission
from shoal.master.api.faults import Invalid, failure_of
from shoal.master.api.writes import envelope_of
from shoal.master.controllers.base import active, terminate, terminating
from shoal.master.model import Change, Conflict, Fault, Key, NotFound, Record, key_of
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
                raise _blocked(key, budget, why)
        change = terminate(pod, self._now())
        if request.dry_run or change is None:
            return c.WriteResult(object=envelope_of(record), action="deleted")
        await self._take([budget for budget in counting if not budgets.bypasses(budget, pod)], pod)
        return await self._end(change)

    async def _take(self, counting: list[o.PodDisruptionBudget], pod: o.Pod) -> None:
        """Raises Blocked when somebody else was faster. (What other budgets have given then is back in two minutes.)"""
        if not counting:
            return
        results = await self._store.write([budgets.grant(budget, pod, self._now()) for budget in counting])
        for budget, result in zip(counting, results, strict=True):
            if isinstance(result, Fault):
                raise result
            if result is None or not budgets.granted(result.message, pod):
                raise _blocked(key_of(pod), budget, "other evictions have used it up")

    async def _end(self, change: Change) -> c.WriteResult:
        (done,) = await self._store.write([change])
        if isinstance(done, Fault):
            raise done
        return c.WriteResult(object=envelope_of(done) if isinstance(done, Record) else None, action="deleted")


def _blocked(key: Key, budget: o.PodDisruptionBudget, why: str) -> Blocked:
    return Blocked(f"{key} cannot be evicted now: PodDisruptionBudget {budget.metadata.name}: {why}")
