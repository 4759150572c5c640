"""Which pods a rebalance may move: their controller makes another, and no budget forbids it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field

from shoal.master.controllers.base import active, controller_of, ready, terminating
from shoal.master.controllers.replicaset import wanted
from shoal.master.model import key_of
from shoal.master.planning.budgets import Guards, forbids
from shoal.master.planning.rehearsal import Rehearsal
from shoal.master.scheduler.classes import Classes
from shoal.master.scheduler.core import Waiting
from shoal.master.scheduler.rebalance import Candidate
from shoal.proto.v1 import objects_pb2 as o

STEP = 500  # pods that are looked at between two breaths


@dataclass(slots=True)
class Movable:
    """The pods that may be moved, and how many others may not, by why."""

    pods: list[Candidate] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def words(self) -> str:
        return ", ".join(f"{count} {why}" for why, count in sorted(self.others.items()))


def movable(rehearsal: Rehearsal) -> Generator[None, None, Movable]:
    """Ready pods of ReplicaSets that have what they ask for, by name, in steps. Moves are made one by one, each when
    the replacement before is ready, so that a budget that allows one disruption allows any number of moves."""
    found = Movable()
    classes, guards = Classes(), Guards(rehearsal.overlay)
    settled: dict[str, bool] = {}
    pods = [pod for pod in rehearsal.overlay.all("Pod") if isinstance(pod, o.Pod) and pod.spec.nodeName and active(pod)]
    pods.sort(key=lambda pod: (pod.metadata.namespace, pod.metadata.name))
    for number, pod in enumerate(pods, start=1):
        if number % STEP == 0:
            yield
        owner = controller_of(pod)
        if owner is not None and owner.uid not in settled:
            settled[owner.uid] = _settled(rehearsal, owner.uid)
        if owner is None or owner.kind != "ReplicaSet":
            found.others["without a replicaset"] += 1
        elif not ready(pod) or not settled[owner.uid]:
            found.others["not ready, or of a replicaset that has not what it asks for"] += 1
        elif any(forbids(budget, pod) for budget in guards.of(pod)):
            found.others["held by disruption budgets"] += 1
        elif (what := classes.of(pod)).group:
            found.others["of pod groups"] += 1
        else:
            found.pods.append(Candidate(Waiting(pod.metadata.uid, key_of(pod), what), pod.spec.nodeName))
    return found


def _settled(rehearsal: Rehearsal, uid: str) -> bool:
    """A ReplicaSet with as many active pods as it asks for: it makes another for each that goes, at once."""
    rs = rehearsal.overlay.by_uid(uid)
    if not isinstance(rs, o.ReplicaSet) or terminating(rs):
        return False
    return wanted(rs) == sum(isinstance(pod, o.Pod) and active(pod) for pod in rehearsal.overlay.owned(uid))
