"""A whole agent on fakes, with a master that does what a test says. Runs on virtual time (tests.sim.loop)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from shoal.agent.core import Agent, AgentConfig, AgentPorts
from shoal.agent.images.fake import FakeImages
from shoal.agent.images.port import ImageConfig
from shoal.agent.logs import MemoryLogFiles
from shoal.agent.machine import Amount, Capacity, MachineInfo, MachineUsage, Signals
from shoal.agent.network.fake import FakeNetwork
from shoal.agent.objects import MemoryObjects
from shoal.agent.pods.probing_fake import FakeHooks, FakeProber
from shoal.agent.runtime.fake import FakeRuntime
from shoal.agent.session import LinkLost
from shoal.agent.state import MemoryState
from shoal.agent.volumes.fake import FakeVolumes
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s
from tests.agents import NOW
from tests.sim import loop as sim

MASTER = "10.0.0.254:7000"
OTHER = "10.0.0.253:7000"
PATIENCE_S = 900.0  # of virtual time


PLENTY = Signals(
    Amount(3 << 30, 4 << 30), Amount(9 << 30, 10 << 30), Amount(900_000, 1_000_000), Amount(32_000, 32_768)
)


class StillMachine:
    def __init__(self, boot_id: str = "boot-1") -> None:
        self.boot_id = boot_id
        self.left = PLENTY

    def signals(self) -> Signals:
        return self.left

    def capacity(self) -> Capacity:
        return Capacity(2000, 4 << 30, 110, 10 << 30)

    def info(self) -> MachineInfo:
        return MachineInfo("machine-1", self.boot_id, "6.1", "Debian", "amd64", "n1")

    def usage(self) -> MachineUsage:
        return MachineUsage(asyncio.get_running_loop().time() / 2, 1 << 30)  # half a core


class Pipe:
    """Both ends of one call. What the agent sends is in `got`; `cut` ends it with an error."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.got: list[Any] = []
        self.closed = False
        self.stalled = False  # the other side takes nothing
        self._down: asyncio.Queue[Any] = asyncio.Queue()
        self._cut = ""
        self._changed = asyncio.Event()

    # ---- the agent's end ----
    async def send(self, message: Any) -> None:
        while self.stalled and not self._cut:
            await asyncio.sleep(0.05)
        if self._cut or self.closed:
            raise LinkLost(self._cut or "closed")
        self.got.append(type(message).FromString(message.SerializeToString()))
        self._changed.set()

    async def receive(self) -> Any:
        message = await self._down.get()
        if message == "cut":
            raise LinkLost(self._cut)
        return message

    async def close(self) -> None:
        self.closed = True
        self._changed.set()

    # ---- the test's end ----
    def put(self, message: Any) -> None:
        self._down.put_nowait(message)

    def cut(self, why: str = "connection reset") -> None:
        self._cut = why
        self._down.put_nowait("cut")

    def of(self, kind: str) -> list[Any]:
        """Everything of one kind that the agent has sent, oldest first."""
        oneof = "frame" if self.got and isinstance(self.got[0], s.TunnelFrame) else "message"
        return [getattr(message, kind) for message in self.got if message.WhichOneof(oneof) == kind]

    async def wait(self, kind: str, count: int = 1) -> Any:
        await until(lambda: len(self.of(kind)) >= count, f"{count} {kind}")
        return self.of(kind)[count - 1]


