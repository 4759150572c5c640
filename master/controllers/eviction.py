"""NoExecute taints: pods that do not tolerate one leave its node; those of a lost node get their final status."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from shoal.master.controllers.base import (
    LOST,
    Controller,
    Outcome,
    Said,
    active,
    count,
    fetch,
    instant,
    own_key,
    seconds,
    set_condition,
    terminate,
    terminating,
)
from shoal.master.controllers.node import NOT_READY, UNREACHABLE, Beats
from shoal.master.model import FINAL_PHASES, Change, Event, Key, Modify, Object, View, key_of
from shoal.proto.v1 import objects_pb2 as o

DEFAULT_TOLERATION_SECONDS = 5.0  # of not-ready and unreachable, for pods that say nothing (Kubernetes: 300)
RETRY_SECONDS = 1.0


def controller(beats: Callable[[], Beats]) -> Controller:
    return Controller("eviction", {"Node": own_key, "Pod": node_of_pod}, partial(_call, beats))


def node_of_pod(view: View, event: Event) -> Iterable[Key]:
    """Its node, when that has a taint for which pods have to go."""
    pod = event.new.message if event.new else None
    if not isinstance(pod, o.Pod) or not (name := pod.spec.nodeName):
        return ()
    node = view.get("Node", "", name)
    if not isinstance(node, o.Node) or not any(taint.effect == "NoExecute" for taint in node.spec.taints):
        return ()
    return () if pod.status.phase in FINAL_PHASES else (Key("Node", "", name),)


def _call(beats: Callable[[], Beats], view: View, key: Key, now: float) -> Outcome:
    return reconcile(view, key, now, beats())


def tolerates(toleration: o.Toleration, taint: o.Taint) -> bool:
    """Kubernetes' rule: an empty effect matches all, an empty key with Exists every taint."""
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.operator == "Exists":
        return toleration.key in ("", taint.key)
    return toleration.key == taint.key and toleration.value == taint.value


def tolerated_seconds(pod: o.Pod, taint: o.Taint) -> float | None:
    """For how long the pod stays under this taint; None: for ever."""
    fitting = [t for t in pod.spec.tolerations if tolerates(t, taint)]
    if not fitting:
        return DEFAULT_TOLERATION_SECONDS if taint.key in (NOT_READY, UNREACHABLE) else 0.0
    limits = [max(0.0, float(t.tolerationSeconds)) for t in fitting if t.HasField("tolerationSeconds")]
    return min(limits) if limits else None


def elapsed(node: o.Node, taint: o.Taint, now: float, beats: Beats) -> float:
    """Since when it is tainted. Silence is measured on the monotonic clock, so that a jump of the wall clock and
    the time that the master itself was blind do not count."""
    if taint.key == UNREACHABLE:
        return beats.clock - beats.since(node.metadata.name) - beats.grace
    return now - seconds(taint.timeAdded) if taint.HasField("timeAdded") else float("inf")


def reconcile(view: View, key: Key, now: float, beats: Beats) -> Outcome:
    """Looks at one node's pods; asks to be called when the next toleration runs out."""
    node = fetch(view, o.Node, key)
    taints = [t for t in node.spec.taints if t.effect == "NoExecute"] if node is not None else []
    outcome = Outcome()
    if node is None or not taints:
        return outcome
    lost = any(t.key == UNREACHABLE for t in taints) and beats.silent(key.name)
    gone = [t for t in taints if lost or t.key != UNREACHABLE]  # it may have come back a moment ago
    for pod in view.pods_on(key.name):
        if pod.status.phase in FINAL_PHASES:
            continue
        left = [limit - elapsed(node, t, now, beats) for t in gone if (limit := tolerated_seconds(pod, t)) is not None]
        if lost and terminating(pod):
            left = [0.0]  # nobody will report its end
        if left and min(left) <= 0:
            evict(pod, node, lost, now, outcome)
        elif left:
            outcome.again = min(outcome.again or float("inf"), min(left) + 0.001)
    if outcome.changes:
        outcome.did = f"{'gave up' if lost else 'evicted'} {count(len(outcome.changes), 'pod')}"
    if outcome.again is None and any(t.key == UNREACHABLE for t in taints) and not lost:
        outcome.again = RETRY_SECONDS
    return outcome


def evict(pod: o.Pod, node: o.Node, lost: bool, now: float, outcome: Outcome) -> None:
    name = node.metadata.name
    if lost:
        outcome.changes.append(give_up(pod, f"Node {name} was lost: its agent was not heard of.", now))
        outcome.said.append(Said(pod, "Warning", "NodeLost", f"Node {name} was lost; the pod is given up"))
        return
    change = terminate(pod, now) if active(pod) else None
    if change is not None:
        outcome.changes.append(change)
        outcome.said.append(Said(pod, "Normal", "TaintManagerEviction", f"Leaves node {name}: taint not tolerated"))


def give_up(pod: o.Pod, message: str, now: float) -> Change:
    """The final status that the master writes for a pod of a lost node."""

    def edit(found: Object) -> bool:
        if not isinstance(found, o.Pod) or found.status.phase in FINAL_PHASES:
            return False
        found.status.phase, found.status.reason, found.status.message = "Failed", LOST, message
        for type_ in ("Ready", "ContainersReady"):
            new = o.Condition(type=type_, status="False", reason=LOST, message=message)
            set_condition(found.status.conditions, new, now)
        for status in found.status.containerStatuses:
            status.ready = False
            if status.state.HasField("running"):
                started = status.state.running.startedAt
                ended = o.ContainerStateTerminated(
                    exitCode=137,
                    reason="ContainerStatusUnknown",
                    message=message,
                    startedAt=started,
                    finishedAt=instant(now),
                    containerID=status.containerID,
                )
                status.state.CopyFrom(o.ContainerState(terminated=ended))
        return True

    return Modify(key_of(pod), edit, uid=pod.metadata.uid)
