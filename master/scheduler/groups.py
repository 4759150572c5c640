"""What the snapshot knows of disruption budgets and pod groups, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.master.scheduler.affinity import selector_of
from shoal.master.scheduler.terms import Selector
from shoal.proto.v1 import objects_pb2 as o


@dataclass(frozen=True, slots=True)
class Budget:
    """A PodDisruptionBudget: how many more of the pods that `selector` matches may be evicted. None matches nothing."""

    namespace: str
    name: str
    selector: Selector | None
    allowed: int
    disrupted: frozenset[str]  # names of pods whose eviction it has counted already


@dataclass(frozen=True, slots=True)
class Group:
    """A PodGroup: at least `members` of its pods are placed, or none; all in one domain of `key`, if it names one."""

    members: int
    key: str


def budget_of(found: o.PodDisruptionBudget) -> Budget:
    selector = selector_of(found.spec.selector) if found.spec.HasField("selector") else None
    status = found.status
    disrupted = frozenset(status.disruptedPods)
    return Budget(found.metadata.namespace, found.metadata.name, selector, status.disruptionsAllowed, disrupted)


def group_of(found: o.PodGroup) -> Group:
    return Group(found.spec.minMember if found.spec.HasField("minMember") else 1, found.spec.topologyKey)
