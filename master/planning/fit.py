"""How many more pods of a class fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field, replace

from shoal.master.controllers import deployment
from shoal.master.controllers.pods import pod_from
from shoal.master.model import Key, View
from shoal.master.scheduler.classes import PodClass, compile_class
from shoal.master.scheduler.core import Scheduler, Waiting
from shoal.master.scheduler.snapshot import Snapshot
from shoal.proto.v1 import objects_pb2 as o

MOST_PODS = 100_000  # counted
BATCH = 1000  # pods between two breaths


@dataclass(slots=True)
class Fit:
    """`reason` says why no more fit; empty when the limit was reached first."""

    count: int = 0
    nodes: Counter[str] = field(default_factory=Counter)
    reason: str = ""


def pod_in(view: View, key: Key) -> o.Pod | None:
    """A pod as the object's controller would make it; None for what has no pods."""
    found = view.get(*key)
    if isinstance(found, o.Pod):
        return found
    if isinstance(found, o.Deployment):
        sets = [rs for rs in view.owned(found.metadata.uid) if isinstance(rs, o.ReplicaSet)]
        current = deployment.find_new(found, [deployment.member(view, rs) for rs in sets])
        return _of(view, current.rs if current is not None else found)
    return _of(view, found) if isinstance(found, o.ReplicaSet) else None


def _of(view: View, owner: o.Deployment | o.ReplicaSet) -> o.Pod:
    return pod_from(view, owner.spec.template, owner, f"{owner.metadata.name}-x", "", 0.0)


def class_of(pod: o.Pod) -> PodClass:
    """What is counted: each pod for itself, and nobody is evicted for it."""
    return replace(compile_class(pod), preempts=False, group="")


def fit(snapshot: Snapshot, scheduler: Scheduler, pods: PodClass, limit: int) -> Generator[None, None, Fit]:
    """Places pods until one is refused, in steps; the snapshot is as before at the end."""
    found = Fit()
    placed: list[str] = []
    while found.count < limit and not found.reason:
        batch = min(BATCH, limit - found.count)
        queue = [Waiting(f"fit-{found.count + n}", Key("Pod", pods.namespace, "fit"), pods) for n in range(batch)]
        plan = scheduler.schedule(snapshot, queue)
        placed += [waiting.uid for waiting, _ in plan.bindings]
        found.nodes.update(node for _, node in plan.bindings)
        found.count += len(plan.bindings)
        if plan.refusals:
            found.reason = plan.refusals[0].explanation.message
        yield
    for start in range(0, len(placed), BATCH):
        for uid in placed[start : start + BATCH]:
            snapshot.undo(uid)
        yield
    return found
