"""Carries out what the pods' machines ask for. One for all pods: an idle pod costs no task.

Steps run as short-lived tasks, bounded in number; timers are loop callbacks. A step's result goes back as an event.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from shoal.agent.deathbook import DeathBook
from shoal.agent.images.port import Image, ImageFault, Images
from shoal.agent.logs import LogFiles, tail_of
from shoal.agent.network.port import Network, NetworkFault
from shoal.agent.objects import MemoryObjects
from shoal.agent.pods import instructions as i
from shoal.agent.pods.deaths import TAIL_LINES as DEATH_LINES
from shoal.agent.pods.deaths import with_tail
from shoal.agent.pods.healthy import Baseline, best
from shoal.agent.pods.machine import PodMachine
from shoal.agent.pods.probing import Hooks, Prober, Verdict
from shoal.agent.pods.spec import NodeFacts, log_path
from shoal.agent.pods.status import RUNNING_PHASE
from shoal.agent.pods.telling import Teller
from shoal.agent.runtime.port import (
    ContainerState,
    Exited,
    Runtime,
    RuntimeEvent,
    RuntimeFault,
    RuntimeGone,
    StartError,
)
from shoal.agent.state import PodRecord, State, StateFault
from shoal.agent.volumes.port import VolumeFault, Volumes
from shoal.proto.references import Reference
from shoal.proto.v1 import session_pb2 as s

log = logging.getLogger("shoal.agent.pods")
MAX_STEPS = 32  # in flight at once: more would only queue in the spawner
PERMANENT_IMAGE_FAULTS = frozenset({"InvalidImageName", "ErrImageNeverPull"})
TAIL_LINES, TAIL_BYTES = 80, 2048  # of a log that is a termination message (kubelet)
DEATH_BYTES = 32 * 1024  # of a log, read for a death certificate
PROGRESS_S = 2.0  # between two words about a pull


@dataclass(frozen=True, slots=True)
class NodePorts:
    """Where the steps are done."""

    runtime: Runtime
    images: Images
    network: Network
    state: State
    logs: LogFiles
    volumes: Volumes
    prober: Prober
    hooks: Hooks
    objects: MemoryObjects
    deaths: DeathBook


@dataclass(frozen=True, slots=True)
class Found:
    """What the node has of a pod when the agent starts."""

    containers: Sequence[ContainerState] = ()
    netns: str = ""
    address: str = ""


@dataclass(slots=True)
class Counts:
    """For the metrics: what has happened since the agent started."""

    started: int = 0
    start_errors: int = 0
    restarts: int = 0
    errors: int = 0  # events that a machine could not handle: a bug, or a pod that should have been refused


class Meter(Protocol):
    """What takes time on a node."""

    def observe_start(self, seconds: float) -> None:
        """From a pod's assignment to its Running."""

    def observe_step(self, step: str, seconds: float) -> None:
        """One step of a pod, whether it was done or failed; `step` is the instruction's name."""


class NoMeter:
    """Counts nothing."""

    def observe_start(self, seconds: float) -> None:
        """Nothing."""

    def observe_step(self, step: str, seconds: float) -> None:
        """Nothing."""


