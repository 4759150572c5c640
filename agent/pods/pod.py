"""What a node knows of one pod, shared by the parts of its machine. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shoal.agent.objects import Objects
from shoal.agent.pods.facts import NOTHING, ContainerFacts
from shoal.agent.pods.spec import NodeFacts
from shoal.agent.runtime.port import ContainerID
from shoal.agent.state import PodRecord, RunNote
from shoal.agent.volumes.port import Prepared, VolumeSpec
from shoal.proto.v1 import objects_pb2 as o

DEFAULT_GRACE_S = 30


@dataclass(slots=True)
class PodFacts:
    pod: o.Pod
    node: NodeFacts
    objects: Objects
    record: PodRecord
    containers: dict[str, ContainerFacts]
    netns: str = ""
    attached: bool = False
    address: str = ""
    specs: Sequence[VolumeSpec] = ()  # as the node has made them
    prepared: Mapping[str, Prepared] | None = None  # None: not yet, by this agent
    volumes_stale: bool = False  # what they are made from may have changed
    held: tuple[str, str] | None = None  # reason and message of what holds all containers back
    unresolved: bool = False  # it is something that the volumes refer to
    recorded: bool = False  # the disk knows the pod
    unsaved: bool = False  # the disk has to know more before there is another sandbox

    @property
    def uid(self) -> str:
        return self.record.uid

    @property
    def policy(self) -> str:
        return self.pod.spec.restartPolicy or "Always"

    @property
    def ordered(self) -> list[ContainerFacts]:
        """In the order in which they start."""
        return list(self.containers.values())

    @property
    def stopping(self) -> bool:
        return self.record.stop_started > 0

    @property
    def failed(self) -> bool:
        return self.record.failed_at > 0

    @property
    def own_grace(self) -> float:
        """Seconds that the manifest gives its containers to end."""
        spec = self.pod.spec
        given = spec.HasField("terminationGracePeriodSeconds")
        return float(spec.terminationGracePeriodSeconds if given else DEFAULT_GRACE_S)

    @property
    def stop_grace(self) -> float:
        """Seconds between the deletion and KILL."""
        meta = self.pod.metadata
        given = meta.HasField("deletionGracePeriodSeconds")
        return float(meta.deletionGracePeriodSeconds) if given else self.own_grace

    def id(self, container: ContainerFacts, attempt: int) -> ContainerID:
        return ContainerID(self.uid, container.spec.name, attempt)

    def holder(self, container: ContainerFacts) -> str:
        """Who holds the container's image."""
        return f"{self.uid}/{container.spec.name}"

    def ports(self, container: ContainerFacts) -> Mapping[str, int]:
        return {port.name: port.containerPort for port in container.spec.ports if port.name}

    def notes(self) -> dict[str, RunNote]:
        """What outlives the agent, of the last two runs of each container."""
        return {
            container.note_key(run.attempt): run.note
            for container in self.containers.values()
            for run in (container.previous, container.run)
            if run is not None and run.note != NOTHING
        }


@dataclass(frozen=True, slots=True)
class Limit:
    """When a run has to be over."""

    since: float
    grace: float = field(default=0.0)

    @property
    def at(self) -> float:
        return self.since + self.grace
