"""A whole cluster in one thread on virtual time: real master code, real agent code, fake edges, faults from a seed."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry

from shoal.agent.core import Agent, AgentConfig, AgentPorts
from shoal.agent.eviction import parse_eviction
from shoal.agent.images.fake import FakeImages
from shoal.agent.images.port import ImageConfig
from shoal.agent.logs import MemoryLogFiles
from shoal.agent.machine import Amount, Capacity, MachineInfo, MachineUsage, Signals
from shoal.agent.network.fake import FakeNetwork
from shoal.agent.objects import MemoryObjects
from shoal.agent.pods.probing_fake import FakeHooks, FakeProber
from shoal.agent.runtime.fake import Behaviour, FakeRuntime, by_words
from shoal.agent.runtime.port import ContainerID, ContainerSpec, ContainerState
from shoal.agent.session import LinkLost, TunnelStream
from shoal.agent.state import MemoryState
from shoal.agent.volumes.fake import FakeVolumes
from shoal.master.core import Master, Settings
from shoal.master.dispatcher.dispatcher import Config as DispatcherConfig
from shoal.master.election import TaskRenewer
from shoal.master.metrics import Meters
from shoal.master.model import KINDS, Fault, Key, Record, key_of
from shoal.master.store.memory import Faults, Memory, MemoryEtcd
from shoal.proto.v1 import cluster_pb2 as c
from tests.sim.link import AgentEnd, MasterEnd, Weather, Wire
from tests.sim.loop import START, SimulatedLoop
from tests.sim.placement import ZONE
from tests.sim.watchdog import Broken, Watchdog

WALL_START = 1_700_000_000.0  # CLOCK_REALTIME when the simulation begins
IMAGE, FULL_IMAGE = "app", "docker.io/library/app:latest"  # pulled: it has no tag
FLAKY = "flaky"  # a command that fails the first time
MIB = 1 << 20
PLENTY = Signals(*(Amount(1024 * MIB, 1024 * MIB) for _ in range(4)))
EVICTION = parse_eviction({"transition_period": "20s"})  # so that a condition is over before a run is


class FakeMachine:
    """A node's hardware; a reboot gives it another boot id."""

    def __init__(self, name: str, milli_cpu: int) -> None:
        self.name, self.boots, self._milli_cpu = name, 0, milli_cpu
        self.left = PLENTY

    def capacity(self) -> Capacity:
        return Capacity(self._milli_cpu, 1024 * MIB, 20, 1024 * MIB)

    def usage(self) -> MachineUsage:
        return MachineUsage(0.0, 0)

    def signals(self) -> Signals:
        return self.left

    def info(self) -> MachineInfo:
        return MachineInfo(f"machine-{self.name}", f"{self.name}-boot-{self.boots}", "6", "sim", "amd64", self.name)


def behaviour(spec: ContainerSpec) -> Behaviour:
    if spec.argv[0] == FLAKY:
        return Behaviour(0.2, 1 if spec.id.attempt == 0 else 0)
    return by_words(spec)


class WatchedRuntime(FakeRuntime):
    """Tells the watchdog of every start."""

    def __init__(self, now: Callable[[], float], node: str, watchdog: Watchdog) -> None:
        super().__init__(now, script=behaviour, start_seconds=0.02, sandbox_seconds=0.01)
        self._node, self._watchdog = node, watchdog

    async def start(self, spec: ContainerSpec) -> ContainerState:
        try:
            self._watchdog.started(self._node, spec.id)
            self._watchdog.in_turn(spec.id, [run.state for run in self._runs.values()])
        except Broken as broken:
            self._watchdog.broken = broken  # an agent takes it for a failed start, and tries again
            raise
        return await super().start(spec)


