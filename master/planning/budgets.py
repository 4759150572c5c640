"""Disruption budgets as evictions see them."""

from __future__ import annotations

from shoal.master.controllers.base import ready
from shoal.master.model import Modify, Object, View, key_of
from shoal.proto.selector import from_message
from shoal.proto.v1 import objects_pb2 as o

ALWAYS_ALLOW = "AlwaysAllow"


def budgets_of(view: View, pod: o.Pod) -> list[o.PodDisruptionBudget]:
    """The budgets that count the pod, by name."""
    found = [
        budget
        for budget in view.all("PodDisruptionBudget", pod.metadata.namespace)
        if isinstance(budget, o.PodDisruptionBudget)
        and budget.spec.HasField("selector")
        and from_message(budget.spec.selector).matches(pod.metadata.labels)
    ]
    return sorted(found, key=lambda budget: budget.metadata.name)


def forbids(budget: o.PodDisruptionBudget, pod: o.Pod) -> str:
    """Why this pod must not be evicted now; "" when it may be (policy/v1, unhealthyPodEvictionPolicy)."""
    status = budget.status
    if not ready(pod):
        if budget.spec.unhealthyPodEvictionPolicy == ALWAYS_ALLOW:
            return ""
        if status.currentHealthy >= status.desiredHealthy > 0:
            return ""
    if status.observedGeneration < budget.metadata.generation:
        return "the budget has just changed and was not looked at yet"
    if status.disruptionsAllowed > 0:
        return ""
    return f"it needs {status.desiredHealthy} healthy pods and has {status.currentHealthy}"


def take(budget: o.PodDisruptionBudget) -> Modify:
    """One disruption less is allowed, until its controller has counted anew."""

    def edit(found: Object) -> bool:
        if not isinstance(found, o.PodDisruptionBudget) or found.status.disruptionsAllowed <= 0:
            return False
        found.status.disruptionsAllowed -= 1
        return True

    return Modify(key_of(budget), edit, uid=budget.metadata.uid)
