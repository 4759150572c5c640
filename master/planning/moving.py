"""Which pods a rebalance may move: their controller makes another, and no budget forbids it."""

from __future__ import annotations

from collections.abc import Iterator

from shoal.master.controllers.base import active, controller_of, ready, terminating
from shoal.master.controllers.replicaset import wanted
from shoal.master.model import key_of
from shoal.master.planning import budgets
from shoal.master.planning.rehearsal import Rehearsal
from shoal.master.scheduler.classes import Classes
from shoal.master.scheduler.core import Waiting
from shoal.master.scheduler.rebalance import Candidate
from shoal.proto.v1 import objects_pb2 as o


def candidates(rehearsal: Rehearsal) -> Iterator[Candidate]:
    """Ready pods of ReplicaSets that have what they ask for, by name. Moves are made one by one, each when the
    replacement before is ready, so that a budget that allows one disruption allows any number of moves."""
    classes = Classes()
    settled: dict[str, bool] = {}
    view = rehearsal.overlay
    for pod in sorted(_pods(rehearsal), key=lambda pod: (pod.metadata.namespace, pod.metadata.name)):
        owner = controller_of(pod)
        if owner is None or not pod.spec.nodeName or not active(pod) or not ready(pod):
            continue
        if owner.uid not in settled:
            settled[owner.uid] = _settled(rehearsal, owner.uid)
        if not settled[owner.uid] or any(budgets.forbids(one, pod) for one in budgets.budgets_of(view, pod)):
            continue
        pods = classes.of(pod)
        if not pods.group:  # a gang stays together
            yield Candidate(Waiting(pod.metadata.uid, key_of(pod), pods), pod.spec.nodeName)


def _pods(rehearsal: Rehearsal) -> list[o.Pod]:
    return [pod for pod in rehearsal.overlay.all("Pod") if isinstance(pod, o.Pod)]


def _settled(rehearsal: Rehearsal, uid: str) -> bool:
    """A ReplicaSet with as many active pods as it asks for: it makes another for each that goes, at once."""
    rs = rehearsal.overlay.by_uid(uid)
    if not isinstance(rs, o.ReplicaSet) or terminating(rs):
        return False
    return wanted(rs) == sum(isinstance(pod, o.Pod) and active(pod) for pod in rehearsal.overlay.owned(uid))
