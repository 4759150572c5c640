"""Which pods a rebalance may move: their controller makes another, and no budget forbids it."""

from __future__ import annotations

from collections.abc import Generator

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


def candidates(rehearsal: Rehearsal) -> Generator[None, None, list[Candidate]]:
    """Ready pods of ReplicaSets that have what they ask for, by name, in steps. Moves are made one by one, each when
    the replacement before is ready, so that a budget that allows one disruption allows any number of moves."""
    found: list[Candidate] = []
    classes, guards = Classes(), Guards(rehearsal.overlay)
    settled: dict[str, bool] = {}
    pods = [pod for pod in rehearsal.overlay.all("Pod") if isinstance(pod, o.Pod)]
    pods.sort(key=lambda pod: (pod.metadata.namespace, pod.metadata.name))
    for number, pod in enumerate(pods, start=1):
        if number % STEP == 0:
            yield
        owner = controller_of(pod)
        if owner is None or not pod.spec.nodeName or not active(pod) or not ready(pod):
            continue
        if owner.uid not in settled:
            settled[owner.uid] = _settled(rehearsal, owner.uid)
        if settled[owner.uid] and not any(forbids(budget, pod) for budget in guards.of(pod)):
            what = classes.of(pod)
            if not what.group:  # a gang stays together
                found.append(Candidate(Waiting(pod.metadata.uid, key_of(pod), what), pod.spec.nodeName))
    return found


def _settled(rehearsal: Rehearsal, uid: str) -> bool:
    """A ReplicaSet with as many active pods as it asks for: it makes another for each that goes, at once."""
    rs = rehearsal.overlay.by_uid(uid)
    if not isinstance(rs, o.ReplicaSet) or terminating(rs):
        return False
    return wanted(rs) == sum(isinstance(pod, o.Pod) and active(pod) for pod in rehearsal.overlay.owned(uid))
