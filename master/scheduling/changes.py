"""The changes that carry a plan out: what they do to a pod or a claim is decided on committed state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.master.controllers.base import instant, set_condition, terminating
from shoal.master.model import FINAL_PHASES, Change, Modify, Object, key_of
from shoal.master.scheduler.core import Binding, Waiting
from shoal.master.scheduler.explain import same_story
from shoal.master.volumes import SELECTED_NODE
from shoal.proto.rules.resources import GPU_DEVICES
from shoal.proto.v1 import objects_pb2 as o

SCHEDULED = "PodScheduled"
UNSCHEDULABLE = "Unschedulable"
SCHEDULER_ERROR = "SchedulerError"


def bound_condition(now: float) -> o.Condition:
    """What the pods of one window have in common."""
    return o.Condition(type=SCHEDULED, status="True", lastTransitionTime=instant(now))


def wants_node(pod: o.Pod) -> bool:
    return not pod.spec.nodeName and not terminating(pod) and pod.status.phase not in FINAL_PHASES


@dataclass(slots=True)
class Bind:
    """Sets the node, on a pod that still wants one."""

    node: str
    condition: o.Condition
    devices: tuple[int, ...] = ()

    def __call__(self, found: Object) -> bool:
        if not isinstance(found, o.Pod) or not wants_node(found):
            return False
        found.spec.nodeName = self.node
        if self.devices:
            found.metadata.annotations[GPU_DEVICES] = ",".join(map(str, self.devices))
        if found.status.nominatedNodeName:
            found.status.nominatedNodeName = ""
        conditions = found.status.conditions
        for at, one in enumerate(conditions):
            if one.type == SCHEDULED:
                del conditions[at]
                break
        conditions.append(self.condition)
        return True


def bind(binding: Binding, devices: tuple[int, ...], condition: o.Condition) -> Change:
    return Modify(binding.waiting.key, Bind(binding.node, condition, devices), uid=binding.waiting.uid)


@dataclass(slots=True)
class Tell:
    """Writes why the pod waits, only when the set of reasons is another than the one it says already; and on which
    node room is held for it."""

    message: str
    now: float
    node: str = ""
    reason: str = UNSCHEDULABLE

    def __call__(self, found: Object) -> bool:
        if not isinstance(found, o.Pod) or not wants_node(found):
            return False
        if told(found, self.message, self.node, self.reason):
            return False
        found.status.nominatedNodeName = self.node
        condition = o.Condition(type=SCHEDULED, status="False", reason=self.reason, message=self.message)
        set_condition(found.status.conditions, condition, self.now)
        return True


def tell(waiting: Waiting, message: str, now: float, node: str = "", reason: str = UNSCHEDULABLE) -> Change:
    return Modify(waiting.key, Tell(message, now, node, reason), uid=waiting.uid)


def told(pod: o.Pod, message: str, node: str = "", reason: str = UNSCHEDULABLE) -> bool:
    """Whether that is what the pod says already."""
    if pod.status.nominatedNodeName != node:
        return False
    for condition in pod.status.conditions:
        if condition.type == SCHEDULED:
            return condition.status == "False" and condition.reason == reason and same_story(condition.message, message)
    return False


@dataclass(slots=True)
class Nominate:
    """Says on which node room is held for the pod."""

    node: str

    def __call__(self, found: Object) -> bool:
        if not isinstance(found, o.Pod) or not wants_node(found) or found.status.nominatedNodeName == self.node:
            return False
        found.status.nominatedNodeName = self.node
        return True


def nominate(waiting: Waiting, node: str) -> Change:
    return Modify(waiting.key, Nominate(node), uid=waiting.uid)


def select_node(claim: o.PersistentVolumeClaim, node: str) -> Change:
    """Ties a claim that has no volume yet to a node."""

    def edit(found: Object) -> bool:
        if not isinstance(found, o.PersistentVolumeClaim) or found.spec.volumeName:
            return False
        if SELECTED_NODE in found.metadata.annotations:
            return False
        found.metadata.annotations[SELECTED_NODE] = node
        return True

    return Modify(key_of(claim), edit, uid=claim.metadata.uid)


def sentence(bound: int, waiting: Sequence[str]) -> str:
    """One cycle for the log: what was bound, how many wait anew, and why the first of them does."""
    parts = [f"bound {bound} {'pod' if bound == 1 else 'pods'}"] if bound else []
    if waiting:
        parts.append(f"{len(waiting)} {'pod waits' if len(waiting) == 1 else 'pods wait'} ({waiting[0]})")
    return ", ".join(parts)