class SimNode:
    """What a machine keeps when its agent dies, and the agent that runs on it now."""

    def __init__(self, world: World, name: str, index: int) -> None:
        self.world, self.name, self.address = world, name, f"192.168.9.{index}"
        self.machine = FakeMachine(name, 2000)
        self.runtime = WatchedRuntime(world.now, name, world.watchdog)
        self.images = FakeImages()
        self.images.publish(IMAGE, ImageConfig(cmd=("run",)))
        self.network = FakeNetwork()
        self.state = MemoryState()
        self.logs = MemoryLogFiles()
        self.volumes = FakeVolumes()
        self.prober = FakeProber()
        self.hooks = FakeHooks()
        self.objects = MemoryObjects()
        self.wires: list[Wire] = []
        self.reachable = True
        self._task: asyncio.Task[None] | None = None
        self.agent: Agent | None = None

    def start(self) -> None:
        """One agent per data folder: after two faults at once the second start finds the folder locked."""
        if self._task is not None:
            return
        config = AgentConfig(
            self.name,
            self.address,
            tuple(self.world.masters),
            f"/sim/{self.name}",
            {ZONE: f"zone-{int(self.name.split('-')[1]) % 2}"},
            eviction=EVICTION,
        )
        ports = AgentPorts(
            self.runtime,
            self.images,
            self.network,
            self.machine,
            self.state,
            self.logs,
            Connector(self.world, self),
            self.volumes,
            self.prober,
            self.hooks,
            self.objects,
        )
        self.prober.targets.clear()  # it died with the agent before
        self.agent = Agent(config, ports, self.world.now, self.world.fork())
        self._task = asyncio.create_task(self.agent.run(), name=f"agent {self.name}")

    async def stop(self) -> None:
        """kill -9, as far as a task can be killed: containers and disk stay as they are."""
        for wire in self.wires:
            wire.cut()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def short_of_memory(self, short: bool) -> None:
        """What its machine reports from now on; whoever is evicted is evicted here."""
        self.machine.left = replace(PLENTY, memory=Amount(63 * MIB, 1024 * MIB)) if short else PLENTY
        if short:
            self.world.watchdog.were_short.add(self.name)

    def check(self) -> None:
        """Raises what ended the agent, if something did."""
        if self.agent is not None and self.agent.worker.counts.errors:
            raise AssertionError(f"a pod's machine on {self.name} failed: see its traceback with --logs")
        if self._task is not None and self._task.done():
            self._task.result()
            raise AssertionError(f"agent {self.name} ended by itself")

    async def reboot(self) -> None:
        await self.stop()
        self.machine.boots += 1
        self.runtime.reboot()
        self.start()

    def cut(self) -> None:
        for wire in self.wires:
            wire.cut()


class Connector:
    """Reaches the simulated masters by address."""

    def __init__(self, world: World, node: SimNode) -> None:
        self._world, self._node = world, node

    async def connect(self, address: str) -> AgentEnd:
        await asyncio.sleep(self._world.fork().uniform(0.001, 0.02))
        master = self._world.masters.get(address)
        if not self._node.reachable or master is None or master.core is None:
            raise LinkLost(f"{address} does not answer")
        wire = Wire(self._world.fork(), self._world.weather)
        self._node.wires = [w for w in self._node.wires if w.alive] + [wire]
        master.accept(wire, self._node)
        return AgentEnd(wire)

    async def tunnel(self, address: str) -> TunnelStream:
        raise LinkLost("no tunnels in the simulation")


