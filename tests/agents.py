"""What the agent's tests share: pods, images, node facts, and a driver that answers a machine's steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from shoal.agent.images.port import Image, ImageConfig
from shoal.agent.objects import MemoryObjects
from shoal.agent.pods import instructions as i
from shoal.agent.pods.healthy import Baseline
from shoal.agent.pods.machine import PodMachine
from shoal.agent.pods.probing import Target, Verdict
from shoal.agent.pods.spec import NodeFacts
from shoal.agent.runtime.port import ContainerID, ContainerState, Exit, Sandbox
from shoal.agent.state import PodRecord
from shoal.agent.volumes.port import Prepared
from shoal.proto.v1 import objects_pb2 as o

T = TypeVar("T")
NOW = 1_700_000_000.0
UID = "0a1b2c3d-0000-4000-8000-000000000001"
NODE = NodeFacts("n1", "10.0.0.1", 8 << 30, "/logs", "nameserver 10.0.0.53\n")
IMAGE = Image(
    "sha256:1", "sha256:2", ("docker.io/library/app:1",), 10, ("/layers/1",), ImageConfig(("/app",), ("serve",))
)


def make_pod(
    name: str = "web", *, uid: str = UID, policy: str = "Always", containers: Sequence[str] = ("app",), grace: int = 30
) -> o.Pod:
    pod = o.Pod(apiVersion="v1", kind="Pod")
    pod.metadata.name, pod.metadata.namespace, pod.metadata.uid = name, "default", uid
    pod.metadata.generation = 1
    pod.spec.restartPolicy, pod.spec.terminationGracePeriodSeconds = policy, grace
    pod.spec.nodeName = "n1"
    for container in containers:
        pod.spec.containers.add(name=container, image="app:1")
    pod.status.conditions.add(type="PodScheduled", status="True")
    return pod


def deleted(pod: o.Pod, grace: int | None = None) -> o.Pod:
    gone = o.Pod()
    gone.CopyFrom(pod)
    gone.metadata.deletionTimestamp.seconds = int(NOW)
    if grace is not None:
        gone.metadata.deletionGracePeriodSeconds = grace
    return gone


def record_of(pod: o.Pod, start: float = NOW) -> PodRecord:
    return PodRecord(pod.metadata.uid, pod.SerializeToString(deterministic=True), start)


class Driver:
    """Plays the node to one machine: answers its steps, keeps time and timers, and checks what must never happen."""

    def __init__(
        self,
        pod: o.Pod | None = None,
        *,
        images: Mapping[str, Image] | None = None,
        objects: MemoryObjects | None = None,
    ) -> None:
        self.now = NOW
        self.objects = objects or MemoryObjects()
        self.machine = PodMachine(record_of(pod or make_pod()), NODE, saved=False, objects=self.objects, known=self)
        self.remote: dict[str, Image] = {}
        self.probes: dict[str, Target] = {}
        self.healthy: dict[str, Baseline] = {}
        self.deaths: list[o.Death] = []
        self.images = dict(images if images is not None else {"app:1": IMAGE})
        self.given: list[i.Instruction] = []
        self.open: list[i.Step] = []
        self.timers: dict[str, float] = {}
        self.statuses: list[tuple[o.PodStatus, bool]] = []

    # ---- healthy.Baselines ----
    def kept(self, key: str) -> Baseline | None:
        return self.healthy.get(key)

    def find(self, key: str) -> Baseline | None:
        return self.healthy.get(key)

    # ---- events in ----
    def send(self, event: i.Event) -> list[i.Instruction]:
        out = self.machine.handle(event, self.now)
        self.given += out
        for instruction in out:
            match instruction:
                case i.SetTimer(name, delay):
                    assert delay >= 0
                    self.timers[name] = self.now + delay
                case i.Publish(status, ended):
                    self.statuses.append((status, ended))
                case i.SetProbes(target):
                    self.probes[target.id.name] = target
                case i.ForgetProbes(container):
                    self.probes.pop(container, None)
                case i.Remember(workload, baseline):
                    self.healthy[workload] = baseline
                case i.Forget():
                    pass
                case _:
                    assert instruction.key not in {step.key for step in self.open}, "a step is given once at a time"
                    if isinstance(instruction, i.Detach | i.RemoveSandbox):
                        besides = i.Signal | i.Save | i.RunHook | i.PullImage
                        assert not [s for s in self.open if not isinstance(s, besides)], "work is in flight"
                    self.open.append(instruction)
        return out

    def begin(self) -> list[i.Instruction]:
        return self.send(i.Begin())

    def done(self, kind: type[T], value: object = None, index: int = 0) -> list[i.Instruction]:
        """The open step of this kind ends well."""
        return self.send(i.Done(self._take(kind, index), value))

    def failed(self, kind: type[T], reason: str, message: str = "because", **more: object) -> list[i.Instruction]:
        return self.send(i.Failed(self._take(kind, 0), reason, message, **more))  # type: ignore[arg-type]

    def _take(self, kind: type[T], index: int) -> i.Step:
        step = [step for step in self.open if isinstance(step, kind)][index]
        self.open.remove(step)
        return step

    def settle(self, keep: Callable[[i.Step], bool] = lambda step: False) -> None:
        """Answers every open step with success, until none is left but those to `keep` open."""
        while rest := [step for step in self.open if not keep(step)]:
            step = rest[0]
            self.open.remove(step)
            self.send(i.Done(step, self.answer(step)))

    def answer(self, step: i.Step) -> object:
        match step:
            case i.EnsureSandbox(spec):
                return Sandbox(spec.pod_uid, "/run/net")
            case i.Attach():
                return "10.244.0.2"
            case i.HoldImage(_, name, _):
                return self.images.get(name)
            case i.PullImage(_, name):
                return self.remote.get(name, IMAGE)
            case i.PrepareVolumes(specs):
                return {spec.name: Prepared(spec.name, f"/volumes/{spec.name}") for spec in specs}
            case i.Bury(_, death):
                self.deaths.append(death)
            case i.RunHook() | i.ReadLogTail():
                return ""
            case i.Start(spec):
                return ContainerState(spec.id, 4242, self.now, 1, None)
        return None

    def exit(self, code: int = 0, name: str = "app", *, signal: int = 0, oom: bool = False) -> list[i.Instruction]:
        facts = self.machine.container(name)
        assert facts is not None and facts.run is not None
        id = ContainerID(self.machine.uid, name, facts.run.attempt)
        return self.send(i.ContainerExited(id, Exit(code, signal, oom, self.now)))

    def tell(self, kind: str, passed: bool, name: str = "app", message: str = "HTTP 500") -> list[i.Instruction]:
        """What the prober found of the container's current run."""
        facts = self.machine.container(name)
        assert facts is not None and facts.run is not None
        id = ContainerID(self.machine.uid, name, facts.run.attempt)
        return self.send(i.Told(Verdict(id, kind, passed, message)))

    def pass_time(self, seconds: float) -> None:
        """Rings the timers that fall into these seconds, in order."""
        until = self.now + seconds
        while due := [name for name, at in self.timers.items() if at <= until]:
            name = min(due, key=lambda timer: self.timers[timer])
            self.now = max(self.timers.pop(name), self.now)
            self.send(i.Timer(name))
        self.now = until

    # ---- what came out ----
    @property
    def status(self) -> o.PodStatus:
        return self.statuses[-1][0]

    @property
    def ended(self) -> bool:
        return self.statuses[-1][1]

    @property
    def container(self) -> o.ContainerStatus:
        return self.status.containerStatuses[0]

    def count(self, kind: type[T]) -> int:
        return sum(isinstance(instruction, kind) for instruction in self.given)

    def last(self, kind: type[T]) -> T:
        return [instruction for instruction in self.given if isinstance(instruction, kind)][-1]


def running(pod: o.Pod | None = None) -> Driver:
    """A pod whose containers run."""
    driver = Driver(pod)
    driver.begin()
    driver.settle()
    assert driver.status.phase == "Running"
    return driver
