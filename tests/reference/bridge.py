"""The real scheduler on the plain cluster, and what it decided in the plain one's words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from shoal.master.scheduler.core import Plan, Scheduler, Waiting
from shoal.master.scheduler.queue import arrival_of
from shoal.master.scheduler.snapshot import Snapshot
from tests.reference.cluster import Cluster, Pod
from tests.reference.objects import events_of, key_for
from tests.reference.scheduler import Outcome


def snapshot_of(cluster: Cluster) -> Snapshot:
    snapshot = Snapshot()
    snapshot.apply(events_of(cluster))
    return snapshot


def waiting(pod: Pod) -> Waiting:
    key = key_for(pod)
    return Waiting(pod.uid, key, pod.what, arrival_of(pod.arrival + 1, key.name, pod.uid))


def outcomes(plan: Plan, snapshot: Snapshot, queue: Sequence[Pod]) -> list[Outcome]:
    """In the order of the queue."""
    found: dict[str, Outcome] = {}
    for binding in plan.bindings:
        hold = snapshot.held(binding.waiting.uid)
        found[binding.waiting.uid] = Outcome(binding.waiting.uid, binding.node, hold.devices if hold else ())
    for refusal in plan.refusals:
        uid = refusal.waiting.uid
        assert uid not in found, f"{uid} is decided twice"
        found[uid] = Outcome(uid, reasons=Counter(dict(refusal.explanation.counts)))
    for preemption in plan.preemptions:
        one = found[preemption.waiting.uid]
        one.nominated, one.breaks = preemption.node, preemption.breaks
        one.victims = tuple(victim.uid for victim in preemption.victims)
    return [found[pod.uid] for pod in queue]


def decide(cluster: Cluster, queue: Sequence[Pod]) -> list[Outcome]:
    """What the fast scheduler decides; leaves the cluster as it is."""
    snapshot = snapshot_of(cluster)
    plan = Scheduler().schedule(snapshot, [waiting(pod) for pod in queue])
    return outcomes(plan, snapshot, queue)


def differences(cluster: Cluster, snapshot: Snapshot) -> list[str]:
    """What the snapshot holds otherwise than the plain cluster."""
    found = []
    for node in cluster.nodes:
        have = {
            uid: (hold.pods, hold.devices, hold.leaving, hold.nominated) for uid, hold in snapshot.pods_on(node).items()
        }
        want = {pod.uid: (pod.what, pod.devices, pod.leaving, pod.nominated) for pod in cluster.on(node)}
        found += [f"{uid} on {node}" for uid in have.keys() | want.keys() if have.get(uid) != want.get(uid)]
    return found
