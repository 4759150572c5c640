"""Preemption, plainly: on each node, whose room would have to be taken; then the node where that costs least."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.master.scheduler.classes import PodClass
from tests.reference.cluster import Cluster, Pod
from tests.reference.filters import Look, reason
from tests.reference.nodes import Node

LOWEST = -(2**63)  # below every priority


@dataclass
class Option:
    node: str
    victims: list[Pod]
    breaks: int  # victims whose eviction breaks a budget
    overtaken: list[Pod]  # nominated pods that lose their room
    without: Cluster  # the cluster when all of them have gone, and those that are leaving

    def cost(self) -> tuple[int, int, int, int, str]:
        priorities = [pod.what.priority for pod in self.victims]
        return self.breaks, max(priorities, default=LOWEST), len(priorities), sum(priorities), self.node


def preempt(cluster: Cluster, what: PodClass) -> Option | None:
    """The cheapest way to make room for one pod that fits nowhere; None when there is none or it may not."""
    if not what.preempts:
        return None
    options = [found for node in cluster.in_order() if (found := _option(cluster, what, node))]
    return min(options, key=Option.cost, default=None)


def _option(cluster: Cluster, what: PodClass, node: Node) -> Option | None:
    lower = sorted((p for p in cluster.on(node.name) if p.what.priority < what.priority), key=Pod.importance)
    without = cluster.without(pod.uid for pod in lower)
    if not lower or reason(Look(without, what), node):
        return None
    real = [pod for pod in lower if not pod.leaving and not pod.nominated]
    breaking = _breaking(cluster, real)
    nominated = [pod for pod in lower if pod.nominated and not pod.leaving]
    away: list[Pod] = []
    for pod in [*breaking, *(p for p in real if p not in breaking), *nominated]:
        without.hold(pod)
        if reason(Look(without, what), node):
            del without.pods[pod.uid]
            away.append(pod)
    victims = [pod for pod in away if not pod.nominated]
    breaks = sum(pod in breaking for pod in victims)
    return Option(node.name, victims, breaks, [pod for pod in away if pod.nominated], without)


def _breaking(cluster: Cluster, pods: list[Pod]) -> list[Pod]:
    """Those whose eviction a budget does not allow, when all are evicted in the order of their importance."""
    allowed = [budget.allowed for budget in cluster.budgets]
    found = []
    for pod in pods:
        breaks = False
        for index, budget in enumerate(cluster.budgets):
            if budget.covers(pod):
                allowed[index] -= 1
                breaks = breaks or allowed[index] < 0
        if breaks:
            found.append(pod)
    return found
