"""Records of pods that nobody else takes away: never bound, on nodes that are gone, or given up with a lost node."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.master.controllers.base import (
    LOST,
    Controller,
    Outcome,
    condition,
    controller_of,
    count,
    fetch,
    seconds,
    terminate,
    terminating,
)
from shoal.master.model import FINAL_PHASES, Change, Delete, Event, Key, View, key_of
from shoal.proto.v1 import objects_pb2 as o

KEPT_PER_OWNER = 10  # ended pods that an owner keeps, for people to look at


def controller() -> Controller:
    watches = {"Pod": pod_keys, "Node": node_keys}
    return Controller("podgc", watches, reconcile)


def pod_keys(view: View, event: Event) -> Iterable[Key]:
    """Pods that are going, ended, or bound to nothing that exists; and the siblings of one that ended."""
    pod = event.new.message if event.new else None
    if not isinstance(pod, o.Pod):
        return ()
    ended = pod.status.phase in FINAL_PHASES
    orphaned = bool(pod.spec.nodeName) and view.get("Node", "", pod.spec.nodeName) is None
    if not (terminating(pod) or ended or orphaned):
        return ()
    ref = controller_of(pod)
    before = event.old.message if event.old else None
    if ended and ref is not None and not (isinstance(before, o.Pod) and before.status.phase in FINAL_PHASES):
        return [key_of(p) for p in view.owned(ref.uid) if isinstance(p, o.Pod) and p.status.phase in FINAL_PHASES]
    return (event.key,)


def node_keys(view: View, event: Event) -> Iterable[Key]:
    """A node that went away or came back decides about its pods."""
    node = event.new.message if event.new else None
    pods = view.pods_on(event.key.name)
    if node is None:
        return [key_of(pod) for pod in pods]
    return [key_of(pod) for pod in pods if pod.status.phase in FINAL_PHASES] if node_ready(node) else ()


def node_ready(node: object) -> bool:
    if not isinstance(node, o.Node):
        return False
    found = condition(node.status.conditions, "Ready")
    return found is not None and found.status == "True"


def reconcile(view: View, key: Key, now: float) -> Outcome:
    pod = fetch(view, o.Pod, key)
    if pod is None:
        return Outcome()
    why = reason_to_remove(view, pod)
    if why and not pod.metadata.finalizers:
        removal: Change = Delete(key, uid=pod.metadata.uid)
        return Outcome([removal], f"removed: {why}")
    if not why and surplus(view, pod):
        why = f"{count(KEPT_PER_OWNER, 'pod')} of its owner ended later"
    change = terminate(pod, now) if why else None
    return Outcome([change], f"deleted: {why}") if change else Outcome()


def reason_to_remove(view: View, pod: o.Pod) -> str:
    """In words; empty: it stays."""
    name = pod.spec.nodeName
    if not name:
        return "deleted before it was bound" if terminating(pod) else ""
    node = view.get("Node", "", name)
    if node is None:
        return f"its node {name} does not exist any more"
    if pod.status.phase == "Failed" and pod.status.reason == LOST:
        if terminating(pod):
            return f"deleted, and its node {name} is lost"
        if controller_of(pod) is not None and node_ready(node):
            return f"given up, and its node {name} is back without it"
        if surplus(view, pod):
            return f"given up, and {count(KEPT_PER_OWNER, 'pod')} of its owner ended later"
    if terminating(pod) and pod.status.phase in FINAL_PHASES and not pod.metadata.deletionGracePeriodSeconds:
        return "deleted, and its end was reported"
    return ""


def surplus(view: View, pod: o.Pod) -> bool:
    """An ended pod whose owner has enough younger ones to show."""
    ref = controller_of(pod)
    if ref is None or pod.status.phase not in FINAL_PHASES or terminating(pod):
        return False
    ended = [p for p in view.owned(ref.uid) if isinstance(p, o.Pod) and p.status.phase in FINAL_PHASES]
    return sum(age(p) > age(pod) for p in ended) >= KEPT_PER_OWNER


def age(pod: o.Pod) -> tuple[float, str]:
    return seconds(pod.metadata.creationTimestamp), pod.metadata.name