class SimMaster:
    """One master process; its address outlives it."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.address = world, name, f"{name}:7600"
        self.core: Master | None = None
        self.port: Memory | None = None
        self._task: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._wires: list[Wire] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.port = Memory(self.world.etcd, Faults(rng=self.world.fork()))
        settings = Settings(self.name, self.address, DispatcherConfig(heartbeat_period=1.0))
        self.core = Master(
            settings,
            self.port,
            TaskRenewer(self.port, loop.time),
            self.world.now,
            loop.time,
            self.world.fork(),
            Meters(CollectorRegistry()),
        )
        self._task = asyncio.create_task(self.core.run(), name=self.name)

    async def stop(self) -> None:
        """kill -9: the lease is not given back."""
        if self.port is not None:
            self.port.cut_off()
        core, self.core = self.core, None
        for wire in self._wires:
            wire.cut()
        tasks = [*self._serving, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if core is not None:
            await core.close()
        self._task = None

    def accept(self, wire: Wire, node: SimNode) -> None:
        assert self.core is not None
        self._wires = [w for w in self._wires if w.alive] + [wire]
        task = asyncio.create_task(self._serve(self.core, wire, node), name=f"{self.name} serves {node.name}")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, core: Master, wire: Wire, node: SimNode) -> None:
        try:
            await core.serve(MasterEnd(wire), node.name, node.address)
        finally:
            MasterEnd(wire).close()

    def check(self) -> None:
        if self._task is not None and self._task.done():
            self._task.result()
            raise AssertionError(f"{self.name} ended by itself")

    @property
    def leads(self) -> bool:
        return self.core is not None and self.core.leads


@dataclass(frozen=True)
class Acknowledged:
    """A write that a caller was told had succeeded."""

    key: Key
    uid: str
    revision: int


class World:
    """The cluster. `fork()` gives each user of randomness its own, so that one's draws do not move another's."""

    def __init__(self, loop: SimulatedLoop, seed: int, nodes: int, masters: int = 2) -> None:
        self.loop = loop
        self.seed = seed
        self._forks = 0
        self.etcd = MemoryEtcd()
        self.watchdog = Watchdog(self.etcd)
        self.weather = Weather()
        self.masters = {f"master-{i}:7600": SimMaster(self, f"master-{i}") for i in range(masters)}
        self.nodes = {f"node-{i}": SimNode(self, f"node-{i}", i) for i in range(1, nodes + 1)}
        self.acknowledged: list[Acknowledged] = []
        self.log: list[str] = []
        self.verbose = False
        self.compactions = 0  # of etcd's history, by a fault
        self.watched = 0  # revisions that the watching client was told of

    def fork(self) -> random.Random:
        self._forks += 1
        return random.Random(hashlib.sha256(f"{self.seed}/{self._forks}".encode()).digest())

    def now(self) -> float:
        return WALL_START + self.loop.time() - START

    def say(self, text: str) -> None:
        self.log.append(f"{self.loop.time() - START:9.3f} {text}")
        if self.verbose:
            print(self.log[-1])

    def start(self) -> None:
        for master in self.masters.values():
            master.start()
        for node in self.nodes.values():
            node.start()
        self.loop.after_step = self.check

    def check(self) -> None:
        """After every step of the loop."""
        if self.watchdog.broken is not None:
            raise self.watchdog.broken
        if self.etcd.revision != self.watchdog.seen:
            self.watchdog.look()
            for master in self.masters.values():
                if master.core is not None and master.leads:
                    self.watchdog.unchanged(self._fresh(master.core))

    def _fresh(self, core: Master) -> list[Record]:
        found = (core.store.view.record(key) for key in list(self.watchdog.touched))
        return [record for record in found if record is not None]

    def parts_live(self) -> None:
        """Raises what ended an agent or a master, if something did."""
        for node in self.nodes.values():
            node.check()
        for master in self.masters.values():
            master.check()

    async def stop(self) -> None:
        self.loop.after_step = None
        for node in self.nodes.values():
            await node.stop()
        for master in self.masters.values():
            await master.stop()
        self.etcd.close()

    # ---- a client ----
    def leader(self) -> SimMaster | None:
        return next((m for m in self.masters.values() if m.leads), None)

    async def ask(
        self, what: Callable[[Master], Awaitable[c.WriteResponse]], patience: float = 90.0
    ) -> c.WriteResponse:
        """Calls the leader with the same request until it answers, as the command does."""
        end = self.loop.time() + patience
        while True:
            leader = self.leader()
            try:
                if leader is not None and leader.core is not None and leader.core.leading() is not None:
                    response = await what(leader.core)
                    if not any(r.failure.retryable for r in response.results):
                        self._note(response)
                        return response
            except Fault as fault:
                if not fault.retryable:
                    raise
            if self.loop.time() > end:
                raise TimeoutError(f"no leader answered for {patience:.0f} s")
            await asyncio.sleep(0.2)

    def _note(self, response: c.WriteResponse) -> None:
        for result in response.results:
            if not result.failure.reason and result.object.revision and result.action in ("created", "configured"):
                message = KINDS[result.object.kind].FromString(result.object.body)
                self.acknowledged.append(Acknowledged(key_of(message), message.metadata.uid, result.object.revision))

    def running(self, node: str) -> set[ContainerID]:
        """Containers that live on a node now."""
        return {
            state.id
            for run in self.nodes[node].runtime._runs.values()
            if (state := run.state).pid and state.exit is None
        }
