"""The rules for where pods and volumes may go: tolerations, node selectors, node affinity."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.proto import names
from shoal.proto.rules.base import Report, at_most, say
from shoal.proto.rules.labels import labels
from shoal.proto.v1 import objects_pb2 as o

MAX_TERMS = 100
MAX_VALUES = 1000
OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")


def node_labels(wanted: Mapping[str, str], path: str, report: Report) -> None:
    """A pod's nodeSelector."""
    labels(wanted, path, report)


def toleration(item: o.Toleration, path: str, report: Report) -> None:
    if item.key:
        say(report, f"{path}.key", names.not_label_key(item.key))
    elif item.operator != "Exists":
        report(f"{path}.operator", 'must be "Exists" when key is empty: name a key, or tolerate every taint so')
    say(report, f"{path}.operator", names.not_one_of(item.operator, ("Equal", "Exists")))
    if item.operator == "Exists" and item.value:
        report(f"{path}.value", 'must be empty when operator is "Exists": remove it, or use "Equal"')
    elif item.value:
        say(report, f"{path}.value", names.not_label_value(item.value))
    if item.effect:
        say(report, f"{path}.effect", names.not_one_of(item.effect, names.TAINT_EFFECTS))
    if item.HasField("tolerationSeconds") and item.effect != "NoExecute":
        report(
            f"{path}.effect", 'must be "NoExecute" when tolerationSeconds is set: only that effect ends running pods'
        )


def node_selector(selector: o.NodeSelector, path: str, report: Report) -> None:
    """Terms, of which one must hold; the requirements of a term must all hold."""
    terms = selector.nodeSelectorTerms
    if not terms:
        report(f"{path}.nodeSelectorTerms", "is missing: give at least one term")
    at_most(terms, MAX_TERMS, f"{path}.nodeSelectorTerms", report)
    for index, term in enumerate(terms):
        node_term(term, f"{path}.nodeSelectorTerms[{index}]", report)


def node_term(term: o.NodeSelectorTerm, path: str, report: Report) -> None:
    """What one term asks of a node; a term that says nothing matches none, and is fine."""
    for name in ("matchExpressions", "matchFields"):
        at_most(getattr(term, name), MAX_TERMS, f"{path}.{name}", report)
    for number, expression in enumerate(term.matchExpressions):
        _expression(expression, f"{path}.matchExpressions[{number}]", report)
    for number, field in enumerate(term.matchFields):
        _field(field, f"{path}.matchFields[{number}]", report)


def _expression(item: o.NodeSelectorRequirement, path: str, report: Report) -> None:
    say(report, f"{path}.key", names.not_label_key(item.key))
    at_most(item.values, MAX_VALUES, f"{path}.values", report)
    wrong = names.not_one_of(item.operator, OPERATORS)
    if wrong is not None:
        report(f"{path}.operator", wrong)
    elif item.operator in ("In", "NotIn"):
        if not item.values:
            report(f"{path}.values", f"are missing: {item.operator} needs at least one")
        for index, value in enumerate(item.values):
            say(report, f"{path}.values[{index}]", names.not_label_value(value))
    elif item.operator in ("Gt", "Lt"):
        if len(item.values) != 1 or not item.values[0].lstrip("-").isdecimal():
            report(f"{path}.values", f"must be one whole number, in quotes: {item.operator} compares with it")
    elif item.values:
        report(f"{path}.values", f"are not used by {item.operator}: remove them")


def _field(item: o.NodeSelectorRequirement, path: str, report: Report) -> None:
    if item.key != "metadata.name":
        report(f"{path}.key", "must be metadata.name: nodes are chosen by no other field")
    say(report, f"{path}.operator", names.not_one_of(item.operator, ("In", "NotIn")))
    if len(item.values) != 1:
        report(f"{path}.values", "must be one node's name")
    else:
        say(report, f"{path}.values[0]", names.not_dns_subdomain(item.values[0]))