class Master:
    """Session by session what the test makes of it. `refusing`: addresses where nobody listens."""

    def __init__(self) -> None:
        self.sessions: list[Pipe] = []
        self.tunnels: list[Pipe] = []
        self.refusing: set[str] = set()
        self.attempts: list[tuple[float, str]] = []
        self.epoch, self.revision, self.incarnation = 1, 10, "inc-1"
        self.period_ms = 5000
        self.stalling = False  # new tunnels take nothing

    async def connect(self, address: str) -> Pipe:
        self.attempts.append((asyncio.get_running_loop().time(), address))
        assert all(pipe.closed for pipe in self.sessions), "two sessions at once"
        if address in self.refusing:
            raise LinkLost("connection refused")
        self.sessions.append(Pipe(address))
        return self.sessions[-1]

    async def tunnel(self, address: str) -> Pipe:
        self.tunnels.append(Pipe(address))
        self.tunnels[-1].stalled = self.stalling
        return self.tunnels[-1]

    async def session(self, number: int = -1) -> Pipe:
        """The nth session, once its Hello has come; -1: the newest that is open."""
        if number >= 0:
            await until(lambda: len(self.sessions) > number, f"session {number}")
        else:
            await until(lambda: bool(self.sessions) and not self.sessions[-1].closed, "an open session")
        pipe = self.sessions[number]
        await pipe.wait("hello")
        return pipe

    async def welcomed(self, number: int = -1, *pods: o.Pod) -> Pipe:
        """A session that has been welcomed and has its COMPLETE."""
        pipe = await self.session(number)
        pipe.put(self.welcome())
        pipe.put(self.complete(*pods))
        return pipe

    def welcome(self) -> s.Down:
        return s.Down(
            welcome=s.Welcome(
                protocol=1,
                session_id="s",
                epoch=self.epoch,
                cluster_incarnation=self.incarnation,
                heartbeat_period_ms=self.period_ms,
                pod_cidr="10.244.1.0/24",
                cluster_cidr="10.244.0.0/16",
            )
        )

    def position(self) -> s.Position:
        return s.Position(epoch=self.epoch, revision=self.revision)

    def complete(self, *pods: o.Pod) -> s.Down:
        message = s.Assignments(
            kind=s.Assignments.COMPLETE, results_in=self.position(), last=True, upsert_pods=[bytes_of(p) for p in pods]
        )
        message.upsert_nodes.add(name="n1", address="10.0.0.1", pod_cidr="10.244.1.0/24")
        message.upsert_nodes.add(name="n2", address="10.0.0.2", pod_cidr="10.244.2.0/24")
        return s.Down(assignments=message)

    def change(self, *pods: o.Pod, remove: tuple[str, ...] = ()) -> s.Down:
        before = self.position()
        self.revision += 1
        return s.Down(
            assignments=s.Assignments(
                kind=s.Assignments.INCREMENTAL,
                applies_to=before,
                results_in=self.position(),
                last=True,
                upsert_pods=[bytes_of(p) for p in pods],
                remove_pods=remove,
            )
        )


def bytes_of(pod: o.Pod) -> s.AssignedPod:
    return s.AssignedPod(uid=pod.metadata.uid, pod=pod.SerializeToString())


async def until(condition: Callable[[], bool], what: str = "") -> None:
    """Waits for a condition on virtual time."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited in vain for {what or condition}"
        await asyncio.sleep(0.01)


class World:
    """One node and its master. The node outlives its agents."""

    def __init__(self, seed: int = 0, **runtime: Any) -> None:
        self.master = Master()
        self.clock = NOW
        self.runtime = FakeRuntime(self.now, **runtime)
        self.images = FakeImages()
        self.images.add("app:1", ImageConfig(("/run",)))
        self.network = FakeNetwork()
        self.state = MemoryState()
        self.logs = MemoryLogFiles()
        self.volumes = FakeVolumes()
        self.prober = FakeProber()
        self.hooks = FakeHooks()
        self.objects = MemoryObjects()
        self.machine = StillMachine()
        self.rng = random.Random(seed)
        self._begun = asyncio.get_running_loop().time()

    def now(self) -> float:
        return NOW + asyncio.get_running_loop().time() - self._begun

    def agent(self, masters: tuple[str, ...] = (MASTER,)) -> Agent:
        config = AgentConfig("n1", "10.0.0.1", masters, "/logs", {"zone": "a"}, 9100)
        ports = AgentPorts(
            self.runtime,
            self.images,
            self.network,
            self.machine,
            self.state,
            self.logs,
            self.master,
            self.volumes,
            self.prober,
            self.hooks,
            self.objects,
        )
        return Agent(config, ports, self.now, self.rng)

    @asynccontextmanager
    async def running(self, masters: tuple[str, ...] = (MASTER,)) -> AsyncIterator[Agent]:
        """An agent that runs; leaving kills it."""
        agent = self.agent(masters)
        task = asyncio.create_task(agent.run(), name="agent")
        try:
            yield agent
            assert not task.done(), f"the agent ended: {task}"
        finally:
            await kill(task)
            for pipe in self.master.sessions:
                assert pipe.closed, "a dead agent holds no session"

    async def reports(self, pipe: Pipe, uid: str, condition: Callable[[s.PodReport], bool]) -> s.PodReport:
        """Waits until the newest report of a pod on this session fulfils the condition."""
        await until(lambda: any(condition(r) for r in newest(pipe, uid)), f"a report of {uid}")
        return newest(pipe, uid)[0]


def newest(pipe: Pipe, uid: str) -> list[s.PodReport]:
    found = [pod for report in pipe.of("status") for pod in report.pods if pod.uid == uid]
    return found[-1:]


async def kill(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def scenario(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Makes a test of a coroutine over a World, run on virtual time."""

    def run() -> None:
        async def main() -> None:
            await test(World())

        sim.run(0, main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run
