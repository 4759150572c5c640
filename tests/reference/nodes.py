"""A node, and what a pod's class says of it on its own: selector, affinity, tolerations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.master.scheduler.classes import PodClass, Tolerance

Taint = tuple[str, str, str]  # key, value, effect
HARD_EFFECTS = ("NoSchedule", "NoExecute")


@dataclass(frozen=True)
class Node:
    name: str
    alloc: Mapping[str, int]
    labels: Mapping[str, str]
    taints: frozenset[Taint] = frozenset()
    ready: bool = True
    images: Mapping[str, int] = field(default_factory=dict)  # bytes

    def amount(self, resource: str) -> int:
        return self.alloc.get(resource, 0)


def lets_in(what: PodClass, node: Node) -> bool:
    """The pod's nodeSelector and its required node affinity."""
    if any(node.labels.get(key) != value for key, value in what.selector):
        return False
    return what.node_terms is None or any(term.holds(node.name, node.labels) for term in what.node_terms)


def untolerated(what: PodClass, node: Node, effects: tuple[str, ...]) -> list[Taint]:
    rest = [t for t in node.taints if t[2] in effects and not any(accepts(one, t) for one in what.tolerances)]
    return sorted(rest)


def accepts(tolerance: Tolerance, taint: Taint) -> bool:
    key, value, effect = taint
    if tolerance.effect not in ("", effect):
        return False
    if tolerance.exists:
        return tolerance.key in ("", key)
    return (tolerance.key, tolerance.value) == (key, value)
