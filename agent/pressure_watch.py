"""Watches what the node has left, says so, frees what nobody needs, and lets pods go one at a time.

Memory and process ids are looked after every second; the disk in a loop of its own, for measuring it may take long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shoal.agent.eviction import Eviction, ImageGC
from shoal.agent.images.port import ImageFault, Images
from shoal.agent.machine import Machine, Signals
from shoal.agent.pods import instructions as i
from shoal.agent.pods.machine import PodMachine
from shoal.agent.pods.spec import amounts
from shoal.agent.pods.status import TERMINAL
from shoal.agent.pressure import (
    CONDITIONS,
    KINDS,
    Candidate,
    Met,
    State,
    Use,
    evicted,
    image_bytes,
    observe,
    ranked,
    refusal,
)
from shoal.agent.runtime.port import ContainerID, Runtime, RuntimeFault
from shoal.agent.storage import EVICTED, Folders
from shoal.agent.volumes.port import VolumeFault, Volumes
from shoal.proto.qos import BEST_EFFORT, qos_class
from shoal.proto.v1 import objects_pb2 as o

log = logging.getLogger("shoal.agent.pressure")
REST_S, NEAR_REST_S = 1.0, 0.2  # between two looks
NEAR = 3  # times what a threshold asks for: from there on the looks are closer together
LEAVE_S = 30.0  # for a pod to leave before the next may have to
IMAGES_REST_S = 60.0  # between two collections of images, where the last one found nothing
ALL_BYTES = 1 << 62
DISK = "DiskPressure"
WORDS = {
    "MemoryPressure": ("NodeHasInsufficientMemory", "NodeHasSufficientMemory", "the node has enough memory"),
    "DiskPressure": ("NodeHasDiskPressure", "NodeHasNoDiskPressure", "the node has enough disk space"),
    "PIDPressure": ("NodeHasInsufficientPID", "NodeHasSufficientPID", "the node has enough process ids"),
}


@dataclass(frozen=True, slots=True)
class Ports:
    machine: Machine
    runtime: Runtime
    images: Images
    volumes: Volumes


class PressureWatch:
    def __init__(
        self,
        ports: Ports,
        eviction: Eviction,
        image_gc: ImageGC,
        machines: Mapping[str, PodMachine],
        post: Callable[[str, i.Event], None],
        folders: Folders,
        now: Callable[[], float],
        changed: Callable[[Sequence[o.Condition]], None],
        images_changed: Callable[[], None],
    ) -> None:
        """`changed` hears the node's conditions, at first and whenever one changes."""
        self.signals: Signals | None = None  # as they were last
        self.evictions: dict[str, int] = {}  # by signal
        self.image_bytes = 0  # freed
        self._ports, self._eviction, self._image_gc = ports, eviction, image_gc
        self._machines, self._post, self._folders = machines, post, folders
        self._now, self._changed, self._images_changed = now, changed, images_changed
        self._state = State()
        self._conditions: dict[str, o.Condition] = {}
        self._leaving: tuple[str, float] = ("", 0.0)  # who, and until when it is waited for
        self._disk_short = asyncio.Event()
        self._images_after = 0.0  # no collection before that
        self._cleared: set[ContainerID] = set()
        self._fault = ""

    def refusal(self, pod: o.Pod) -> str:
        """Why a new pod cannot begin here now; "" when it can."""
        return refusal(self._state.pressed, qos_class(pod.spec) == BEST_EFFORT)

    def look(self) -> None:
        """Reads the signals; conditions follow. What cannot be read stays as it was."""
        try:
            self.signals = self._ports.machine.signals()
        except (OSError, ValueError) as fault:
            if str(fault) != self._fault:
                log.error("what the node has left cannot be read: %s", fault)
            self._fault = str(fault)
            return
        self._fault = ""
        period = self._eviction.transition_period
        self._state = observe(self._state, self._eviction.thresholds, self.signals, self._clock(), period)
        self._tell()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name="pressure")
            group.create_task(self._watch_disk(), name="disk pressure")

    async def _watch(self) -> None:
        while True:
            self.look()
            if self._due(disk=True) or self._too_full():
                self._disk_short.set()
            for met in self._due(disk=False):
                if not self._someone_leaves() and await self._evict(met):
                    break
            await asyncio.sleep(self._rest())

    async def _watch_disk(self) -> None:
        while True:
            await self._disk_short.wait()
            self._disk_short.clear()
            if not self._due(disk=True):
                await self._collect_old_images()
            elif not self._someone_leaves():
                await self._free_disk()

    def _due(self, *, disk: bool) -> list[Met]:
        return [met for met in self._state.due(self._clock()) if (met.threshold.kind.condition == DISK) == disk]

    def _rest(self) -> float:
        """Memory can go within a second: looks are closer together when little of it is left."""
        for threshold in self._eviction.thresholds:
            if self.signals is not None and threshold.kind.condition != DISK:
                seen = threshold.kind.amount(self.signals)
                if seen.capacity and seen.available < NEAR * threshold.level.of(seen.capacity):
                    return NEAR_REST_S
        return REST_S

    @staticmethod
    def _clock() -> float:
        return asyncio.get_running_loop().time()

    # ---- what others are told ----
    def _tell(self) -> None:
        """Builds the conditions that have changed; tells them all."""
        told = False
        for kind in CONDITIONS:
            pressed = self._state.pressed.get(kind)
            status = "True" if pressed else "False"
            before = self._conditions.get(kind)
            if before is not None and before.status == status:
                continue
            short, enough, words = WORDS[kind]
            text = pressed[1] if pressed else words
            condition = o.Condition(type=kind, status=status, reason=short if pressed else enough, message=text)
            condition.lastTransitionTime.seconds = int(self._now())
            self._conditions[kind], told = condition, True
            if before is not None or pressed:
                log.log(logging.WARNING if pressed else logging.INFO, "%s is %s: %s", kind, status, text)
        if told:
            self._changed([self._conditions[kind] for kind in CONDITIONS])

    # ---- the disk ----
    def _too_full(self) -> bool:
        return self._images_too_much() > 0 and self._clock() >= self._images_after

    def _images_too_much(self) -> int:
        gc = self._image_gc
        return image_bytes(self.signals.disk, gc.high, gc.low) if self.signals is not None else 0

    async def _collect_old_images(self) -> None:
        freed = await self._collect(self._images_too_much(), self._image_gc.min_age)
        self._images_after = self._clock() + (0 if freed else IMAGES_REST_S)

    async def _collect(self, wanted: int, unused_for_s: float) -> int:
        """Bytes that became free."""
        if wanted <= 0:
            return 0
        try:
            gone = await self._ports.images.collect(wanted, unused_for_s)
        except ImageFault as fault:
            log.error("unused images cannot be removed: %s", fault.message)
            return 0
        if gone.freed:
            log.info("removed unused images (%s): %d bytes are free", ", ".join(gone.names) or "packed", gone.freed)
            self.image_bytes += gone.freed
            self._images_changed()
        return gone.freed

    async def _free_disk(self) -> None:
        """First what nobody needs, then a pod."""
        await self._clear_remains()
        self.look()
        due = self._due(disk=True)
        if due:
            resource = due[0].threshold.kind.resource
            wanted = max(self._images_too_much(), *(met.wanted for met in due)) if resource != "inodes" else ALL_BYTES
            await self._collect(wanted, 0.0)
            self.look()
        for met in self._due(disk=True):
            if not self._someone_leaves() and await self._evict(met):
                return

    async def _clear_remains(self) -> None:
        """The files of runs that have ended; their logs stay, as long as their pods."""
        runs = set(self._ended_runs())
        for id in sorted(runs - self._cleared, key=str):
            try:
                await self._ports.runtime.remove_container(id)
                self._cleared.add(id)
            except (RuntimeFault, OSError) as fault:
                log.warning("the files of %s, which has ended, cannot be removed: %s", id, fault)
        self._cleared &= runs

    def _ended_runs(self) -> Sequence[ContainerID]:
        found = []
        for machine in self._machines.values():
            final = machine.phase in TERMINAL
            for facts in machine.containers():
                runs = [facts.previous, facts.run] if final else [facts.previous]
                found += [ContainerID(machine.uid, facts.spec.name, run.attempt) for run in runs if run is not None]
        return found

    # ---- pods ----
    def _someone_leaves(self) -> bool:
        """A pod that was told to go still holds what it has to give back."""
        uid, until = self._leaving
        machine = self._machines.get(uid)
        gone = machine is None or (machine.phase in TERMINAL and not machine.holds_volumes)
        return not gone and self._clock() < until

    async def _evict(self, met: Met) -> bool:
        kind = met.threshold.kind
        try:
            every = await (self._disk_use() if kind.condition == DISK else self._process_use(kind.resource))
        except (RuntimeFault, VolumeFault, OSError) as fault:
            log.error("the node is low on %s, and what its pods use is not known: %s", kind.resource, fault)
            return False
        order = [one for one in ranked(every, kind.resource) if self._stays(one.uid)]
        if not order or self._someone_leaves():
            return False
        chosen = order[0]
        why = evicted(met, chosen)
        grace = 0.0
        if not met.threshold.hard:
            grace = min(self._eviction.max_pod_grace, self._machines[chosen.uid].pod.spec.terminationGracePeriodSeconds)
        log.warning("pod %s is evicted: %s", chosen.name, why)
        signal = met.threshold.signal
        self.evictions[signal] = self.evictions.get(signal, 0) + 1
        self._leaving = (chosen.uid, self._clock() + grace + LEAVE_S)
        self._post(chosen.uid, i.GiveUp(EVICTED, why, grace))
        return True

    def _stays(self, uid: str) -> bool:
        """Neither at its end nor told to go."""
        machine = self._machines.get(uid)
        if machine is None or machine.ended or machine.stopping or machine.phase in TERMINAL:
            return False
        return not machine.record.failed_at

    def _living(self) -> list[PodMachine]:
        return [machine for uid, machine in self._machines.items() if self._stays(uid)]

    async def _process_use(self, resource: str) -> list[Candidate]:
        """Of memory or process ids."""
        usage = await self._ports.runtime.usage()
        found = []
        for machine in self._living():
            uses = []
            for facts in machine.containers():
                attempt = facts.run.attempt if facts.run is not None else 0
                used = usage.get(ContainerID(machine.uid, facts.spec.name, attempt))
                if used is not None:
                    amount = used.memory_bytes if resource == "memory" else used.pids
                    uses.append(Use(facts.spec.name, amount, _request(facts.spec, resource)))
            found.append(_candidate(machine, uses))
        return found

    async def _disk_use(self) -> list[Candidate]:
        found = []
        for machine in self._living():
            volumes = await self._ports.volumes.usage(machine.uid)
            uses = []
            for facts in machine.containers():
                attempts = [run.attempt for run in (facts.previous, facts.run) if run is not None]
                folders = {f for attempt in attempts for f in self._folders.of(machine.uid, facts.spec.name, attempt)}
                used = await self._ports.volumes.measure(sorted(folders))
                uses.append(Use(facts.spec.name, used, _request(facts.spec, "ephemeral-storage")))
            found.append(_candidate(machine, uses, sum(volumes.values())))
        return found


def _request(container: o.Container, resource: str) -> int:
    return (amounts(container, "requests", resource) or 0) if resource in ("memory", "ephemeral-storage") else 0


def _candidate(machine: PodMachine, uses: Sequence[Use], rest: int = 0) -> Candidate:
    meta = machine.pod.metadata
    name = f"{meta.namespace}/{meta.name}"
    return Candidate(machine.uid, name, tuple(uses), rest, 0, machine.record.start_time)


def signal_values(signals: Signals) -> Mapping[str, tuple[int, int]]:
    """Signal -> (available, capacity) of those that are known; for the metrics."""
    amounts_of = {name: kind.amount(signals) for name, kind in KINDS.items()}
    return {name: (one.available, one.capacity) for name, one in amounts_of.items() if one.capacity}
