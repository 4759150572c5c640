"""The words between a pod's machine and the worker: instructions out, events in. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from shoal.agent.images.port import Credential, Image
from shoal.agent.network.port import HostPort
from shoal.agent.pods.healthy import Baseline
from shoal.agent.pods.probing import Target, Verdict
from shoal.agent.runtime.port import ContainerID, ContainerSpec, ContainerState, Exit, SandboxSpec
from shoal.agent.state import PodRecord
from shoal.agent.volumes.port import VolumeSpec
from shoal.proto.v1 import objects_pb2 as o


# ---- steps: they take time, each ends in Done or Failed, and none is given again while it is in flight ----
@dataclass(frozen=True, slots=True)
class EnsureSandbox:
    """Done's value: the Sandbox."""

    spec: SandboxSpec
    key = "sandbox"


@dataclass(frozen=True, slots=True)
class Attach:
    """Done's value: the pod's address."""

    netns: str
    ports: tuple[HostPort, ...] = ()
    key = "attach"


@dataclass(frozen=True, slots=True)
class HoldImage:
    """Done's value: the Image, or None when it is not on the node."""

    container: str
    name: str
    holder: str

    @property
    def key(self) -> str:
        return f"hold {self.container}"


@dataclass(frozen=True, slots=True)
class PullImage:
    """Fetches and holds it. Done's value: the Image."""

    container: str
    name: str
    holder: str
    credentials: Sequence[Credential] = field(default=(), repr=False)

    @property
    def key(self) -> str:
        return f"pull {self.container}"


@dataclass(frozen=True, slots=True)
class PrepareVolumes:
    """Done's value: Prepared by the volume's name."""

    specs: Sequence[VolumeSpec] = field(repr=False)
    key = "volumes"


@dataclass(frozen=True, slots=True)
class UpdateVolumes:
    """The volumes whose files have changed."""

    specs: Sequence[VolumeSpec] = field(repr=False)
    key = "update volumes"


@dataclass(frozen=True, slots=True)
class FreeVolumes:
    key = "free volumes"


@dataclass(frozen=True, slots=True)
class RunHook:
    """Done's value: "" or why the hook failed."""

    id: ContainerID
    which: str  # postStart, preStop
    handler: o.LifecycleHandler
    host: str
    ports: Mapping[str, int]
    timeout_s: float

    @property
    def key(self) -> str:
        return f"hook {self.which} {self.id.name}"


@dataclass(frozen=True, slots=True)
class ReadLogTail:
    """Done's value: the end of the run's output, as text."""

    id: ContainerID

    @property
    def key(self) -> str:
        return f"tail {self.id.name} {self.id.attempt}"


@dataclass(frozen=True, slots=True)
class Bury:
    """Writes a run's death certificate, with the end of its output, and sees that the master gets it."""

    id: ContainerID
    death: o.Death

    @property
    def key(self) -> str:
        return f"bury {self.id.name} {self.id.attempt}"


@dataclass(frozen=True, slots=True)
class Start:
    """Done's value: the ContainerState."""

    spec: ContainerSpec

    @property
    def key(self) -> str:
        return f"start {self.spec.id.name}"


@dataclass(frozen=True, slots=True)
class Signal:
    id: ContainerID
    signal: int

    @property
    def key(self) -> str:
        return f"signal {self.id.name} {self.signal}"


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    id: ContainerID

    @property
    def key(self) -> str:
        return f"remove {self.id.name} {self.id.attempt}"


@dataclass(frozen=True, slots=True)
class Detach:
    key = "detach"


@dataclass(frozen=True, slots=True)
class RemoveSandbox:
    """With its logs and images: nothing of the pod is left."""

    holders: Sequence[str]
    key = "free"


@dataclass(frozen=True, slots=True)
class Save:
    """Writes the record; what follows from it waits for Done."""

    record: PodRecord
    key = "save"


Step: TypeAlias = (
    EnsureSandbox
    | Attach
    | HoldImage
    | PullImage
    | PrepareVolumes
    | UpdateVolumes
    | FreeVolumes
    | Start
    | RunHook
    | ReadLogTail
    | Signal
    | RemoveContainer
    | Detach
    | RemoveSandbox
    | Save
    | Bury
)


# ---- instructions that are carried out at once ----
@dataclass(frozen=True, slots=True)
class SetTimer:
    """A Timer event with this name after `delay` seconds; a timer of the same name is replaced."""

    name: str
    delay: float


@dataclass(frozen=True, slots=True)
class Publish:
    status: o.PodStatus
    ended: bool = False


@dataclass(frozen=True, slots=True)
class SetProbes:
    target: Target


@dataclass(frozen=True, slots=True)
class ForgetProbes:
    container: str


@dataclass(frozen=True, slots=True)
class Remember:
    """What a workload's container was healthy with. Nothing waits until it is on the disk."""

    workload: str
    baseline: Baseline = field(repr=False)


@dataclass(frozen=True, slots=True)
class Forget:
    """The pod is not assigned any more and nothing of it is left: drop the machine and its record."""


Instruction: TypeAlias = Step | SetTimer | Publish | SetProbes | ForgetProbes | Remember | Forget


# ---- events ----
@dataclass(frozen=True, slots=True)
class Begin:
    """The first event: what the node already has of this pod (an agent that starts again finds it running)."""

    containers: Sequence[ContainerState] = ()
    netns: str = ""
    address: str = ""
    images: Mapping[str, Image] = field(default_factory=dict)  # container -> image


@dataclass(frozen=True, slots=True)
class Assigned:
    """The pod as it is assigned now."""

    pod: o.Pod


@dataclass(frozen=True, slots=True)
class Removed:
    """The pod is not assigned to this node any more."""


@dataclass(frozen=True, slots=True)
class Done:
    step: Step
    value: object = None


@dataclass(frozen=True, slots=True)
class Failed:
    """`reason` is Kubernetes' word for a container that could not be started, else it names the failed step."""

    step: Step
    reason: str
    message: str
    exit_code: int = 128
    retryable: bool = True
    retry_after: float = 0.0  # seconds that the other side asked for


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a step is, for people."""

    step: Step
    text: str


@dataclass(frozen=True, slots=True)
class Told:
    """What the prober found."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The node cannot go on with the pod: its containers are ended within `grace` seconds and it fails."""

    reason: str
    message: str
    grace: float


@dataclass(frozen=True, slots=True)
class ContainerExited:
    id: ContainerID
    exit: Exit


@dataclass(frozen=True, slots=True)
class Observed:
    """Every run of the pod that the node knows, listed again after a lost connection."""

    containers: Sequence[ContainerState]


@dataclass(frozen=True, slots=True)
class Timer:
    name: str


@dataclass(frozen=True, slots=True)
class ImagesChanged:
    """Images were loaded or removed: a missing one may be here now."""


@dataclass(frozen=True, slots=True)
class ObjectsChanged:
    """Something that the pod refers to came, changed or went."""


Event: TypeAlias = (
    Begin
    | Assigned
    | Removed
    | Done
    | Failed
    | Progress
    | Told
    | GiveUp
    | ContainerExited
    | Observed
    | Timer
    | ImagesChanged
    | ObjectsChanged
)
