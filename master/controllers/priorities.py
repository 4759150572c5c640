"""Priorities: what a class makes of a pod, the classes that every cluster has, and how a new pod begins."""

from __future__ import annotations

from collections.abc import Callable

from shoal.master.model import Object, View
from shoal.proto.errors import FieldError, nearest
from shoal.proto.qos import qos_class
from shoal.proto.rules.scheduling import SYSTEM_CLASSES
from shoal.proto.v1 import objects_pb2 as o

KIND = "PriorityClass"
PREEMPTS = "PreemptLowerPriority"
DESCRIPTIONS = {
    "system-cluster-critical": "for what the cluster needs, but can run without for a while",
    "system-node-critical": "for what every node needs: nothing goes before it",
}
MOST_NAMED = 10  # classes that a message names


def class_named(view: View, name: str) -> o.PriorityClass | None:
    found = view.get(KIND, "", name)
    return found if isinstance(found, o.PriorityClass) else None


def default_class(view: View, other_than: str = "") -> o.PriorityClass | None:
    """The class of pods that name none."""
    for found in view.all(KIND):
        if isinstance(found, o.PriorityClass) and found.globalDefault and found.metadata.name != other_than:
            return found
    return None


def unknown_class(view: View, name: str, path: str) -> list[FieldError]:
    """The problem of a name that no class has; the system's own are there from the cluster's first moment."""
    if not name or class_named(view, name) is not None:
        return []
    names = sorted(found.metadata.name for found in view.all(KIND))
    meant = nearest(name, names)
    there = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
    advice = f'did you mean "{meant}"? There are {there}' if meant else f"there are {there}"
    return [FieldError(f"{path}.priorityClassName", f'there is no PriorityClass "{name}": {advice}')]


def give_priority(view: View, spec: o.PodSpec, path: str = "spec") -> list[FieldError]:
    """Writes what the pod's class, the default class, or none says into the spec; or what contradicts it."""
    named = spec.priorityClassName
    found = class_named(view, named) if named else default_class(view)
    if named and found is None:
        return unknown_class(view, named, path)
    value, policy = (found.value, found.preemptionPolicy or PREEMPTS) if found is not None else (0, PREEMPTS)
    source = f'its class "{found.metadata.name}"' if found is not None else "having no class"
    problems = []
    if spec.HasField("priority") and spec.priority != value:
        problems.append(FieldError(f"{path}.priority", f"must be {value}, which comes from {source}: leave it out"))
    if spec.HasField("preemptionPolicy") and found is not None and spec.preemptionPolicy != policy:
        problems.append(FieldError(f"{path}.preemptionPolicy", f'must be "{policy}", which comes from {source}'))
    spec.priority = value
    if not spec.HasField("preemptionPolicy"):
        spec.preemptionPolicy = policy
    return problems


def system_classes(view: View, new_uid: Callable[[], str], created: int) -> list[Object]:
    """Those of the system's classes that are missing."""
    made: list[Object] = []
    for name, value in SYSTEM_CLASSES.items():
        if class_named(view, name) is None:
            found = o.PriorityClass(apiVersion="scheduling.k8s.io/v1", kind=KIND, value=value)
            found.metadata.name, found.metadata.uid, found.metadata.generation = name, new_uid(), 1
            found.metadata.creationTimestamp.seconds = created
            found.description, found.preemptionPolicy = DESCRIPTIONS[name], PREEMPTS
            made.append(found)
    return made


def begin(pod: o.Pod) -> None:
    """The status of a pod that has just been made; its spec must be complete."""
    pod.status.phase = "Pending"
    pod.status.qosClass = qos_class(pod.spec)
    if pod.spec.schedulingGates:
        gates = ", ".join(gate.name for gate in pod.spec.schedulingGates)
        held = o.Condition(type="PodScheduled", status="False", reason="SchedulingGated")
        held.message = f"Waits for its scheduling gates to be removed: {gates}"
        held.lastTransitionTime.CopyFrom(pod.metadata.creationTimestamp)
        pod.status.conditions.append(held)
