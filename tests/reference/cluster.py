"""The plain scheduler's picture of a cluster: dictionaries of what there is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.profiles import BUILT_IN, Profile
from shoal.master.scheduler.terms import PodMatch, Selector
from tests.reference.devices import GPU, WHOLE, Typical
from tests.reference.nodes import Node, selects
from tests.reference.storage import Storage


@dataclass(frozen=True)
class Pod:
    """Pending without a node; else held by it. `devices`: the numbers of those that it has."""

    uid: str
    what: PodClass
    arrival: int = 0
    node: str = ""
    leaving: bool = False
    nominated: bool = False
    devices: tuple[int, ...] = ()
    name: str = ""  # the uid when it has none

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.what.labels)

    def importance(self) -> tuple[int, int, str, str]:
        """What is to be kept first sorts first."""
        return -self.what.priority, self.arrival, self.name or self.uid, self.uid


@dataclass
class Budget:
    namespace: str
    selector: Selector | None
    allowed: int

    def covers(self, pod: Pod) -> bool:
        here = pod.what.namespace == self.namespace
        return here and selects(self.selector, pod.labels)


@dataclass(frozen=True)
class Group:
    minimum: int
    key: str = ""  # of a node label: all members in one domain of it


@dataclass
class Cluster:
    nodes: dict[str, Node] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)  # by uid: those that some node holds
    spaces: dict[str, Mapping[str, str]] = field(default_factory=dict)  # labels of namespaces
    budgets: list[Budget] = field(default_factory=list)
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    storage: Storage = field(default_factory=Storage)
    typical: Typical = field(default_factory=Typical)
    profiles: Mapping[str, Profile] = field(default_factory=lambda: dict(BUILT_IN))

    def in_order(self) -> list[Node]:
        return [self.nodes[name] for name in sorted(self.nodes)]

    def held(self) -> list[tuple[Pod, Node]]:
        """The pods on nodes of the cluster."""
        return [(pod, self.nodes[pod.node]) for pod in self.pods.values() if pod.node in self.nodes]

    def on(self, node: str) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.node == node]

    def left(self, node: Node) -> list[int]:
        """Milli of each device of the node; below 0 where more is held than there is."""
        found = [WHOLE] * node.amount(GPU)
        for pod in self.on(node.name):
            for device in pod.devices:
                if device < len(found):
                    found[device] -= pod.what.gpu_milli or WHOLE
        return found

    def means(self, match: PodMatch, what: PodClass) -> bool:
        """Whether a term means pods of this class."""
        inside = what.namespace in match.namespaces or selects(match.spaces, self.spaces.get(what.namespace, {}))
        return inside and selects(match.selector, dict(what.labels))

    def profile(self, what: PodClass) -> Profile:
        return self.profiles[what.profile]

    def hold(self, pod: Pod) -> None:
        assert pod.uid not in self.pods, f"{pod.uid} is held twice"
        self.pods[pod.uid] = pod

    def without(self, uids: Iterable[str]) -> Cluster:
        """A copy in which these pods are not there."""
        gone = set(uids)
        return replace(self, pods={uid: pod for uid, pod in self.pods.items() if uid not in gone})

    def users(self) -> dict[str, set[str]]:
        """Claim -> nodes of the pods that use it."""
        found: dict[str, set[str]] = {}
        for pod in self.pods.values():
            for claim in pod.what.claims:
                found.setdefault(claim, set()).add(pod.node)
        return found
