"""The terms of affinity and spread as plain data: hashable, so that equal ones are counted once.

Source: Kubernetes core/v1, NodeSelectorTerm, PodAffinityTerm, TopologySpreadConstraint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NAME_FIELD = "metadata.name"


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition on one label. `operator`: In, NotIn, Exists, DoesNotExist, and for nodes Gt, Lt."""

    key: str
    operator: str
    values: tuple[str, ...] = ()  # sorted

    def holds(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        if self.operator == "In":
            return value in self.values
        if self.operator == "NotIn":
            return value not in self.values
        if self.operator == "Exists":
            return value is not None
        if self.operator == "DoesNotExist":
            return value is None
        return self._compares(value)

    def _compares(self, value: str | None) -> bool:
        """Whole numbers only; anything else does not hold."""
        try:
            have, limit = int(value or ""), int(self.values[0])
        except (ValueError, IndexError):
            return False
        return have > limit if self.operator == "Gt" else self.operator == "Lt" and have < limit


@dataclass(frozen=True, slots=True)
class NodeTerm:
    """All rules must hold; a term without any holds for no node."""

    labels: tuple[Rule, ...] = ()
    fields: tuple[Rule, ...] = ()  # on metadata.name

    def holds(self, name: str, labels: Mapping[str, str]) -> bool:
        if not self.labels and not self.fields:
            return False
        named = {NAME_FIELD: name}
        return all(rule.holds(labels) for rule in self.labels) and all(rule.holds(named) for rule in self.fields)


@dataclass(frozen=True, slots=True)
class Selector:
    """Label rules that must all hold; without any, everything matches."""

    rules: tuple[Rule, ...] = ()  # sorted by key, operator, values

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(rule.holds(labels) for rule in self.rules)


@dataclass(frozen=True, slots=True)
class PodMatch:
    """Which pods a term means: in one of `namespaces`, or one whose labels `spaces` matches, with labels that
    `selector` matches; without a selector none."""

    namespaces: tuple[str, ...]  # sorted
    spaces: Selector | None
    selector: Selector | None

    def matches(self, namespace: str, labels: Mapping[str, str], space_labels: Mapping[str, str]) -> bool:
        inside = namespace in self.namespaces or (self.spaces is not None and self.spaces.matches(space_labels))
        return inside and self.selector is not None and self.selector.matches(labels)


@dataclass(frozen=True, slots=True)
class PodTerm:
    """Pods that match, in the same domain of the node label `key`."""

    key: str
    match: PodMatch


@dataclass(frozen=True, slots=True)
class Spread:
    """A topology spread constraint; `match` means the pod's own namespace."""

    key: str
    max_skew: int
    hard: bool  # DoNotSchedule
    match: PodMatch
    min_domains: int = 1
    honor_affinity: bool = True
    honor_taints: bool = False
