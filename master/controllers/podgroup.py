"""PodGroup: how far its members are. The scheduler decides, this only tells (scheduling.x-k8s.io)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from shoal.master.controllers.base import (
    Controller,
    Outcome,
    controller_of,
    fetch,
    instant,
    own_key,
    terminating,
)
from shoal.master.model import FINAL_PHASES, Event, Key, Modify, Object, View, key_of
from shoal.proto.v1 import objects_pb2 as o

KIND = "PodGroup"
LABEL = "scheduling.x-k8s.io/pod-group"  # of the members: their group's name


def controller() -> Controller:
    return Controller("podgroup", {KIND: own_key, "Pod": pod_keys}, reconcile)


def pod_keys(_view: View, event: Event) -> Iterable[Key]:
    """The groups of a pod that came, went, was placed, or has another phase."""
    pods = [r.message for r in (event.old, event.new) if r is not None and isinstance(r.message, o.Pod)]
    named = {pod.metadata.labels[LABEL] for pod in pods if LABEL in pod.metadata.labels}
    if len(pods) == 2 and len(named) == 1 and _stage(pods[0]) == _stage(pods[1]):
        return ()
    return [Key(KIND, event.key.namespace, name) for name in sorted(named)]


def _stage(pod: o.Pod) -> tuple[object, ...]:
    return bool(pod.spec.nodeName), pod.status.phase, terminating(pod), pod.metadata.labels.get(LABEL)


def reconcile(view: View, key: Key, now: float) -> Outcome:
    """Writes the group's status."""
    group = fetch(view, o.PodGroup, key)
    if group is None or terminating(group):
        return Outcome()
    pods = [pod for pod in view.labelled("Pod", key.namespace, LABEL, key.name) if isinstance(pod, o.Pod)]
    wants = o.PodGroupStatus()
    wants.CopyFrom(group.status)
    phases = Counter(pod.status.phase for pod in pods if not terminating(pod) or pod.status.phase in FINAL_PHASES)
    wants.scheduled = sum(bool(pod.spec.nodeName) and pod.status.phase not in FINAL_PHASES for pod in pods)
    wants.running, wants.succeeded, wants.failed = phases["Running"], phases["Succeeded"], phases["Failed"]
    wants.phase = phase_of(wants, len(pods), group.spec.minMember)
    wants.occupiedBy = ",".join(sorted({f"{ref.kind}/{ref.name}" for pod in pods if (ref := controller_of(pod))}))
    if wants.phase == "Scheduling" and not wants.HasField("scheduleStartTime"):
        wants.scheduleStartTime.CopyFrom(instant(now))
    if wants == group.status:
        return Outcome()

    def edit(found: Object) -> bool:
        if not isinstance(found, o.PodGroup) or found.status == wants:
            return False
        found.status.CopyFrom(wants)
        return True

    return Outcome([Modify(key_of(group), edit, uid=group.metadata.uid)])


def phase_of(counts: o.PodGroupStatus, members: int, least: int) -> str:
    """The furthest stage that `least` members have reached; one that failed among them makes the group fail."""
    begun = counts.running + counts.succeeded + counts.failed
    if counts.succeeded >= least:
        return "Finished"
    if counts.failed and begun >= least:
        return "Failed"
    if counts.running + counts.succeeded >= least:
        return "Running"
    if counts.scheduled + counts.succeeded + counts.failed >= least:
        return "Scheduled"
    return "Scheduling" if members >= least else "Pending"
