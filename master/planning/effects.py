"""What a rehearsal has come to, pod by pod, and which images the nodes would have to fetch for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from shoal.master.controllers.base import controller_of, terminating
from shoal.master.model import FINAL_PHASES, Key, Record, key_of
from shoal.master.planning.rehearsal import Rehearsal
from shoal.master.scheduler.affinity import image_name
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o

CREATED, PLACED, PENDING = "created", "placed", "pending"
DELETED, PREEMPTED, LOST = "deleted", "preempted", "lost"
FATES = (CREATED, PLACED, PENDING, PREEMPTED, DELETED, LOST)
WAITS = "nobody has looked at it yet"


def pods_of(rehearsal: Rehearsal, lost: Mapping[str, str]) -> list[c.PlannedPod]:
    """The fates of all pods that it touched, by owner, fate and node; `lost`: uids whose node fails, with the node.
    What came and went within it is not told."""
    found = [_fate(rehearsal, uid, first, lost) for uid, first in rehearsal.first.items()]
    told = [fate for fate in found if fate is not None]
    return sorted(told, key=_order)


def _order(pod: c.PlannedPod) -> tuple[object, ...]:
    owner = pod.owner
    return owner.kind, owner.namespace, owner.name, FATES.index(pod.fate), pod.node, pod.key.name


def _fate(rehearsal: Rehearsal, uid: str, first: Record | None, lost: Mapping[str, str]) -> c.PlannedPod | None:
    found = rehearsal.overlay.by_uid(uid)
    now = found if isinstance(found, o.Pod) and not terminating(found) else None
    was = first.message if first is not None else None
    before = was if isinstance(was, o.Pod) else None
    if now is not None and (before is None or not before.spec.nodeName):
        return _arrived(rehearsal, now, new=before is None)
    if now is None and before is not None and not terminating(before):
        return _left(rehearsal, before, lost)
    return None


def _arrived(rehearsal: Rehearsal, pod: o.Pod, new: bool) -> c.PlannedPod | None:
    uid, node = pod.metadata.uid, pod.spec.nodeName
    if pod.status.phase in FINAL_PHASES:
        return None
    owner = owner_key(rehearsal, pod)
    named = not new or owner.kind == "Pod"
    key = c.Key(kind="Pod", namespace=pod.metadata.namespace, name=pod.metadata.name if named else "")
    reason = "" if node else rehearsal.refusals.get(uid, WAITS)
    if not new and not node and reason == said(pod):
        return None  # it waits as before
    fate = (CREATED if new else PLACED) if node else PENDING
    return c.PlannedPod(fate=fate, key=key, uid="" if new else uid, owner=owner, node=node, reason=reason)


def _left(rehearsal: Rehearsal, pod: o.Pod, lost: Mapping[str, str]) -> c.PlannedPod:
    uid = pod.metadata.uid
    fate = LOST if uid in lost else PREEMPTED if uid in rehearsal.preempted else DELETED
    taker = rehearsal.preempted.get(uid)
    reason = _room_for(rehearsal, taker) if taker is not None else rehearsal.causes.get(uid, "")
    return c.PlannedPod(
        fate=fate,
        key=_message(key_of(pod)),
        uid=uid,
        owner=owner_key(rehearsal, pod),
        node=pod.spec.nodeName,
        reason=reason,
    )


def _room_for(rehearsal: Rehearsal, taker: str) -> str:
    """Names the pod if it has a name by now, else its owner."""
    pod = rehearsal.overlay.by_uid(taker)
    if not isinstance(pod, o.Pod):
        return "makes room for a pod of higher priority"
    owner = owner_key(rehearsal, pod)
    if rehearsal.first.get(taker) is not None or owner.kind == "Pod":
        return f"makes room for pod {pod.metadata.namespace}/{pod.metadata.name}"
    return f"makes room for a pod of {owner.kind.lower()} {owner.namespace}/{owner.name}"


def said(pod: o.Pod) -> str:
    """Why it waits, as its condition has it."""
    return next((one.message for one in pod.status.conditions if one.type == "PodScheduled"), "")


def owner_key(rehearsal: Rehearsal, pod: o.Pod) -> c.Key:
    """The workload on top of the pod; the pod itself when nobody controls it."""
    key, found = key_of(pod), controller_of(pod)
    while found is not None:
        key = Key(found.kind, pod.metadata.namespace, found.name)
        above = rehearsal.overlay.by_uid(found.uid)
        found = controller_of(above) if above is not None else None
    return _message(key)


def _message(key: Key) -> c.Key:
    return c.Key(kind=key.kind, namespace=key.namespace, name=key.name)


# ---- images ----
def fetches(rehearsal: Rehearsal) -> list[c.ImageFetch]:
    """What the nodes lack of the images of the pods that come to them, with the sizes that other nodes say."""
    nodes = [node for node in rehearsal.overlay.all("Node") if isinstance(node, o.Node)]
    sizes = {name: image.sizeBytes for node in nodes for image in node.status.images for name in image.names}
    have = {node.metadata.name: {name for image in node.status.images for name in image.names} for node in nodes}
    wanted: set[tuple[str, str]] = set()
    for pod in _newcomers(rehearsal):
        wanted |= {(pod.spec.nodeName, image_name(image)) for image in _images(pod)}
    lacking = sorted(pair for pair in wanted if pair[1] not in have.get(pair[0], ()))
    return [c.ImageFetch(node=node, image=image, bytes=sizes.get(image, 0)) for node, image in lacking]


def _newcomers(rehearsal: Rehearsal) -> Iterator[o.Pod]:
    for uid, first in rehearsal.first.items():
        before, now = first.message if first else None, rehearsal.overlay.by_uid(uid)
        if isinstance(now, o.Pod) and now.spec.nodeName and not (isinstance(before, o.Pod) and before.spec.nodeName):
            yield now


def _images(pod: o.Pod) -> Iterable[str]:
    return (container.image for container in (*pod.spec.initContainers, *pod.spec.containers) if container.image)
