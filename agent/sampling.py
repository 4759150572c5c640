"""What containers and the node use now: CPU as a rate between two samples, memory as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from shoal.agent.machine import Machine
from shoal.agent.runtime.port import ContainerID, Runtime, Usage
from shoal.proto.v1 import session_pb2 as s

SHORTEST_S = 1.0  # between two samples: less says little
LONGEST_S = 15.0  # more is history


@dataclass(frozen=True, slots=True)
class Sample:
    at: float  # seconds of the loop's clock
    containers: Mapping[ContainerID, Usage]
    node_cpu_seconds: float
    node_memory_bytes: int


class Sampler:
    """Keeps the last sample, so that who asks again soon need not wait."""

    def __init__(self, runtime: Runtime, machine: Machine) -> None:
        self._runtime, self._machine = runtime, machine
        self._lock = asyncio.Lock()
        self._last: Sample | None = None
        self._report: s.UsageReport | None = None

    async def report(self) -> s.UsageReport:
        """Raises RuntimeFault, OSError."""
        async with self._lock:
            now = await self._sample()
            if self._report is not None and self._last is not None and now.at - self._last.at < SHORTEST_S:
                return self._report
            if not _serves(self._last, now):
                await asyncio.sleep(SHORTEST_S)
                self._last, now = now, await self._sample()
            assert self._last is not None
            self._report, self._last = rates(self._last, now), now
            return self._report

    async def _sample(self) -> Sample:
        containers = await self._runtime.usage()
        node = self._machine.usage()
        return Sample(asyncio.get_running_loop().time(), containers, node.cpu_seconds, node.memory_bytes)


def _serves(last: Sample | None, now: Sample) -> bool:
    """Whether rates since `last` say what is the case now."""
    return (
        last is not None
        and SHORTEST_S <= now.at - last.at <= LONGEST_S
        and now.containers.keys() <= last.containers.keys()
    )


def rates(before: Sample, after: Sample) -> s.UsageReport:
    """Of the containers that are in both samples."""
    seconds = max(after.at - before.at, 1e-3)
    report = s.UsageReport(
        node_cpu_cores=max(after.node_cpu_seconds - before.node_cpu_seconds, 0.0) / seconds,
        node_memory_bytes=after.node_memory_bytes,
    )
    for id in sorted(after.containers.keys() & before.containers.keys(), key=str):
        used = after.containers[id]
        report.containers.add(
            pod_uid=id.pod_uid,
            container=id.name,
            cpu_cores=max(used.cpu_seconds - before.containers[id].cpu_seconds, 0.0) / seconds,
            memory_bytes=used.memory_bytes,
        )
    return report
