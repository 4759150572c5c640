"""What `describe` says of where a pod may go, and how much it matters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shoal.deploy.cli.printers.lines import Lines, line, listed, several
from shoal.deploy.cli.printers.text import NONE
from shoal.proto.v1 import objects_pb2 as o


def placement_lines(spec: o.PodSpec, indent: int = 0) -> Lines:
    """Of a pod, or of a template, which has no priority of its own yet."""
    if spec.HasField("priority"):
        yield line("Priority", spec.priority, indent)
    if spec.priorityClassName:
        yield line("Priority Class", spec.priorityClassName, indent)
    if spec.preemptionPolicy == "Never":
        yield line("Preemption", spec.preemptionPolicy, indent)
    if spec.schedulerName:
        yield line("Profile", spec.schedulerName, indent)
    if spec.schedulingGates:
        yield line("Gates", ", ".join(gate.name for gate in spec.schedulingGates), indent)
    if spec.overhead:
        yield from several("Overhead", {name: amount.text for name, amount in spec.overhead.items()}, indent)
    yield from several("Node-Selectors", spec.nodeSelector, indent)
    yield from listed("Affinity", list(_affinity(spec.affinity)), indent)
    yield from listed("Spread", [_spread(one) for one in spec.topologySpreadConstraints], indent)
    yield from _tolerations(spec, indent)


def selector_text(selector: o.LabelSelector, present: bool) -> str:
    """As -l writes it; no selector selects no pod, an empty one all."""
    if not present:
        return NONE
    return ",".join([*(f"{k}={v}" for k, v in sorted(selector.matchLabels.items())), *_rules(selector)]) or "<all>"


def _rules(term: o.LabelSelector | o.NodeSelectorTerm) -> Iterator[str]:
    found: Iterable[o.LabelSelectorRequirement | o.NodeSelectorRequirement] = term.matchExpressions
    for rule in (*found, *(term.matchFields if isinstance(term, o.NodeSelectorTerm) else ())):
        yield f"{rule.key} {rule.operator.lower()}" + (f" ({','.join(rule.values)})" if rule.values else "")


def _affinity(affinity: o.Affinity) -> Iterator[str]:
    nodes = affinity.nodeAffinity
    required = nodes.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms
    if required:
        yield "nodes: " + " or ".join(_node_term(term) for term in required)
    for preferred in nodes.preferredDuringSchedulingIgnoredDuringExecution:
        yield f"nodes, weight {preferred.weight}: {_node_term(preferred.preference)}"
    for word, found in (("with", affinity.podAffinity), ("apart from", affinity.podAntiAffinity)):
        for term in found.requiredDuringSchedulingIgnoredDuringExecution:
            yield f"{word} pods {_pod_term(term)}"
        for weighted in found.preferredDuringSchedulingIgnoredDuringExecution:
            yield f"{word} pods, weight {weighted.weight}, {_pod_term(weighted.podAffinityTerm)}"


def _node_term(term: o.NodeSelectorTerm) -> str:
    return " and ".join(_rules(term)) or NONE


def _pod_term(term: o.PodAffinityTerm) -> str:
    text = f"{selector_text(term.labelSelector, term.HasField('labelSelector'))} by {term.topologyKey}"
    spaces = list(term.namespaces)
    if term.HasField("namespaceSelector"):
        spaces.append(selector_text(term.namespaceSelector, True))
    return text + (f" in namespaces {', '.join(spaces)}" if spaces else "")


def _spread(found: o.TopologySpreadConstraint) -> str:
    chosen = selector_text(found.labelSelector, found.HasField("labelSelector"))
    return f"{found.topologyKey}:{found.whenUnsatisfiable} when max skew {found.maxSkew} is exceeded for {chosen}"


def _tolerations(spec: o.PodSpec, indent: int) -> Lines:
    texts = []
    for t in spec.tolerations:
        text = f"{t.key}={t.value}" if t.value else t.key or "every taint"
        text += f":{t.effect}" if t.effect else ""
        text += " op=Exists" if t.operator == "Exists" and t.key else ""
        texts.append(text + (f" for {t.tolerationSeconds}s" if t.HasField("tolerationSeconds") else ""))
    yield line("Tolerations", "; ".join(texts) or NONE, indent)
