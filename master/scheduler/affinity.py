"""Reads what a pod's spec says of its placement into plain terms (`terms.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal.master.scheduler.terms import NodeTerm, PodMatch, PodTerm, Rule, Selector, Spread
from shoal.proto.v1 import objects_pb2 as o

HARD = "DoNotSchedule"
ANY_ADDRESS = "0.0.0.0"  # noqa: S104  (compared with, never bound)
DEFAULT_REGISTRY, OFFICIAL, DEFAULT_TAG = "docker.io", "library/", "latest"


def node_terms(selector: o.NodeSelector) -> tuple[NodeTerm, ...]:
    return tuple(node_term(term) for term in selector.nodeSelectorTerms)


def node_term(term: o.NodeSelectorTerm) -> NodeTerm:
    return NodeTerm(_rules(term.matchExpressions), _rules(term.matchFields))


def _rules(found: Iterable[o.NodeSelectorRequirement | o.LabelSelectorRequirement]) -> tuple[Rule, ...]:
    rules = {Rule(one.key, one.operator, tuple(sorted(set(one.values)))) for one in found}
    return tuple(sorted(rules, key=_in_order))


def _in_order(rule: Rule) -> tuple[str, str, tuple[str, ...]]:
    return rule.key, rule.operator, rule.values


def selector_of(selector: o.LabelSelector, more: Iterable[Rule] = ()) -> Selector:
    """With what `matchLabelKeys` and the like add to it."""
    equal = (Rule(key, "In", (value,)) for key, value in selector.matchLabels.items())
    rules = {*equal, *_rules(selector.matchExpressions), *more}
    return Selector(tuple(sorted(rules, key=_in_order)))


def _own_labels(keys: Iterable[str], operator: str, labels: Mapping[str, str]) -> list[Rule]:
    """The pod's own values of these keys as rules; a key that it lacks is left out."""
    return [Rule(key, operator, (labels[key],)) for key in keys if key in labels]


def pod_term(term: o.PodAffinityTerm, namespace: str, labels: Mapping[str, str]) -> PodTerm:
    """A term of a pod with these labels in this namespace."""
    own = _own_labels(term.matchLabelKeys, "In", labels) + _own_labels(term.mismatchLabelKeys, "NotIn", labels)
    selector = selector_of(term.labelSelector, own) if term.HasField("labelSelector") else None
    spaces = selector_of(term.namespaceSelector) if term.HasField("namespaceSelector") else None
    names = tuple(sorted(set(term.namespaces)))
    if not names and spaces is None:
        names = (namespace,)
    return PodTerm(term.topologyKey, PodMatch(names, spaces, selector))


def pod_terms(found: Iterable[o.PodAffinityTerm], namespace: str, labels: Mapping[str, str]) -> tuple[PodTerm, ...]:
    return tuple(pod_term(term, namespace, labels) for term in found)


def weighted_terms(affinity: o.Affinity, namespace: str, labels: Mapping[str, str]) -> tuple[tuple[int, PodTerm], ...]:
    """Preferred company with its weights, negative for whom the pod would rather be apart from."""
    wanted = affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution
    shunned = affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution
    return (
        *((one.weight, pod_term(one.podAffinityTerm, namespace, labels)) for one in wanted),
        *((-one.weight, pod_term(one.podAffinityTerm, namespace, labels)) for one in shunned),
    )


def spread_of(one: o.TopologySpreadConstraint, namespace: str, labels: Mapping[str, str]) -> Spread:
    own = _own_labels(one.matchLabelKeys, "In", labels)
    selector = selector_of(one.labelSelector, own) if one.HasField("labelSelector") else None
    return Spread(
        one.topologyKey,
        one.maxSkew,
        one.whenUnsatisfiable == HARD,
        PodMatch((namespace,), None, selector),
        one.minDomains if one.HasField("minDomains") else 1,
        one.nodeAffinityPolicy != "Ignore",
        one.nodeTaintsPolicy == "Honor",
    )


def host_ports(spec: o.PodSpec) -> tuple[tuple[str, str, int], ...]:
    """(protocol, address, port), sorted. Containers in the host's network take the ports that they name."""
    found = set()
    sidecars = [container for container in spec.initContainers if container.restartPolicy == "Always"]
    for container in (*sidecars, *spec.containers):
        for port in container.ports:
            number = port.hostPort or (port.containerPort if spec.hostNetwork else 0)
            if number:
                found.add((port.protocol or "TCP", port.hostIP or ANY_ADDRESS, number))
    return tuple(sorted(found))


def image_name(text: str) -> str:
    """The full spelling by which nodes name what they have: `nginx` is docker.io/library/nginx:latest."""
    name, at, digest = text.partition("@")
    head, slash, rest = name.partition("/")
    if not slash or not ("." in head or ":" in head or head == "localhost"):
        head, rest = DEFAULT_REGISTRY, name
    if head == DEFAULT_REGISTRY and "/" not in rest:
        rest = OFFICIAL + rest
    if at:
        return f"{head}/{rest}@{digest}"
    return f"{head}/{rest}" if ":" in rest.rpartition("/")[2] else f"{head}/{rest}:{DEFAULT_TAG}"
