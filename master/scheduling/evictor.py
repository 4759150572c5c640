"""Preemption carried out: the pod is nominated first, then its victims are deleted; it is bound when they have gone.

A crash in between leaves a nomination without deletions, which the next look at the pod repeats, or victims on their
way without a nomination, whose room the next look finds for nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shoal.master.controllers.base import mark_terminating, set_condition, terminating
from shoal.master.model import FINAL_PHASES, Conflict, Fault, Key, Modify, NotFound, NotLeader, Object, Record
from shoal.master.scheduler.core import Preemption
from shoal.master.stores import StoreFace
from shoal.proto.v1 import objects_pb2 as o

log = logging.getLogger("shoal.scheduler")

DISRUPTED = "DisruptionTarget"  # condition of a pod that is evicted, as in Kubernetes
BY_SCHEDULER = "PreemptionByScheduler"
RESEND_SECONDS = 1.0


@dataclass(slots=True)
class Evict:
    """Begins the end of a victim that is still there, and says for whom."""

    message: str
    node: str
    now: float

    def __call__(self, found: Object) -> bool:
        if not isinstance(found, o.Pod) or found.spec.nodeName != self.node:
            return False
        if terminating(found) or found.status.phase in FINAL_PHASES:
            return False
        condition = o.Condition(type=DISRUPTED, status="True", reason=BY_SCHEDULER, message=self.message)
        set_condition(found.status.conditions, condition, self.now)
        return mark_terminating(found, self.now)


class Eviction(NamedTuple):
    """A victim, where it is, and what is said of it."""

    uid: str
    key: Key
    node: str
    message: str


class Evictor:
    """Deletes victims gracefully; `due` are those of which the store has not said that they are on their way."""

    def __init__(
        self,
        store: StoreFace,
        say: Callable[[Object, str, str, str], None],
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.store, self.say, self.now, self.rng = store, say, now, rng
        self.due: list[Eviction] = []

    async def evict(self, preemptions: Sequence[Preemption]) -> None:
        self.due += evictions(preemptions)
        await self._write()

    async def resend(self) -> None:
        """Those whose deletion failed, after a pause."""
        if self.due:
            await asyncio.sleep(RESEND_SECONDS * (0.5 + self.rng.random() / 2))
            await self._write()

    async def _write(self) -> None:
        due, self.due = self.due, []
        if not due:
            return
        now = self.now()
        changes = [Modify(one.key, Evict(one.message, one.node, now), uid=one.uid) for one in due]
        try:
            results = await self.store.write(changes)
        except NotLeader:
            raise
        except Fault as fault:
            log.warning("%d victims are deleted later: %s", len(due), fault)
            self.due = due
            return
        for one, result in zip(due, results, strict=True):
            if isinstance(result, Record):
                if _by(result.message, one.message):
                    self.say(result.message, "Normal", "Preempted", one.message)
            elif isinstance(result, Fault) and not isinstance(result, NotFound | Conflict):  # it has gone by itself
                self.due.append(one)


def evictions(preemptions: Sequence[Preemption]) -> list[Eviction]:
    """Each victim once."""
    made: dict[str, Eviction] = {}
    for waiting, node, victims, _ in preemptions:
        message = f"Preempted by pod {waiting.key.namespace}/{waiting.key.name} on node {node}"
        for victim in victims:
            made.setdefault(victim.uid, Eviction(victim.uid, victim.key, node, message))
    return list(made.values())


def _by(pod: Object, message: str) -> bool:
    """Whether it goes for this reason; its owner may have deleted it before."""
    return isinstance(pod, o.Pod) and any(
        one.type == DISRUPTED and one.message == message for one in pod.status.conditions
    )
