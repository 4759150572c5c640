"""Why: what was decided about a pod's place, from what, and what would change it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Protocol

from shoal.master.api import admission
from shoal.master.api.faults import Invalid
from shoal.master.model import FINAL_PHASES, Key, NotFound, Unavailable
from shoal.master.ports import ApiStore
from shoal.master.scheduler.account import Account, account
from shoal.master.scheduler.advice import Adviser
from shoal.master.scheduler.classes import compile_class
from shoal.master.scheduler.core import Scheduler
from shoal.master.scheduler.explain import Explanation, spell
from shoal.master.scheduler.profiles import Profile
from shoal.master.scheduler.snapshot import Snapshot
from shoal.master.scheduling.decisions import Decision, Decisions
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o

AT_ONCE = 2  # questions that are worked on: each has a copy of the snapshot
WAITING = 32  # questions that wait for their turn
ADVICE_SECONDS = 1.0  # of looking for advice; what was found by then is told


class SchedulerFace(Protocol):
    """The running scheduler."""

    decisions: Decisions

    @property
    def snapshot(self) -> Snapshot: ...


class Why:
    """Raises Fault."""

    def __init__(
        self,
        store: ApiStore,
        scheduler: Callable[[], SchedulerFace | None],
        profiles: Mapping[str, Profile],
        now: Callable[[], float],
    ) -> None:
        self._store, self._scheduler, self._profiles, self._now = store, scheduler, profiles, now
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._asked = 0

    async def why(self, request: c.WhyRequest) -> c.WhyResponse:
        key = admission.normal_key(request.pod)
        if key.kind != "Pod":
            raise Invalid(f"why is asked of pods, not of a {key.kind}")
        if self._asked >= AT_ONCE + WAITING:
            raise Unavailable(f"{self._asked} such questions are being answered: ask again later")
        self._asked += 1
        try:
            return await self._in_turn(key)
        finally:
            self._asked -= 1

    async def _in_turn(self, key: Key) -> c.WhyResponse:
        async with self._gate:
            pod = self._store.view.get(*key)
            if not isinstance(pod, o.Pod):
                raise NotFound(f"there is no {key}")
            running = self._scheduler()
            if running is None:
                raise Unavailable("no scheduler runs here: ask again")
            return await self._answer(pod, running)

    async def _answer(self, pod: o.Pod, running: SchedulerFace) -> c.WhyResponse:
        uid = pod.metadata.uid
        decision = running.decisions.of(uid)
        response = c.WhyResponse(node=pod.spec.nodeName, profile=pod.spec.schedulerName)
        if pod.spec.nodeName and (decision is None or decision.node != pod.spec.nodeName):
            decision = None  # somebody else placed it, or it was before this master's time
        if decision is not None:
            _tell(response, decision)
        waits = not pod.spec.nodeName and pod.status.phase not in FINAL_PHASES and not pod.spec.schedulingGates
        if decision is not None and decision.account is not None and not waits:
            return response
        snapshot, scheduler = running.snapshot.clone(), Scheduler(self._profiles)
        snapshot.undo(uid)
        known = scheduler.frame(snapshot, compile_class(pod))
        if decision is None or decision.account is None:
            _account(response, account(snapshot, known))
            response.revision = response.revision or snapshot.revision
        if waits:
            found = self._store.view.all("PriorityClass")
            classes = {one.metadata.name: one.value for one in found if isinstance(one, o.PriorityClass)}
            await self._advise(response, Adviser(snapshot, scheduler, known.pods, classes))
        return response

    async def _advise(self, response: c.WhyResponse, adviser: Adviser) -> None:
        response.advised = not adviser.pods.group  # nothing is tried for members of gangs
        until = asyncio.get_running_loop().time() + ADVICE_SECONDS
        for one in adviser.steps():
            if one is not None:
                change = json.dumps(dict(one.change))
                response.advice.add(kind=one.kind, text=one.text, node=one.node, change=change)
            if asyncio.get_running_loop().time() > until:
                return
            await asyncio.sleep(0)


def _tell(response: c.WhyResponse, decision: Decision) -> None:
    response.kept = True
    response.node = decision.node
    response.nominated = decision.why is not None and bool(decision.node)
    response.at, response.revision = decision.at, decision.revision
    response.waited_seconds, response.attempts = decision.waited, decision.attempts
    for victim in decision.victims:
        response.victims.add(kind=victim.key.kind, namespace=victim.key.namespace, name=victim.key.name)
    if decision.account is not None:
        _account(response, decision.account)
    if decision.why is not None:
        response.message = decision.why.message
        _rejected(response, decision.why)


def _account(response: c.WhyResponse, found: Account) -> None:
    response.nodes, response.open, response.alike = found.nodes, found.open, found.alike
    for one in found.best:
        candidate = response.best.add(node=one.node, score=one.score)
        for part in one.parts:
            candidate.parts.add(name=part.name, weight=part.weight, value=part.value)
    if not response.rejected:
        _rejected(response, found.rejected)


def _rejected(response: c.WhyResponse, why: Explanation) -> None:
    """The most frequent first."""
    del response.rejected[:]
    del response.short[:]
    for reason, nodes in sorted(why.counts, key=lambda pair: (-pair[1], pair[0])):
        response.rejected.add(reason=reason, nodes=nodes)
    for resource, lacking in why.margins:
        response.short.add(resource=resource, amount=spell(resource, lacking))
