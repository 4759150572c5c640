"""One hollow node: the real session over pods that are not there. What it knows is in memory only."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import shoal
from shoal.agent.assignments import Change
from shoal.agent.hollow.pods import HollowPods
from shoal.agent.outbox import Outbox
from shoal.agent.session import Connector, LinkLost, Session, SessionConfig
from shoal.agent.state import Position
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

SPACE = uuid.UUID("6f2c1a54-3b0d-4a52-9a5e-7d7a3f0f6f10")  # names in it become identities: the same at each start
HOSTNAME, ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"
REFUSE_S = 10.0
HOLLOW = "this node is hollow (`shoal agent --hollow`): no containers run on it"
Later = Callable[[float, Callable[[], None]], object]


@dataclass(frozen=True, slots=True)
class HollowConfig:
    """What the nodes of one process have in common. `zones` 0: none is said."""

    masters: Sequence[str]
    prefix: str = "hollow-"
    first: int = 0
    cpu: str = "4"
    memory: str = "32Gi"
    pods: int = 110
    labels: Mapping[str, str] = field(default_factory=dict)
    zones: int = 0
    start_s: float = 0.0  # from its assignment until a pod runs

    def name(self, index: int) -> str:
        return f"{self.prefix}{self.first + index}"

    def labels_of(self, index: int) -> dict[str, str]:
        zone = {ZONE: f"zone-{(self.first + index) % self.zones}"} if self.zones else {}
        return {HOSTNAME: self.name(index), **zone, **self.labels}


class HollowNode:
    """Implements session.Holder. `session` runs until it is cancelled."""

    def __init__(
        self,
        config: HollowConfig,
        index: int,
        report: s.NodeReport,
        connector: Connector,
        rng: random.Random,
        now: Callable[[], float],
        later: Later,
        shapes: dict[bytes, bytes] | None = None,
    ) -> None:
        """`report`, and `shapes` (see HollowPods), are shared by all nodes of the process."""
        name = config.name(index)
        self.position = Position()
        self.incarnation = ""
        outbox = Outbox(int(now() * 1000))  # grows from one start to the next, as the clock does
        self.pods = HollowPods(name, outbox.put, now, later, config.start_s, shapes)
        self.session = Session(
            SessionConfig(
                node=name,
                masters=config.masters,
                instance_id=str(uuid.uuid5(SPACE, name)),
                boot_id=str(uuid.uuid5(SPACE, f"{name} boot")),
                version=shoal.__version__,
                labels=config.labels_of(index),
                routes=False,
            ),
            connector,
            self,
            outbox,
            lambda: report,
            self._open,
            rng,
        )
        self._connector = connector
        self._refusing: set[asyncio.Task[None]] = set()

    def held(self) -> list[s.HeldPod]:
        return self.pods.held()

    async def welcome(self, welcome: s.Welcome) -> None:
        if welcome.cluster_incarnation != self.incarnation:
            self.incarnation, self.position = welcome.cluster_incarnation, Position()
        self.pods.use_range(welcome.pod_cidr)

    async def apply(self, change: Change) -> None:
        if change.complete:
            self.pods.keep_only(change.pods)
        for uid, pod in change.pods.items():
            self.pods.assign(uid, pod)
        for uid in change.removed_pods:
            self.pods.remove(uid)
        self.position = change.position

    def _open(self, request: s.Open, address: str) -> None:
        """Logs, exec and the like: nothing is here that could answer, and the answer says so."""
        task = asyncio.get_running_loop().create_task(self._refuse(request, address))
        self._refusing.add(task)
        task.add_done_callback(self._refusing.discard)

    async def _refuse(self, request: s.Open, address: str) -> None:
        try:
            async with asyncio.timeout(REFUSE_S):
                stream = await self._connector.tunnel(address)
                await stream.send(s.TunnelFrame(hello=s.TunnelHello(id=request.id)))
                await stream.send(s.TunnelFrame(end=s.TunnelEnd(exit_code=1, error=HOLLOW)))
                await stream.close()
        except (LinkLost, TimeoutError):
            pass  # the master tells its caller that nothing came


def node_report(config: HollowConfig) -> s.NodeReport:
    """Without an address: nobody is to make routes to it."""
    amounts = {"cpu": config.cpu, "memory": config.memory, "pods": str(config.pods), "ephemeral-storage": "100Gi"}
    quantities = {name: o.Quantity(text=text) for name, text in amounts.items()}
    return s.NodeReport(
        capacity=quantities,
        allocatable=quantities,
        info=o.NodeSystemInfo(
            osImage="hollow",
            containerRuntimeVersion=f"hollow://{shoal.__version__}",
            kubeletVersion=shoal.__version__,
            operatingSystem="linux",
            architecture="amd64",
        ),
        conditions=[o.Condition(type=kind, status="True") for kind in ("RuntimeReady", "NetworkReady")],
    )
