"""Judges what an agent says about a pod: what to write, and why not (pure).

`status` of a bound pod has one writer, its agent, except once the master has declared the pod lost.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from shoal.master.model import FINAL_PHASES, Change, Delete, Key, Modify, Object, Record, View
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

PHASES = {"": 0, "Pending": 0, "Running": 1, "Succeeded": 2, "Failed": 2}  # they only grow
LOST = "Lost"
OURS = ("PodScheduled", "DisruptionTarget")  # the scheduler's conditions


@dataclass(frozen=True, slots=True)
class Verdict:
    """`change` is what to write; `refused` says why a report was not taken. Neither: it is accepted and says nothing
    new."""

    change: Change | None = None
    refused: str = ""


def is_lost(pod: o.Pod) -> bool:
    """The master has written this pod's final status."""
    return pod.status.reason == LOST and pod.status.phase == "Failed"


def assigned(pod: o.Pod, node: str) -> bool:
    """Whether `node` is to hold this pod."""
    return pod.spec.nodeName == node and not is_lost(pod)


def over_without(view: View, node: str, held: Collection[str]) -> frozenset[str]:
    """Pods of `node` that have ended and that its agent does not hold."""
    return frozenset(
        pod.metadata.uid
        for pod in view.pods_on(node)
        if pod.status.phase in FINAL_PHASES and assigned(pod, node) and pod.metadata.uid not in held
    )


def vanished(view: View, hello: s.Hello) -> list[o.Pod]:
    """Pods that ran on a node whose agent has come back with a new identity, so without its disk, and without them.
    A pod is one-shot: it is not started again."""
    node = view.get("Node", "", hello.node)
    if not isinstance(node, o.Node) or node.status.instanceID in ("", hello.instance_id):
        return []
    held = {pod.uid for pod in hello.pods}
    return [pod for pod in view.pods_on(hello.node) if pod.status.phase == "Running" and pod.metadata.uid not in held]


def judge(view: View, node: str, report: s.PodReport) -> Verdict:
    """What a report of `node` leads to. The identity is the uid; namespace and name only find the record."""
    record = view.record(Key("Pod", report.namespace, report.name))
    if record is None or record.message.metadata.uid != report.uid:
        found = view.by_uid(report.uid)
        if not isinstance(found, o.Pod):
            return Verdict()  # deleted meanwhile: the agent may forget it
        record = view.record(Key("Pod", found.metadata.namespace, found.metadata.name))
    if record is None or not isinstance(record.message, o.Pod):
        return Verdict()
    return _judge_record(record, record.message, node, report)


def _judge_record(record: Record, pod: o.Pod, node: str, report: s.PodReport) -> Verdict:
    if pod.spec.nodeName != node:
        return Verdict(refused=f"pod {record.key} belongs to node {pod.spec.nodeName or '(none)'}, not to {node}")
    if is_lost(pod):
        return Verdict(refused=f"pod {record.key} was declared lost; its status is final")
    if report.status.phase not in PHASES:
        return Verdict(refused=f"pod {record.key}: unknown phase {report.status.phase!r}")
    if report.ended and pod.metadata.HasField("deletionTimestamp") and not pod.metadata.finalizers:
        return Verdict(Delete(record.key, uid=report.uid))
    back = goes_back(pod.status, report.status)
    if back and not report.ended:
        return Verdict(refused=f"pod {record.key}: {back}")
    wanted = merged(pod.status, report.status) if not back else pod.status
    if wanted == pod.status and not _must_mark_ended(pod, report.ended):
        return Verdict()
    return Verdict(Modify(record.key, _Edit(node, report), uid=report.uid))


@dataclass(frozen=True, slots=True)
class _Edit:
    """The same judgement again on committed state, when the group is built."""

    node: str
    report: s.PodReport

    def __call__(self, obj: Object) -> bool:
        assert isinstance(obj, o.Pod)
        if not assigned(obj, self.node):
            return False
        changed = False
        if not goes_back(obj.status, self.report.status):
            wanted = merged(obj.status, self.report.status)
            changed = wanted != obj.status
            obj.status.CopyFrom(wanted)
        if _must_mark_ended(obj, self.report.ended):
            obj.metadata.deletionGracePeriodSeconds = 0
            changed = True
        return changed


def _must_mark_ended(pod: o.Pod, ended: bool) -> bool:
    """A pod that only finalizers still hold has a grace of 0: whoever takes the last one away removes the record."""
    meta = pod.metadata
    return ended and meta.HasField("deletionTimestamp") and meta.deletionGracePeriodSeconds != 0


def goes_back(old: o.PodStatus, new: o.PodStatus) -> str:
    """Why `new` may not follow `old`; empty when it may."""
    if PHASES[new.phase] < PHASES.get(old.phase, 0):
        return f"phase {new.phase or 'Pending'} after {old.phase}"
    if old.phase in FINAL_PHASES and new.phase != old.phase:
        return f"phase {new.phase} after {old.phase}, which is final"
    return ""


def merged(old: o.PodStatus, new: o.PodStatus) -> o.PodStatus:
    """The agent's status with what the master wrote and the agent leaves out."""
    result = o.PodStatus()
    result.CopyFrom(new)
    result.qosClass = new.qosClass or old.qosClass
    result.phase = new.phase or old.phase or "Pending"
    told = {condition.type for condition in new.conditions}
    kept = [condition for condition in old.conditions if condition.type in OURS and condition.type not in told]
    if kept:
        del result.conditions[:]
        result.conditions.extend(kept)
        result.conditions.extend(new.conditions)
    return result
