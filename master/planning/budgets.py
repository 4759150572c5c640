"""Disruption budgets as evictions see them."""

from __future__ import annotations

from shoal.master.controllers.base import instant, ready
from shoal.master.model import Key, Modify, Object, View, key_of
from shoal.proto.selector import LabelSelector, from_message
from shoal.proto.v1 import objects_pb2 as o

ALWAYS_ALLOW = "AlwaysAllow"


class Guards:
    """The budgets of a view, their selectors read once."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._read: dict[str, list[tuple[LabelSelector, Key]]] = {}  # by namespace

    def of(self, pod: o.Pod) -> list[o.PodDisruptionBudget]:
        """The budgets that count the pod, by name, as they are now."""
        namespace = pod.metadata.namespace
        if namespace not in self._read:
            found = [
                b for b in self._view.all("PodDisruptionBudget", namespace) if isinstance(b, o.PodDisruptionBudget)
            ]
            found.sort(key=lambda budget: budget.metadata.name)
            self._read[namespace] = [
                (from_message(budget.spec.selector), key_of(budget))
                for budget in found
                if budget.spec.HasField("selector")
            ]
        keys = [key for selector, key in self._read[namespace] if selector.matches(pod.metadata.labels)]
        return [now for key in keys if isinstance(now := self._view.get(*key), o.PodDisruptionBudget)]


def bypasses(budget: o.PodDisruptionBudget, pod: o.Pod) -> bool:
    """Whether the pod may go without the budget's leave, as it is no healthy one (unhealthyPodEvictionPolicy)."""
    if ready(pod):
        return False
    status = budget.status
    return budget.spec.unhealthyPodEvictionPolicy == ALWAYS_ALLOW or status.currentHealthy >= status.desiredHealthy > 0


def forbids(budget: o.PodDisruptionBudget, pod: o.Pod) -> str:
    """Why this pod must not be evicted now; "" when it may be (policy/v1, unhealthyPodEvictionPolicy)."""
    status = budget.status
    if bypasses(budget, pod) or granted(budget, pod):  # it has counted this eviction, whose answer was lost
        return ""
    if status.observedGeneration < budget.metadata.generation:
        return "the budget has just changed and was not looked at yet"
    if status.disruptionsAllowed > 0:
        return ""
    return f"it needs {status.desiredHealthy} healthy pods and has {status.currentHealthy}"


def grant(budget: o.PodDisruptionBudget, pod: o.Pod, now: float) -> Modify:
    """Takes one disruption for this pod, if there is one on committed state, and writes the pod down, so that it counts
    as gone from this moment on; `granted` says whether it did."""
    name = pod.metadata.name

    def edit(found: Object) -> bool:
        if not isinstance(found, o.PodDisruptionBudget) or granted(found, pod) or found.status.disruptionsAllowed <= 0:
            return False
        found.status.disruptionsAllowed -= 1
        found.status.disruptedPods[name].CopyFrom(instant(now))
        return True

    return Modify(key_of(budget), edit, uid=budget.metadata.uid)


def granted(budget: Object, pod: o.Pod) -> bool:
    return isinstance(budget, o.PodDisruptionBudget) and pod.metadata.name in budget.status.disruptedPods
