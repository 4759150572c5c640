"""The words between a pod's machine and the prober: what is to be asked of a container, and what came of it.

Plain data.

The prober counts thresholds itself and tells the machine changes only: a probe that says the same again costs the
machine nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shoal.agent.runtime.port import ContainerID
from shoal.proto.v1 import objects_pb2 as o

STARTUP, LIVENESS, READINESS = "startup", "liveness", "readiness"


@dataclass(frozen=True, slots=True)
class Target:
    """One running container and its probes. `host` is the pod's address (the node's with hostNetwork)."""

    id: ContainerID
    host: str
    started_at: float  # CLOCK_REALTIME: initial delays count from here
    probes: Mapping[str, o.Probe]  # startup, liveness, readiness: those that the container has
    ports: Mapping[str, int] = field(default_factory=dict)  # by name
    started: bool = False  # the startup probe has passed before (an agent that starts again)
    ready: bool = False  # what readiness was before


@dataclass(frozen=True, slots=True)
class Probed:
    """One probe's try."""

    kind: str
    at: float
    passed: bool
    message: str
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """A change, after the thresholds: started (True once), ready (True or False), or alive=False (once per run).
    `history` holds the last tries of that probe, oldest first."""

    id: ContainerID
    kind: str
    passed: bool
    message: str
    history: Sequence[Probed] = ()


class Prober(Protocol):
    """Asks; tells verdicts through `on_verdict`."""

    on_verdict: Callable[[Verdict], None]

    def watch(self, target: Target) -> None:
        """Begins, or goes on with changed facts, for this run; the container's earlier run is forgotten."""
        ...

    def forget(self, pod_uid: str, container: str = "") -> None:
        """Ends the probes of a container, or of the whole pod; one in flight is dropped."""
        ...

    async def close(self) -> None: ...


class Hooks(Protocol):
    """Runs one lifecycle handler to its end."""

    async def run(
        self, id: ContainerID, handler: o.LifecycleHandler, host: str, ports: Mapping[str, int], timeout_s: float
    ) -> str:
        """ "" when it went well, else why not. Never takes longer than `timeout_s`."""
        ...
