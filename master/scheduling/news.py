"""What a batch of events changed, as far as it could change the fate of a pod that waits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.filters import HARD_EFFECTS, untolerated
from shoal.master.scheduler.snapshot import NodeFacts


@dataclass(slots=True)
class News:
    """`freed`: node -> classes of the pods that hold it no longer. `left` and `came`: classes of pods that do not count
    any more, or newly do, for the terms of others (a relabelled pod does both, one that is being deleted leaves).
    `nodes`: before and after. `spaces`: namespaces with other labels. `groups`: PodGroups (namespace, name)."""

    freed: dict[str, list[PodClass]] = field(default_factory=dict)
    left: list[PodClass] = field(default_factory=list)
    came: list[PodClass] = field(default_factory=list)
    nodes: dict[str, tuple[NodeFacts | None, NodeFacts | None]] = field(default_factory=dict)
    spaces: set[str] = field(default_factory=set)
    groups: set[tuple[str, str]] = field(default_factory=set)
    volumes: bool = False

    def __bool__(self) -> bool:
        return bool(
            self.freed or self.left or self.came or self.nodes or self.spaces or self.groups or self.volumes
        )  # fmt: skip

    def free(self, node: str, pods: PodClass) -> None:
        self.freed.setdefault(node, []).append(pods)
        self.left.append(pods)
        self.volumes = self.volumes or bool(pods.claims)

    def name(self) -> str:
        """The event in Kubernetes' words, for the metrics."""
        if self.nodes:
            return "NodeAdd" if any(old is None for old, _ in self.nodes.values()) else "NodeUpdate"
        if self.freed:
            return "AssignedPodDelete"
        if self.left or self.came:
            return "AssignedPodUpdate" if self.left else "AssignedPodAdd"
        return "NamespaceUpdate" if self.spaces else "PodGroupUpdate" if self.groups else "VolumeUpdate"


def admits(facts: NodeFacts, pods: PodClass) -> bool:
    """Whether the node would take the class if it were empty, as far as its facts say."""
    if not facts.ready or any(facts.labels.get(key) != value for key, value in pods.selector):
        return False
    terms = pods.node_terms
    if terms is not None and not any(term.holds(facts.name, facts.labels) for term in terms):
        return False
    return not any(taint.effect in HARD_EFFECTS for taint in untolerated(pods, list(facts.taints)))


def distinct(classes: Iterable[PodClass]) -> list[PodClass]:
    """Each object once."""
    return list({id(pods): pods for pods in classes}.values())