class Worker:
    def __init__(
        self,
        ports: NodePorts,
        node: NodeFacts,
        now: Callable[[], float],
        report: Callable[[s.PodReport], None],
        meter: Meter | None = None,
        images_changed: Callable[[], None] = lambda: None,
        tell: Callable[[s.Happening], None] = lambda happening: None,
    ) -> None:
        """`report` takes each new status, `tell` what else happened; `images_changed` is called when one was pulled."""
        self.machines: dict[str, PodMachine] = {}
        self._tell = tell
        self._tellers: dict[str, Teller] = {}
        self.counts = Counts()
        self._ports = ports
        self._node = node
        self._now = now
        self._report = report
        self._meter: Meter = meter or NoMeter()
        self._images_changed = images_changed
        self._waiting: deque[tuple[str, i.Step | _Look | _Purge]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._slow: dict[str, set[asyncio.Task[None]]] = {}  # pulls and hooks by pod: they hold up no other step
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._closed = False
        ports.prober.on_verdict = self.verdict

    # ---- pods come and go ----
    def add(self, record: PodRecord, found: Found | None = None, *, saved: bool = False) -> PodMachine:
        """A pod of this node; `found` when the node may have something of it already."""
        machine = PodMachine(record, self._node, saved=saved, objects=self._ports.objects, known=self)
        self.machines[record.uid] = machine
        self._tellers[record.uid] = Teller(record.uid)
        if found is None:
            self.post(record.uid, i.Begin())
        else:
            self._enqueue(record.uid, _Look(found, {c.spec.name: c.spec.image for c in machine.containers()}))
        return machine

    # ---- healthy.Baselines, for the machines ----
    def kept(self, key: str) -> Baseline | None:
        return self._ports.deaths.kept(key)

    def find(self, key: str) -> Baseline | None:
        """Asked when a container has died, so that it may look through all pods."""
        living = (machine.healthy(key, self._now()) for machine in self.machines.values())
        return best(self.kept(key), [one for one in living if one is not None])

    # ---- what comes from outside ----
    def purge(self, uid: str) -> None:
        """Frees what the node has of a pod that nobody knows."""
        self._enqueue(uid, _Purge())

    def post(self, uid: str, event: i.Event) -> None:
        """Gives a pod's machine an event and carries out what follows. An unknown pod's event is dropped."""
        machine = self.machines.get(uid)
        if machine is None or self._closed:
            return
        before = machine.phase
        try:
            instructions = machine.handle(event, self._now())
            told = self._tellers[uid].tell(machine, event, instructions, self._now())
        except Exception:  # what one pod holds must not end the agent, and with the next agent again
            self.counts.errors += 1
            log.exception("pod %s: %s cannot be handled", uid, type(event).__name__)
            return
        if before != machine.phase == RUNNING_PHASE and not isinstance(event, i.Begin):
            self._meter.observe_start(max(self._now() - machine.record.start_time, 0.0))
        for happening in told:
            self._tell(happening)
        for instruction in instructions:
            self._carry_out(machine, instruction)

    def broadcast(self, event: i.Event) -> None:
        for uid in list(self.machines):
            self.post(uid, event)

    def objects_changed(self, changed: Set[Reference]) -> None:
        """Objects came, changed or went: the pods that refer to them hear of it."""
        for uid, machine in list(self.machines.items()):
            if not changed.isdisjoint(machine.references()):
                self.post(uid, i.ObjectsChanged())

    def verdict(self, verdict: Verdict) -> None:
        self.post(verdict.id.pod_uid, i.Told(verdict))

    def runtime_event(self, event: RuntimeEvent) -> None:
        if isinstance(event, Exited):
            self.post(event.id.pod_uid, i.ContainerExited(event.id, event.exit))

    def observed(self, states: Iterable[ContainerState]) -> None:
        """After the runtime was away: everything that it knows."""
        for uid, own in by_pod(states).items():
            self.post(uid, i.Observed(own))

    async def close(self) -> None:
        """Stops working; containers are not touched."""
        self._closed = True
        self._waiting.clear()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        tasks = [*self._tasks, *(task for slow in self._slow.values() for task in slow)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def in_flight(self) -> int:
        return len(self._tasks) + sum(map(len, self._slow.values()))

    # ---- instructions ----
    def _carry_out(self, machine: PodMachine, instruction: i.Instruction) -> None:
        match instruction:
            case i.SetTimer(name, delay):
                self._set_timer(machine.uid, name, delay)
            case i.Publish(status, ended):
                meta = machine.pod.metadata
                report = s.PodReport(
                    uid=machine.uid, namespace=meta.namespace, name=meta.name, status=status, ended=ended
                )
                self._report(report)
            case i.SetProbes(target):
                self._ports.prober.watch(target)
            case i.ForgetProbes(container):
                self._ports.prober.forget(machine.uid, container)
            case i.Forget():
                self._forget(machine.uid)
            case i.Remember(workload, baseline):
                self._ports.deaths.remember(workload, baseline)
            case i.PullImage() | i.RunHook():
                self._begin_slow(machine.uid, instruction)
            case _:
                self._enqueue(machine.uid, instruction)

    def _set_timer(self, uid: str, name: str, delay: float) -> None:
        old = self._timers.pop((uid, name), None)
        if old is not None:
            old.cancel()
        loop = asyncio.get_running_loop()
        self._timers[uid, name] = loop.call_later(delay, self._ring, uid, name)

    def _ring(self, uid: str, name: str) -> None:
        self._timers.pop((uid, name), None)
        self.post(uid, i.Timer(name))

    def _forget(self, uid: str) -> None:
        self.machines.pop(uid, None)
        self._tellers.pop(uid, None)
        for key in [key for key in self._timers if key[0] == uid]:
            self._timers.pop(key).cancel()
        self._ports.prober.forget(uid)
        self._enqueue(uid, _Purge(record_only=True))

    # ---- steps ----
    def _enqueue(self, uid: str, step: i.Step | _Look | _Purge) -> None:
        if self._closed:
            return
        self._waiting.append((uid, step))
        self._fill()

    def _begin_slow(self, uid: str, step: i.Step) -> None:
        task = asyncio.get_running_loop().create_task(self._run(uid, step), name=f"slow step {uid}")
        self._slow.setdefault(uid, set()).add(task)
        task.add_done_callback(lambda done: self._finished_slow(uid, done))

    def _finished_slow(self, uid: str, task: asyncio.Task[None]) -> None:
        tasks = self._slow.get(uid, set())
        tasks.discard(task)
        if not tasks:
            self._slow.pop(uid, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("a step failed in the agent itself", exc_info=task.exception())

    async def _end_slow(self, uid: str) -> None:
        """What is still being pulled for a pod that ends, and its hooks."""
        tasks = list(self._slow.get(uid, ()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fill(self) -> None:
        while self._waiting and len(self._tasks) < MAX_STEPS:
            uid, step = self._waiting.popleft()
            task = asyncio.get_running_loop().create_task(self._run(uid, step), name=f"step {uid}")
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a step failed in the agent itself", exc_info=task.exception())
        if not self._closed:
            self._fill()

    async def _run(self, uid: str, step: i.Step | _Look | _Purge) -> None:
        if isinstance(step, _Look):
            self.post(uid, await self._look(uid, step))
        elif isinstance(step, _Purge):
            await self._purge(uid, step)
        else:
            begun = asyncio.get_running_loop().time()
            event = await self._attempt(uid, step)
            self._meter.observe_step(type(step).__name__, asyncio.get_running_loop().time() - begun)
            self.post(uid, event)

    async def _attempt(self, uid: str, step: i.Step) -> i.Event:
        """Does one step; every fault becomes an event."""
        try:
            return i.Done(step, await self._perform(uid, step))
        except StartError as fault:
            self.counts.start_errors += 1
            return i.Failed(step, fault.reason, fault.message, fault.exit_code, retryable=False)
        except RuntimeGone as fault:
            return i.Failed(step, "RuntimeNotReady", f"the node's runtime does not answer: {fault}")
        except RuntimeFault as fault:
            reason = "CreateContainerError" if isinstance(step, i.Start) else "FailedCreatePodSandBox"
            return i.Failed(step, reason, str(fault))
        except NetworkFault as fault:
            return i.Failed(step, fault.reason, str(fault))
        except ImageFault as fault:
            retryable = fault.reason not in PERMANENT_IMAGE_FAULTS
            return i.Failed(step, fault.reason, fault.message, retryable=retryable, retry_after=fault.retry_after)
        except VolumeFault as fault:
            return i.Failed(step, "FailedMount", str(fault))
        except StateFault as fault:
            log.error("%s", fault)
            return i.Failed(step, "NodeStateNotSaved", str(fault))
        except Exception as fault:  # a bug must not leave the pod waiting for ever
            log.exception("pod %s: %s failed unexpectedly and is tried again", uid, step.key)
            return i.Failed(step, "AgentError", f"{type(fault).__name__}: {fault}")

    async def _perform(self, uid: str, step: i.Step) -> object:
        ports = self._ports
        match step:
            case i.EnsureSandbox(spec):
                return await ports.runtime.ensure_sandbox(spec)
            case i.Attach(netns, host_ports):
                return await ports.network.attach(uid, netns, host_ports)
            case i.HoldImage(_, name, holder):
                return await ports.images.hold(holder, name)
            case i.PullImage():
                return await self._pull(uid, step)
            case i.PrepareVolumes(specs):
                return await ports.volumes.prepare(uid, specs)
            case i.RunHook(id, _, handler, host, named, timeout):
                return await ports.hooks.run(id, handler, host, named, timeout)
            case i.ReadLogTail(id):
                path = log_path(self._node.log_root, uid, id.name, id.attempt)
                return await tail_of(ports.logs, path, TAIL_LINES, TAIL_BYTES)
            case i.Start(spec):
                state = await ports.runtime.start(spec)
                self.counts.started += 1
                self.counts.restarts += spec.id.attempt > 0
                return state
            case _:
                await self._put(uid, step)
                return None

    async def _put(self, uid: str, step: i.Step) -> None:
        """The steps without an answer."""
        ports = self._ports
        match step:
            case i.UpdateVolumes(specs):
                await ports.volumes.update(uid, specs)
            case i.FreeVolumes():
                await ports.volumes.free(uid)
            case i.Bury(id, death):
                path = log_path(self._node.log_root, uid, id.name, id.attempt)
                await ports.deaths.bury(with_tail(death, await self._last_words(path)))
            case i.Signal(id, number):
                await ports.runtime.signal(id, number)
            case i.RemoveContainer(id):
                await ports.runtime.remove_container(id)
                await ports.logs.remove(log_path(self._node.log_root, uid, id.name, id.attempt))
            case i.Detach():
                await ports.network.detach(uid)
            case i.RemoveSandbox(holders):
                await self._end_slow(uid)
                await self._free(uid, holders)
            case i.Save(record):
                await ports.state.save_pod(record)
            case _:
                raise AssertionError(f"no such step: {step}")

    async def _last_words(self, path: str) -> str:
        """A log that cannot be read leaves its certificate without."""
        try:
            return await tail_of(self._ports.logs, path, DEATH_LINES, DEATH_BYTES)
        except OSError as fault:
            log.warning("%s cannot be read for a death certificate: %s", path, fault)
            return ""

    async def _pull(self, uid: str, step: i.PullImage) -> Image:
        loop, said = asyncio.get_running_loop(), 0.0

        def progress(text: str) -> None:
            nonlocal said
            if loop.time() - said >= PROGRESS_S:
                said = loop.time()
                self.post(uid, i.Progress(step, text))

        pulled = await self._ports.images.pull(step.name, step.credentials, progress)
        held = await self._ports.images.hold(step.holder, step.name)
        if held is None:
            raise ImageFault("ErrImagePull", f"image {pulled.id} was removed again at once")
        self._images_changed()
        return held

    async def _free(self, uid: str, holders: Sequence[str]) -> None:
        await self._ports.runtime.remove_sandbox(uid)
        await self._ports.logs.remove(f"{self._node.log_root}/{uid}")
        for holder in holders:
            await self._ports.images.release(holder)

    async def _look(self, uid: str, look: _Look) -> i.Event:
        """The images of a pod that the agent finds at its start stay held; one that is gone is looked for later."""
        images: dict[str, Image] = {}
        for container, name in look.names.items():
            try:
                image = await self._ports.images.hold(f"{uid}/{container}", name)
            except ImageFault as fault:
                log.warning("pod %s: image %s: %s", uid, name, fault.message)
                continue
            except Exception:
                log.exception("pod %s: image %s could not be held", uid, name)
                continue
            if image is not None:
                images[container] = image
        return i.Begin(look.found.containers, look.found.netns, look.found.address, images)

    async def _purge(self, uid: str, purge: _Purge) -> None:
        try:
            if not purge.record_only:
                if uid in self.machines:
                    return  # assigned again meanwhile: its machine looks after it
                await self._ports.network.detach(uid)
                held = [one for one in await self._ports.images.holders() if one.partition("/")[0] == uid]
                await self._free(uid, held)
                await self._ports.volumes.free(uid)
            if uid not in self.machines:
                await self._ports.state.remove_pod(uid)
        except (RuntimeFault, NetworkFault, StateFault, ImageFault, VolumeFault, OSError) as fault:
            log.warning("pod %s could not be freed yet: %s", uid, fault)
            delay = min(2.0 ** min(purge.failures, 5), 30.0)
            again = _Purge(purge.record_only, purge.failures + 1)
            asyncio.get_running_loop().call_later(delay, self._enqueue, uid, again)


@dataclass(frozen=True, slots=True)
class _Look:
    """Holds the images of a found pod, then begins its machine."""

    found: Found
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Purge:
    record_only: bool = False
    failures: int = 0


def by_pod(states: Iterable[ContainerState]) -> dict[str, list[ContainerState]]:
    pods: dict[str, list[ContainerState]] = {}
    for state in states:
        pods.setdefault(state.id.pod_uid, []).append(state)
    return pods
