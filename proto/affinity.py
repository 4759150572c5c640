"""Node selectors: which nodes a required affinity lets in (Kubernetes' NodeSelector)."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.proto.v1 import objects_pb2 as o

NAME_FIELD = "metadata.name"


def matches(selector: o.NodeSelector, name: str, labels: Mapping[str, str]) -> bool:
    """One of the terms must hold, with all that it says; a term that says nothing holds for no node."""
    return any(_term(term, name, labels) for term in selector.nodeSelectorTerms)


def _term(term: o.NodeSelectorTerm, name: str, labels: Mapping[str, str]) -> bool:
    if not term.matchExpressions and not term.matchFields:
        return False
    fields = {NAME_FIELD: name}
    return all(_rule(r, labels) for r in term.matchExpressions) and all(_rule(r, fields) for r in term.matchFields)


def _rule(rule: o.NodeSelectorRequirement, values: Mapping[str, str]) -> bool:
    value = values.get(rule.key)
    if rule.operator == "In":
        return value in rule.values
    if rule.operator == "NotIn":
        return value not in rule.values
    if rule.operator == "Exists":
        return value is not None
    if rule.operator == "DoesNotExist":
        return value is None
    return _compared(rule, value)


def _compared(rule: o.NodeSelectorRequirement, value: str | None) -> bool:
    """Gt and Lt, on whole numbers; anything else does not match."""
    try:
        have, limit = int(value or ""), int(rule.values[0])
    except (ValueError, IndexError):
        return False
    return have > limit if rule.operator == "Gt" else rule.operator == "Lt" and have < limit
