"""ReplicaSet: as many active pods as asked for, by label."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from shoal.master.controllers.base import (
    LOST,
    Controller,
    Outcome,
    Rng,
    Said,
    active,
    controller_of,
    count,
    fetch,
    namespace_closing,
    own_key,
    owner_keys,
    ready,
    seconds,
    set_condition,
    terminate,
    terminating,
)
from shoal.master.controllers.claims import claim, matches
from shoal.master.controllers.pods import crowding, deletion_order, new_name, new_uid, pod_from
from shoal.master.controllers.priorities import give_priority
from shoal.master.model import Change, Create, Event, Key, Modify, Object, View, key_of
from shoal.proto import podsecurity
from shoal.proto.v1 import objects_pb2 as o

FAILURE_HOLD_MAX_SECONDS = 300.0
REPLICA_FAILURE = "ReplicaFailure"  # the condition of one that cannot make its pods
FAILURE_DOUBLINGS = 10
BURST = 500  # pods made or ended in one call, so that one owner does not fill a whole cycle


def controller(rng: Rng) -> Controller:
    watches = {"ReplicaSet": own_key, "Pod": pod_keys, "Namespace": namespace_keys, "PriorityClass": class_keys}
    return Controller("replicaset", watches, partial(_call, rng))


def _call(rng: Rng, view: View, key: Key, now: float) -> Outcome:
    return reconcile(view, key, now, rng)


def pod_keys(view: View, event: Event) -> Iterable[Key]:
    """The owners of the pod; for an orphan every ReplicaSet that could adopt it."""
    keys = owner_keys(event, "ReplicaSet")
    if not keys and next(iter(view.all("ReplicaSet", event.key.namespace)), None) is None:
        return keys
    pod = event.new.message if event.new else None
    if pod is None or controller_of(pod) is not None or terminating(pod) or not news_of_orphan(event):
        return keys
    for rs in view.all("ReplicaSet", event.key.namespace):
        if isinstance(rs, o.ReplicaSet) and matches(rs.spec.selector, pod.metadata.labels):
            keys.add(Key("ReplicaSet", rs.metadata.namespace, rs.metadata.name))
    return keys


def namespace_keys(view: View, event: Event) -> Iterable[Key]:
    """Everything in a namespace whose pod security level has become another."""
    before, after = (podsecurity.level(r.message.metadata.labels) if r else "" for r in (event.old, event.new))
    if not before or before == after:
        return ()
    return [Key("ReplicaSet", event.key.name, rs.metadata.name) for rs in view.all("ReplicaSet", event.key.name)]


def class_keys(view: View, event: Event) -> Iterable[Key]:
    """What could not make pods for lack of this class, or because it said something else."""
    found = (rs for rs in view.all("ReplicaSet") if isinstance(rs, o.ReplicaSet))
    return [key_of(rs) for rs in found if rs.spec.template.spec.priorityClassName in ("", event.key.name)]


def news_of_orphan(event: Event) -> bool:
    """True when an object without controller is new so, or has other labels than before."""
    old, new = (record.message if record else None for record in (event.old, event.new))
    if old is None or new is None or controller_of(old) is not None:
        return True
    return dict(old.metadata.labels) != dict(new.metadata.labels)


def wanted(rs: o.ReplicaSet) -> int:
    return rs.spec.replicas if rs.spec.HasField("replicas") else 1


def reconcile(view: View, key: Key, now: float, rng: Rng) -> Outcome:
    """Adopts, releases, makes, ends and reports."""
    rs = fetch(view, o.ReplicaSet, key)
    if rs is None:
        return Outcome()
    claimed = claim(view, rs, o.Pod, "Pod", rs.spec.selector)
    pods = [pod for pod in claimed.mine if active(pod)]
    outcome = Outcome(changes=list(claimed.changes))
    done = []
    if claimed.adopted:
        done.append(f"adopted {count(claimed.adopted, 'pod')}")
    if claimed.released:
        done.append(f"released {count(claimed.released, 'pod')}")
    missing = wanted(rs) - len(pods)
    hold = failure_hold(claimed.mine, now)
    refusal = forbidden(view, rs) if missing > 0 else ""
    if refusal:
        done.append(f"could not create pods: {refusal}")
        outcome.said.append(Said(rs, "Warning", "FailedCreate", refusal))
    elif missing > 0 and hold > 0:
        outcome.again = hold
    elif missing > 0 and not terminating(rs) and not namespace_closing(view, key.namespace):
        made = create_pods(view, rs, min(missing, BURST), now, rng)
        outcome.changes += made
        done.append(f"created {count(len(made), 'pod')}")
        outcome.said.append(Said(rs, "Normal", "SuccessfulCreate", done[-1].capitalize()))
    elif missing < 0 and not terminating(rs):
        ended = end_pods(view, rs, pods, min(-missing, BURST), now)
        outcome.changes += ended
        done.append(f"deleted {count(len(ended), 'pod')}")
        outcome.said.append(Said(rs, "Normal", "SuccessfulDelete", done[-1].capitalize()))
    outcome.did = ", ".join(done)
    status = write_status(rs, pods, refusal, now)
    if status is not None:
        outcome.changes.append(status)
    return outcome


def failure_hold(pods: list[o.Pod], now: float) -> float:
    """Seconds to wait because pods have failed by themselves: doubled with each record that is kept, from when the
    last one was created. A pod that no node can run must not be made a hundred times a second."""
    failed = [pod for pod in pods if pod.status.phase == "Failed" and pod.status.reason != LOST]
    if not failed:
        return 0.0
    last = max(seconds(pod.metadata.creationTimestamp) for pod in failed)
    hold = min(FAILURE_HOLD_MAX_SECONDS, 2.0 ** min(len(failed), FAILURE_DOUBLINGS))
    return min(hold, last + hold - now)


def create_pods(view: View, rs: o.ReplicaSet, number: int, now: float, rng: Rng) -> list[Change]:
    """Fresh names that nobody in the namespace has."""
    base = f"{rs.metadata.name}-"
    taken: set[str] = set()
    changes: list[Change] = []
    for _ in range(number):
        name = new_name(base, taken, rng)
        while view.get("Pod", rs.metadata.namespace, name) is not None:
            taken.add(name)
            name = new_name(base, taken, rng)
        taken.add(name)
        changes.append(Create(pod_from(view, rs.spec.template, rs, name, new_uid(rng), now)))
    return changes


def end_pods(view: View, rs: o.ReplicaSet, pods: list[o.Pod], number: int, now: float) -> list[Change]:
    """The ones that are missed least, first."""
    crowd = crowding(siblings(view, rs, pods))
    ordered = sorted(pods, key=lambda pod: deletion_order(pod, crowd))
    return [change for pod in ordered[:number] if (change := terminate(pod, now)) is not None]


def siblings(view: View, rs: o.ReplicaSet, pods: list[o.Pod]) -> list[o.Pod]:
    """The active pods of all ReplicaSets of the same owner: a rollout crowds a node with both old and new."""
    ref = controller_of(rs)
    if ref is None:
        return pods
    own = {pod.metadata.uid: pod for pod in pods}
    for other in view.owned(ref.uid):
        for pod in view.owned(other.metadata.uid):
            if isinstance(pod, o.Pod) and active(pod):
                own[pod.metadata.uid] = pod
    return list(own.values())


def forbidden(view: View, rs: o.ReplicaSet) -> str:
    """Why its pods cannot be made: by its namespace, as it is labelled now, or their priority class; "" if they can."""
    namespace = view.get("Namespace", "", rs.metadata.namespace)
    enforced = podsecurity.level(namespace.metadata.labels if namespace is not None else {})
    found = podsecurity.violations(rs.spec.template.spec, "spec.template.spec", enforced)
    asked = o.PodSpec()
    asked.CopyFrom(rs.spec.template.spec)
    found += give_priority(view, asked, "spec.template.spec")
    more = f"; {len(found) - 1} more" if len(found) > 1 else ""
    return f"{found[0]}{more}" if found else ""


def write_status(rs: o.ReplicaSet, pods: list[o.Pod], refusal: str, now: float) -> Change | None:
    """None when the object already says so."""
    template = dict(rs.spec.template.metadata.labels).items()
    wants = o.ReplicaSetStatus(
        replicas=len(pods),
        fullyLabeledReplicas=sum(template <= dict(pod.metadata.labels).items() for pod in pods),
        readyReplicas=sum(map(ready, pods)),
        availableReplicas=sum(map(ready, pods)),
        observedGeneration=rs.metadata.generation,
        conditions=(found for found in rs.status.conditions if refusal or found.type != REPLICA_FAILURE),
    )
    if refusal:
        failure = o.Condition(type=REPLICA_FAILURE, status="True", reason="FailedCreate", message=refusal)
        set_condition(wants.conditions, failure, now)
    if wants == rs.status:
        return None

    def edit(found: Object) -> bool:
        if not isinstance(found, o.ReplicaSet) or found.status == wants:
            return False
        found.status.CopyFrom(wants)
        return True

    return Modify(Key("ReplicaSet", rs.metadata.namespace, rs.metadata.name), edit, uid=rs.metadata.uid)
