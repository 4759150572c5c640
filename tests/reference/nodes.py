"""A node, and what a pod's class says of it on its own: selector, affinity, tolerations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.master.scheduler.classes import PodClass, Tolerance
from shoal.master.scheduler.terms import NAME_FIELD, NodeTerm, Rule, Selector

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


def rule_holds(rule: Rule, labels: Mapping[str, str]) -> bool:
    """Gt and Lt compare whole numbers; what is none does not hold."""
    there, value = rule.key in labels, labels.get(rule.key, "")
    if rule.operator in ("Gt", "Lt"):
        number = re.fullmatch(r"[+-]?[0-9]+", value)
        if number is None:
            return False
        return int(value) > int(rule.values[0]) if rule.operator == "Gt" else int(value) < int(rule.values[0])
    return {
        "In": there and value in rule.values,
        "NotIn": not there or value not in rule.values,
        "Exists": there,
        "DoesNotExist": not there,
    }[rule.operator]


def selects(selector: Selector | None, labels: Mapping[str, str]) -> bool:
    """No selector nothing, an empty one everything."""
    return selector is not None and all(rule_holds(rule, labels) for rule in selector.rules)


def term_holds(term: NodeTerm, node: Node) -> bool:
    """All rules; a term without any holds for no node."""
    if not term.labels and not term.fields:
        return False
    named = {NAME_FIELD: node.name}
    here = [rule_holds(rule, node.labels) for rule in term.labels]
    return all(here) and all(rule_holds(rule, named) for rule in term.fields)


def lets_in(what: PodClass, node: Node) -> bool:
    """The pod's nodeSelector and its required node affinity."""
    if any(node.labels.get(key) != value for key, value in what.selector):
        return False
    return what.node_terms is None or any(term_holds(term, node) for term in what.node_terms)


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
