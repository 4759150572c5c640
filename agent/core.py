"""The agent as a whole, on given ports: the program and the simulation run the same. No I/O of its own."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import shoal
from shoal.agent.copying import Copier
from shoal.agent.deathbook import DeathBook
from shoal.agent.eviction import DEFAULT_EVICTION, Eviction, ImageGC
from shoal.agent.images.port import Images
from shoal.agent.logs import LogFiles
from shoal.agent.machine import Machine
from shoal.agent.network.port import Network
from shoal.agent.node import NodeReporter, Reserved, allocatable
from shoal.agent.objects import MemoryObjects
from shoal.agent.outbox import Outbox
from shoal.agent.pods import instructions as i
from shoal.agent.pods.backoff import retry_delay
from shoal.agent.pods.probing import Hooks, Prober
from shoal.agent.pods.spec import NodeFacts
from shoal.agent.pods.worker import Meter, NodePorts, Worker
from shoal.agent.pressure_watch import Ports, PressureWatch
from shoal.agent.reclaim import Reclaimer
from shoal.agent.runtime.port import ContainerID, Runtime, RuntimeEvent, RuntimeFault, Usage
from shoal.agent.sampling import Sampler
from shoal.agent.session import Connector, Session, SessionConfig
from shoal.agent.state import State
from shoal.agent.storage import Folders, StorageWatch
from shoal.agent.sync import NodeNetwork, Sync
from shoal.agent.tunnels import Tunnels
from shoal.agent.volumes.port import Volumes
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

log = logging.getLogger("shoal.agent")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    node: str
    address: str  # of the node, as other nodes and the master reach it
    masters: Sequence[str]  # host:port
    log_root: str
    labels: Mapping[str, str] = field(default_factory=dict)
    metrics_port: int = 0
    resolv_conf: str = ""
    hosts: str = ""  # the node's own /etc/hosts
    seccomp_root: str = ""  # the folder of Localhost profiles
    reserved: Reserved = field(default_factory=Reserved)
    devices: Mapping[str, int] = field(default_factory=dict)  # extended resources, by name
    runs_root: str = ""  # the runtime's folder of a pod lies in it
    salt: bytes = field(default=b"", repr=False)  # random, of this process: see NodeFacts
    eviction: Eviction = DEFAULT_EVICTION
    image_gc: ImageGC = field(default_factory=ImageGC)


@dataclass(frozen=True, slots=True)
class AgentPorts:
    runtime: Runtime
    images: Images
    network: Network
    machine: Machine
    state: State
    logs: LogFiles
    connector: Connector
    volumes: Volumes
    prober: Prober
    hooks: Hooks
    objects: MemoryObjects
    copier: Copier | None = None


def node_facts(config: AgentConfig, machine: Machine) -> NodeFacts:
    """What pods are told and given of their node."""
    return NodeFacts(
        name=config.node,
        address=config.address,
        memory_bytes=machine.capacity().memory_bytes,
        log_root=config.log_root,
        resolv_conf=config.resolv_conf,
        allocatable=allocatable(machine.capacity(), config.reserved),
        hosts=config.hosts,
        seccomp_root=config.seccomp_root,
        boot_id=machine.info().boot_id,
        version=shoal.__version__,
        salt=config.salt,
    )


def node_ports_of(ports: AgentPorts, deaths: DeathBook) -> NodePorts:
    """The part of the ports that pods are served with."""
    return NodePorts(
        ports.runtime,
        ports.images,
        ports.network,
        ports.state,
        ports.logs,
        ports.volumes,
        ports.prober,
        ports.hooks,
        ports.objects,
        deaths,
    )


class Agent:
    """`run` goes on until it is cancelled; that touches no container, and another Agent on the same ports takes up
    where this one was."""

    def __init__(
        self,
        config: AgentConfig,
        ports: AgentPorts,
        now: Callable[[], float],
        rng: random.Random,
        meter: Meter | None = None,
    ) -> None:
        """`now` is CLOCK_REALTIME."""
        self.restored = False
        self.usage: Mapping[ContainerID, Usage] = {}
        self.session: Session | None = None
        self._config = config
        self._ports = ports
        self._now = now
        self._rng = rng
        machine = ports.machine
        self._images_stale = asyncio.Event()
        self.reporter = NodeReporter(
            machine,
            ports.images,
            config.address,
            shoal.__version__,
            config.metrics_port,
            config.reserved,
            config.devices,
        )
        self.outbox = Outbox(0)
        self.deaths = DeathBook(ports.state, lambda: self.outbox)
        node_ports = node_ports_of(ports, self.deaths)
        self.worker = Worker(
            node_ports, node_facts(config, machine), now, self._send, meter, self._images_stale.set, self._tell
        )
        self.network = NodeNetwork(ports.network, self._network_changed)
        self.reclaimer = Reclaimer(ports.volumes, ports.objects, self.worker.machines, self._volumes_removed)
        folders = Folders(config.log_root, config.runs_root)
        self.storage = StorageWatch(ports.volumes, self.worker.machines, self.worker.post, folders)
        self.pressure = self._pressure_watch(folders)
        self.sync = Sync(config.node, node_ports, self.worker, self.network, self.reclaimer, now, self.pressure.refusal)
        self.tunnels = Tunnels(
            ports.connector,
            self.worker,
            ports.runtime,
            ports.images,
            ports.logs,
            config.log_root,
            self._images_stale.set,
            Sampler(ports.runtime, machine),
            ports.copier,
        )

    def _pressure_watch(self, folders: Folders) -> PressureWatch:
        ports, config = self._ports, self._config
        return PressureWatch(
            Ports(ports.machine, ports.runtime, ports.images, ports.volumes),
            config.eviction,
            config.image_gc,
            self.worker.machines,
            self.worker.post,
            folders,
            self._now,
            self._pressure_changed,
            self._images_stale.set,
        )

    @property
    def connected(self) -> bool:
        return self.session is not None and self.session.connected

    def unready(self) -> list[str]:
        """Why this node cannot take pods now; empty when it can."""
        checks = {
            "state": "" if self.restored else "the node's pods have not been taken up yet",
            "runtime": self.reporter.runtime_fault,
            "network": self.reporter.network_fault,
            "session": "" if self.connected else "no session with a master",
        }
        return [f"{name}: {fault}" for name, fault in checks.items() if fault]

    async def run(self) -> None:
        """Takes up what is on the node, then serves. Raises StateFault when its data folder cannot be used."""
        fresh = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        identity = await self._ports.state.begin(fresh, self._now())
        self.outbox = Outbox(identity.agent_start)
        self.reporter.network_fault = self.network.fault
        await self.reporter.refresh_images()
        self.pressure.look()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch_runtime(), name="runtime events")
                group.create_task(self.network.run(), name="node network")
                group.create_task(self._watch_images(), name="images")
                await self.deaths.restore()
                await self.sync.restore()
                self.restored = True
                await self.network.settled()
                group.create_task(self.reclaimer.run(), name="reclaim")
                group.create_task(self.storage.run(), name="storage")
                group.create_task(self.pressure.run(), name="pressure")
                self.session = self._session(identity.instance_id)
                group.create_task(self.session.run(), name="session")
        finally:
            await self.tunnels.close()
            await self.worker.close()
            await self.deaths.close()

    def _session(self, instance_id: str) -> Session:
        config = SessionConfig(
            node=self._config.node,
            masters=self._config.masters,
            instance_id=instance_id,
            boot_id=self._ports.machine.info().boot_id,
            version=shoal.__version__,
            labels=dict(self._config.labels),
        )
        return Session(
            config, self._ports.connector, self.sync, self.outbox, self.reporter.report, self._open, self._rng
        )

    def _open(self, request: s.Open, address: str) -> None:
        self.tunnels.open(request, address)

    # ---- what the node itself says ----
    async def _watch_runtime(self) -> None:
        """Exits as they come; after the runtime was away, everything that it knows."""
        failures = 0
        while True:
            fault = await self._listen()
            failures = failures + 1 if fault else 0
            if fault:
                log.warning("the node's runtime does not answer: %s; containers go on, a new contact is tried", fault)
                self._runtime_changed(fault)
            await asyncio.sleep(retry_delay(failures))

    async def _listen(self) -> str:
        """Until the contact is lost: a spawner that is back at once is no fault. Else why there is none."""
        events = self._ports.runtime.events()
        first: asyncio.Future[RuntimeEvent] = asyncio.ensure_future(anext(events))
        listed = False
        try:
            await asyncio.sleep(0)  # listening begins before the list, so that no exit falls between them
            self.worker.observed(await self._ports.runtime.list())
            listed = True
            self._runtime_changed("")
            self.worker.runtime_event(await first)
            async for event in events:
                self.worker.runtime_event(event)
        except (RuntimeFault, OSError) as fault:
            return "" if listed else str(fault)
        except StopAsyncIteration:
            pass
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            if (close := getattr(events, "aclose", None)) is not None:
                await close()
        return ""

    async def _watch_images(self) -> None:
        while True:
            await self._images_stale.wait()
            self._images_stale.clear()
            await self.reporter.refresh_images()
            self.worker.broadcast(i.ImagesChanged())
            self._node_changed()

    def _runtime_changed(self, fault: str) -> None:
        self.reporter.runtime_fault = fault
        self._node_changed()

    def _network_changed(self) -> None:
        self.reporter.network_fault = self.network.fault
        self._node_changed()

    def _send(self, report: s.PodReport) -> None:
        self.outbox.put(report)

    def _tell(self, happening: s.Happening) -> None:
        self.outbox.put_happening(happening)

    def _pressure_changed(self, conditions: Sequence[o.Condition]) -> None:
        self.reporter.pressures = conditions
        self._node_changed()

    def _volumes_removed(self, names: Sequence[str]) -> None:
        if self.session is not None:
            self.session.volumes_removed(names)

    def _node_changed(self) -> None:
        if self.session is not None:
            self.session.node_changed()

    async def refresh_usage(self) -> None:
        """Asks the runtime what the containers use, for the metrics; what it said last stays when it is away."""
        try:
            self.usage = await self._ports.runtime.usage()
        except (RuntimeFault, OSError) as fault:
            log.warning("what the containers use is not known: %s", fault)
