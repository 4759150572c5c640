"""The rules for affinity and topology spread (core/v1: Affinity, TopologySpreadConstraint).

Terms that contradict themselves are let through, as in Kubernetes: the scheduler says why such a pod waits.
"""

from __future__ import annotations

from collections.abc import Collection

from shoal.proto import names
from shoal.proto.rules.base import Report, at_most, in_range, say
from shoal.proto.rules.labels import label_keys, label_selector
from shoal.proto.rules.placement import node_selector, node_term
from shoal.proto.v1 import objects_pb2 as o

MAX_TERMS = 100  # of each sort
MAX_NAMESPACES = 500
MAX_WEIGHT = 100
MAX_SKEW = 2**31 - 1
UNSATISFIABLE = ("DoNotSchedule", "ScheduleAnyway")
POLICIES = ("Honor", "Ignore")
REQUIRED, PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)


def affinity(found: o.Affinity, path: str, report: Report) -> None:
    """A pod's affinity."""
    _node_affinity(found.nodeAffinity, f"{path}.nodeAffinity", report)
    _pod_affinity(found.podAffinity, f"{path}.podAffinity", report)
    _pod_affinity(found.podAntiAffinity, f"{path}.podAntiAffinity", report)


def _node_affinity(found: o.NodeAffinity, path: str, report: Report) -> None:
    if found.HasField("requiredDuringSchedulingIgnoredDuringExecution"):
        node_selector(getattr(found, REQUIRED), f"{path}.{REQUIRED}", report)
    preferred = getattr(found, PREFERRED)
    at_most(preferred, MAX_TERMS, f"{path}.{PREFERRED}", report)
    for index, term in enumerate(preferred):
        where = f"{path}.{PREFERRED}[{index}]"
        in_range(term.weight, 1, MAX_WEIGHT, f"{where}.weight", report)
        node_term(term.preference, f"{where}.preference", report)


def _pod_affinity(found: o.PodAffinity | o.PodAntiAffinity, path: str, report: Report) -> None:
    for name in (REQUIRED, PREFERRED):
        at_most(getattr(found, name), MAX_TERMS, f"{path}.{name}", report)
    for index, term in enumerate(getattr(found, REQUIRED)):
        _pod_term(term, f"{path}.{REQUIRED}[{index}]", report)
    for index, weighted in enumerate(getattr(found, PREFERRED)):
        where = f"{path}.{PREFERRED}[{index}]"
        in_range(weighted.weight, 1, MAX_WEIGHT, f"{where}.weight", report)
        _pod_term(weighted.podAffinityTerm, f"{where}.podAffinityTerm", report)


def _pod_term(term: o.PodAffinityTerm, path: str, report: Report) -> None:
    _topology_key(term.topologyKey, path, report)
    for name in ("labelSelector", "namespaceSelector"):
        if term.HasField(name):
            label_selector(getattr(term, name), f"{path}.{name}", report)
    at_most(term.namespaces, MAX_NAMESPACES, f"{path}.namespaces", report)
    for index, namespace in enumerate(term.namespaces):
        say(report, f"{path}.namespaces[{index}]", names.not_dns_label(namespace))
    for name in ("matchLabelKeys", "mismatchLabelKeys"):
        _keys_of_the_pod(term, name, path, report)
    for index, key in enumerate(term.mismatchLabelKeys):
        if key in term.matchLabelKeys:
            report(f"{path}.mismatchLabelKeys[{index}]", f'"{key}" is in matchLabelKeys too: no pod could match')


def _topology_key(key: str, path: str, report: Report) -> None:
    if not key:
        report(f"{path}.topologyKey", "is missing: name a label of nodes, such as kubernetes.io/hostname")
    else:
        say(report, f"{path}.topologyKey", names.not_label_key(key))


def _keys_of_the_pod(
    term: o.PodAffinityTerm | o.TopologySpreadConstraint, name: str, path: str, report: Report
) -> None:
    """Keys whose values are the pod's own; they add to labelSelector, so there must be one, without these keys."""
    keys = list(getattr(term, name))
    label_keys(keys, f"{path}.{name}", report)
    if keys and not term.HasField("labelSelector"):
        report(f"{path}.{name}", "needs a labelSelector, to which it adds: give one")
    selected = {*term.labelSelector.matchLabels, *(e.key for e in term.labelSelector.matchExpressions)}
    for index, key in enumerate(keys):
        if key in selected:
            report(f"{path}.{name}[{index}]", f'"{key}" is in labelSelector too: keep it in one of them')


def topology_spread(found: Collection[o.TopologySpreadConstraint], path: str, report: Report) -> None:
    """A pod's topologySpreadConstraints."""
    at_most(found, MAX_TERMS, path, report)
    seen: set[tuple[str, str]] = set()
    for index, constraint in enumerate(found):
        where = f"{path}[{index}]"
        _constraint(constraint, where, report)
        pair = (constraint.topologyKey, constraint.whenUnsatisfiable)
        if pair in seen:
            advice = f'another one has the topologyKey "{pair[0]}" and whenUnsatisfiable "{pair[1]}": keep one'
            report(where, advice)
        seen.add(pair)


def _constraint(constraint: o.TopologySpreadConstraint, path: str, report: Report) -> None:
    in_range(constraint.maxSkew, 1, MAX_SKEW, f"{path}.maxSkew", report)
    _topology_key(constraint.topologyKey, path, report)
    say(report, f"{path}.whenUnsatisfiable", names.not_one_of(constraint.whenUnsatisfiable, UNSATISFIABLE))
    if constraint.HasField("labelSelector"):
        label_selector(constraint.labelSelector, f"{path}.labelSelector", report)
    if constraint.HasField("minDomains"):
        in_range(constraint.minDomains, 1, MAX_SKEW, f"{path}.minDomains", report)
        if constraint.whenUnsatisfiable == "ScheduleAnyway":
            report(f"{path}.minDomains", 'is for whenUnsatisfiable "DoNotSchedule" only: remove it')
    for name in ("nodeAffinityPolicy", "nodeTaintsPolicy"):
        if constraint.HasField(name):
            say(report, f"{path}.{name}", names.not_one_of(getattr(constraint, name), POLICIES))
    _keys_of_the_pod(constraint, "matchLabelKeys", path, report)
