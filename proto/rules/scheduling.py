"""The rules for PriorityClasses, PodDisruptionBudgets and PodGroups, and for what pods say of their priority."""

from __future__ import annotations

import re
from collections.abc import Mapping

from shoal.proto import names
from shoal.proto.errors import shorten
from shoal.proto.rules.base import Report, at_most, chosen, in_range, say
from shoal.proto.rules.labels import label_selector
from shoal.proto.v1 import objects_pb2 as o

MAX_PRIORITY = 1_000_000_000  # what people may give; higher ones are the system's
MIN_PRIORITY = -(2**31)
SYSTEM_PREFIX = "system-"
# The classes that every cluster has: they cannot be changed or removed.
SYSTEM_CLASSES: Mapping[str, int] = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
PREEMPTION_POLICIES = ("PreemptLowerPriority", "Never")
EVICTION_POLICIES = ("IfHealthyBudget", "AlwaysAllow")
MAX_MEMBERS = 10_000
MAX_TIMEOUT_SECONDS = 7 * 24 * 3600
MAX_DESCRIPTION = 4096  # characters
MAX_GATES = 100
_PERCENTAGE = re.compile(r"(100|[1-9]?[0-9])%", re.ASCII)


def priority_of_pod(spec: o.PodSpec, path: str, report: Report) -> None:
    """priorityClassName, preemptionPolicy, schedulerName and schedulingGates; admission looks up what they name."""
    if spec.priorityClassName:
        say(report, f"{path}.priorityClassName", names.not_dns_subdomain(spec.priorityClassName))
    if spec.HasField("preemptionPolicy"):
        wrong = names.not_one_of(spec.preemptionPolicy, PREEMPTION_POLICIES)
        say(report, f"{path}.preemptionPolicy", wrong)
    if spec.HasField("schedulerName") and spec.schedulerName:
        say(report, f"{path}.schedulerName", names.not_dns_subdomain(spec.schedulerName))
    at_most(spec.schedulingGates, MAX_GATES, f"{path}.schedulingGates", report)
    seen: set[str] = set()
    for index, gate in enumerate(spec.schedulingGates):
        where = f"{path}.schedulingGates[{index}].name"
        say(report, where, names.not_label_key(gate.name) if gate.name else "is missing: name the gate")
        if gate.name in seen:
            report(where, f'"{gate.name}" is another gate\'s name too: keep one')
        seen.add(gate.name)
    if spec.schedulingGates and spec.nodeName:
        report(f"{path}.nodeName", "must be empty while schedulingGates hold the pod back: remove one of them")


# ---- PriorityClass ----
def priority_class(obj: o.PriorityClass, report: Report) -> None:
    """A PriorityClass."""
    name = obj.metadata.name
    say(report, "preemptionPolicy", names.not_one_of(obj.preemptionPolicy, PREEMPTION_POLICIES))
    if len(obj.description) > MAX_DESCRIPTION:
        report("description", f"has {len(obj.description)} characters: at most {MAX_DESCRIPTION} are kept")
    if not obj.HasField("value"):
        report("value", "is missing: give the priority, such as 1000; higher goes first")
    elif name in SYSTEM_CLASSES:
        if (obj.value, obj.globalDefault) != (SYSTEM_CLASSES[name], False):
            report("value", f"cannot be changed: {name} is the system's own, with {SYSTEM_CLASSES[name]}")
    elif name.startswith(SYSTEM_PREFIX):
        report("metadata.name", f'"{SYSTEM_PREFIX}" in front is for the classes of the system: choose another name')
    else:
        in_range(obj.value, MIN_PRIORITY, MAX_PRIORITY, "value", report)


def priority_class_update(old: o.PriorityClass, new: o.PriorityClass, report: Report) -> None:
    for field in ("value", "preemptionPolicy"):
        if getattr(old, field) != getattr(new, field):
            given = f"it is {getattr(old, field)}"
            report(field, f"cannot be changed ({given}): pods have copied it; delete the class and create it anew")


# ---- PodDisruptionBudget ----
def disruption_budget(obj: o.PodDisruptionBudget, report: Report) -> None:
    """A PodDisruptionBudget."""
    spec = obj.spec
    given = chosen(spec, ("minAvailable", "maxUnavailable"))
    if len(given) == 2:
        report("spec", "has minAvailable and maxUnavailable: keep one of them")
    elif not given:
        report("spec", "must have one of minAvailable, maxUnavailable")
    for field in given:
        _pods_or_percentage(getattr(spec, field), f"spec.{field}", report)
    if spec.HasField("selector"):
        label_selector(spec.selector, "spec.selector", report)
    if spec.HasField("unhealthyPodEvictionPolicy"):
        wrong = names.not_one_of(spec.unhealthyPodEvictionPolicy, EVICTION_POLICIES)
        say(report, "spec.unhealthyPodEvictionPolicy", wrong)


def _pods_or_percentage(value: o.IntOrString, path: str, report: Report) -> None:
    if value.WhichOneof("value") == "text":
        if not _PERCENTAGE.fullmatch(value.text):
            report(path, f'{shorten(value.text)} is neither a number of pods nor a percentage from "0%" to "100%"')
    elif value.number < 0:
        report(path, f"must not be negative, but it is {value.number}")


# ---- PodGroup ----
def pod_group(obj: o.PodGroup, report: Report) -> None:
    """A PodGroup."""
    spec = obj.spec
    if not spec.HasField("minMember"):
        report("spec.minMember", "is missing: say how many pods must be placed together")
    else:
        in_range(spec.minMember, 1, MAX_MEMBERS, "spec.minMember", report)
    if spec.HasField("scheduleTimeoutSeconds"):
        in_range(spec.scheduleTimeoutSeconds, 1, MAX_TIMEOUT_SECONDS, "spec.scheduleTimeoutSeconds", report)
    if spec.topologyKey:
        say(report, "spec.topologyKey", names.not_label_key(spec.topologyKey))
    if obj.metadata.name and len(obj.metadata.name) > names.MAX_LABEL:
        advice = f"pods name it in a label's value, which has at most {names.MAX_LABEL}; choose a shorter one"
        report("metadata.name", f"has {len(obj.metadata.name)} characters: {advice}")
