"""A prober and hooks in memory, for unit tests and the simulation. Deterministic: all passes unless told otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from shoal.agent.pods.probing import LIVENESS, Target, Verdict
from shoal.agent.runtime.port import ContainerID
from shoal.proto.v1 import objects_pb2 as o


class FakeProber:
    """Each watched container passes its startup and readiness probes at once, unless its name is in `failing`;
    `tell` says any verdict by hand."""

    def __init__(self) -> None:
        self.on_verdict: Callable[[Verdict], None] = lambda verdict: None
        self.targets: dict[tuple[str, str], Target] = {}
        self.failing: set[str] = set()

    def watch(self, target: Target) -> None:
        self.targets[target.id.pod_uid, target.id.name] = target
        if target.id.name in self.failing:
            return
        for kind in target.probes:
            if kind != LIVENESS:
                asyncio.get_running_loop().call_soon(self._pass, Verdict(target.id, kind, True, "passed"))

    def _pass(self, verdict: Verdict) -> None:
        target = self.targets.get((verdict.id.pod_uid, verdict.id.name))
        if target is not None and target.id == verdict.id:
            self.on_verdict(verdict)

    def tell(self, verdict: Verdict) -> None:
        self._pass(verdict)

    def forget(self, pod_uid: str, container: str = "") -> None:
        for key in [key for key in self.targets if key[0] == pod_uid and container in ("", key[1])]:
            del self.targets[key]

    async def close(self) -> None:
        self.targets.clear()


class FakeHooks:
    """Every hook goes well at once; `faults` by container name says why not, `seconds` how long it takes."""

    def __init__(self) -> None:
        self.ran: list[tuple[ContainerID, str]] = []
        self.faults: dict[str, str] = {}
        self.seconds = 0.0

    async def run(
        self, id: ContainerID, handler: o.LifecycleHandler, host: str, ports: Mapping[str, int], timeout_s: float
    ) -> str:
        self.ran.append((id, str(handler).strip()))
        sleep = float(handler.sleep.seconds) if handler.HasField("sleep") else self.seconds
        await asyncio.sleep(min(sleep, timeout_s))
        return "its time was up" if sleep > timeout_s else self.faults.get(id.name, "")
