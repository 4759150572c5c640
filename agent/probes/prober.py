"""The node's prober: one timer for the tries of all containers, and the tries themselves.

The edge around state.py. What is the same again is never told (pods/probing.py).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from shoal.agent.pods.probing import STARTUP, Target, Verdict
from shoal.agent.probes import checks
from shoal.agent.probes.checks import Check, HealthCheck, Runner, Where
from shoal.agent.probes.state import Outcome, RunState, first_try, next_try
from shoal.proto.v1 import objects_pb2 as o

log = logging.getLogger("shoal.agent.probes")
RESULTS = {True: "passed", False: "failed", None: "unknown"}


class ProbeMeter(Protocol):
    def observe_probe(self, kind: str, how: str, result: str, seconds: float) -> None: ...


class NoMeter:
    def observe_probe(self, kind: str, how: str, result: str, seconds: float) -> None:
        del kind, how, result, seconds


@dataclass(slots=True, eq=False)
class _Watched:
    """One run. `probes` by kind."""

    target: Target
    state: RunState
    probes: dict[str, _Probe] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Probe:
    """One probe of one run. `due` is loop time; `queued` names its one valid entry in the heap (0: it has none)."""

    run: _Watched
    kind: str
    probe: o.Probe
    check: Check
    due: float
    queued: int = 0
    trying: asyncio.Task[None] | None = None


class LiveProber:
    """pods.probing.Prober. `now` is wall time, `rng` spreads the first tries."""

    def __init__(
        self,
        runner: Runner,
        now: Callable[[], float],
        rng: random.Random,
        *,
        health: HealthCheck | None = None,
        meter: ProbeMeter | None = None,
    ) -> None:
        self.on_verdict: Callable[[Verdict], None] = lambda verdict: None
        self._runner, self._now, self._rng = runner, now, rng
        self._health, self._meter = health, meter or NoMeter()
        self._runs: dict[tuple[str, str], _Watched] = {}
        self._heap: list[tuple[float, int, _Probe]] = []
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None

    # ---- the port ----
    def watch(self, target: Target) -> None:
        key = target.id.pod_uid, target.id.name
        known = self._runs.get(key)
        if known is not None and known.target.id == target.id and known.target.probes == target.probes:
            self._move(known, target)
            return
        self.forget(*key)
        if not target.probes:
            return
        state = RunState(target.id, target.probes, started=target.started, ready=target.ready)
        run = self._runs[key] = _Watched(target, state)
        now, time = self._now(), asyncio.get_running_loop().time()
        for kind, probe in state.probes.items():
            due = time + first_try(target, probe.rules, now, self._rng.random())
            run.probes[kind] = _Probe(run, kind, target.probes[kind], self._check(target, kind), due)
        self._queue_allowed(run)

    def forget(self, pod_uid: str, container: str = "") -> None:
        names = [container] if container else [name for uid, name in self._runs if uid == pod_uid]
        for name in names:
            run = self._runs.pop((pod_uid, name), None)
            for probe in run.probes.values() if run is not None else ():
                probe.queued = 0
                if probe.trying is not None:
                    probe.trying.cancel()

    async def close(self) -> None:
        tries = [probe.trying for probe in self._probes() if probe.trying is not None]
        for uid, name in list(self._runs):
            self.forget(uid, name)
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()
        await asyncio.gather(*tries, return_exceptions=True)

    def _probes(self) -> Iterator[_Probe]:
        return (probe for run in self._runs.values() for probe in run.probes.values())

    def _move(self, run: _Watched, target: Target) -> None:
        """The same run with another address, or other ports: thresholds and ticks go on."""
        changed = (run.target.host, run.target.ports) != (target.host, target.ports)
        run.target = target
        for probe in run.probes.values() if changed else ():
            probe.check = self._check(target, probe.kind)

    def _check(self, target: Target, kind: str) -> Check:
        where = Where(target.id, target.host, target.ports)
        return checks.check_of(target.probes[kind], where, self._runner, self._health)

    # ---- ticks ----
    def _queue_allowed(self, run: _Watched) -> None:
        """Those that may be asked, and are not yet about to be."""
        time = asyncio.get_running_loop().time()
        for probe in run.probes.values():
            if probe.queued == 0 and probe.trying is None and run.state.may_ask(probe.kind):
                self._queue(probe, max(probe.due, time))

    def _queue(self, probe: _Probe, due: float) -> None:
        probe.due, probe.queued = due, next(self._numbers)
        heapq.heappush(self._heap, (due, probe.queued, probe))
        self._arm()

    def _arm(self) -> None:
        """One timer, for the earliest."""
        while self._heap and self._heap[0][2].queued != self._heap[0][1]:
            heapq.heappop(self._heap)
        if not self._heap:
            return
        due = self._heap[0][0]
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        time = loop.time()
        while self._heap and self._heap[0][0] <= time:
            _, number, probe = heapq.heappop(self._heap)
            if probe.queued == number:
                probe.queued = 0
                probe.trying = loop.create_task(self._try(probe))
        self._arm()

    # ---- tries ----
    async def _try(self, probe: _Probe) -> None:
        loop = asyncio.get_running_loop()
        at, begin = self._now(), loop.time()
        rules = probe.run.state.probes[probe.kind].rules
        outcome = await self._ask(probe, rules.timeout_s)
        seconds = loop.time() - begin
        self._meter.observe_probe(probe.kind, probe.check.how, RESULTS[outcome.passed], seconds)
        probe.trying = None
        probe.due = next_try(probe.due, rules.period_s, loop.time())
        verdict = probe.run.state.tried(probe.kind, outcome, at, round(seconds * 1000))
        if verdict is not None:
            self._tell(verdict)
        if self._runs.get((probe.run.target.id.pod_uid, probe.run.target.id.name)) is not probe.run:
            return  # whoever heard the verdict has ended it
        if verdict is not None and verdict.kind == STARTUP:
            self._queue_allowed(probe.run)
        elif probe.run.state.may_ask(probe.kind):
            self._queue(probe, probe.due)

    async def _ask(self, probe: _Probe, timeout_s: float) -> Outcome:
        try:
            return await checks.asked(probe.check, timeout_s)
        except Exception as fault:  # one container's probe must not end the others'
            log.exception("the %s probe of %s failed to ask", probe.kind, probe.run.target.id)
            return Outcome(None, f"{type(fault).__name__}: {fault}")

    def _tell(self, verdict: Verdict) -> None:
        try:
            self.on_verdict(verdict)
        except Exception:
            log.exception("the verdict on %s was not taken", verdict.id)
