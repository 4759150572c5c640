"""Gangs of which only a part has a node: that is told on their PodGroup.

A gang is placed and assumed as a whole. Only a member that the store refuses in the middle of its group's writes, or
one that ends later, leaves a part; the rest is tried again, and those that have a node count. What runs stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shoal.master.controllers.base import Said, terminating
from shoal.master.model import FINAL_PHASES, View
from shoal.master.scheduler.classes import GROUP_LABEL
from shoal.master.scheduler.core import Refusal
from shoal.proto.v1 import objects_pb2 as o

AGAIN_SECONDS = 60.0  # between two notes, for groups without scheduleTimeoutSeconds


@dataclass(slots=True)
class GangWatch:
    """`due` says what is to be told; each group again after its scheduleTimeoutSeconds."""

    clock: Callable[[], float]
    _told: dict[str, float] = field(default_factory=dict)  # uid of the group -> when

    def due(self, view: View, refusals: Iterable[Refusal]) -> list[Said]:
        gangs = {(one.waiting.key.namespace, one.waiting.pods.group) for one in refusals if one.waiting.pods.group}
        found = (self._look(view, namespace, name) for namespace, name in sorted(gangs))
        return [said for said in found if said is not None]

    def _look(self, view: View, namespace: str, name: str) -> Said | None:
        group = view.get("PodGroup", namespace, name)
        if not isinstance(group, o.PodGroup):
            return None
        members = [pod for pod in view.labelled("Pod", namespace, GROUP_LABEL, name) if isinstance(pod, o.Pod)]
        placed = [pod for pod in members if pod.spec.nodeName and not terminating(pod)]
        ended = sum(pod.status.phase in FINAL_PHASES for pod in placed)
        if not ended < len(placed) < group.spec.minMember:
            return None
        now, uid = self.clock(), group.metadata.uid
        if now < self._told.get(uid, now):
            return None
        if len(self._told) > 1000:
            self._told.clear()
        self._told[uid] = now + (group.spec.scheduleTimeoutSeconds or AGAIN_SECONDS)
        message = (
            f"{len(placed)} of at least {group.spec.minMember} members have a node and keep it; the other "
            f"{len(members) - len(placed)} find none now and are tried again"
        )
        return Said(group, "Warning", "PartlyScheduled", message)
