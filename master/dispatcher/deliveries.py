"""Which objects go with the pods: what a node's pods refer to, and the volumes that live on it (pure).

An object reaches exactly the nodes that need it, so that a Secret is nowhere else. All answers come from indexes.
"""

from __future__ import annotations

from collections.abc import Iterator

from shoal.master.model import FINAL_PHASES, Event, Key, Modify, Object, Record, View
from shoal.proto.references import (
    CLAIM,
    CONFIG_MAP,
    LOCAL_FINALIZER,
    SECRET,
    VOLUME,
    VOLUME_PROTECTION,
    homes,
    references,
)
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

DELIVERED = frozenset({CONFIG_MAP, SECRET, CLAIM, VOLUME})


def needed(view: View, node: str, key: Key) -> bool:
    """Whether `node` is to hold this object, if it exists."""
    if key.kind != VOLUME:
        return bool(view.referring(*key, node=node))
    volume = view.get(*key)
    if isinstance(volume, o.PersistentVolume) and node in homes(volume):
        return True
    return any(view.referring(CLAIM, c.metadata.namespace, c.metadata.name, node) for c in view.claims_on(key.name))


def assigned_object(view: View, key: Key, node: str) -> s.AssignedObject | None:
    """The object as `node` is to hold it, or None."""
    record = view.record(key)
    if record is None or not needed(view, node, key):
        return None
    return s.AssignedObject(kind=key.kind, namespace=key.namespace, name=key.name, body=record.body)


def everything(view: View, node: str) -> list[Key]:
    """All that `node` may have to hold, by kind and name."""
    keys = {Key(VOLUME, "", volume.metadata.name) for volume in view.volumes_on(node)}
    for pod in view.pods_on(node):
        for key in of_pod(pod, node):
            keys.add(key)
            keys |= _volume_of(view, key)
    return sorted(keys)


def of_pod(pod: o.Pod | None, node: str) -> set[Key]:
    """What the pod refers to while it needs it on this node."""
    if pod is None or pod.spec.nodeName != node or _ended(pod):
        return set()
    return {Key(*reference) for reference in references(pod)}


def concerned(view: View, event: Event) -> Iterator[tuple[str, Key]]:
    """(node, key) pairs that may have something to hear of a change; the view may be ahead of it."""
    if event.key.kind == "Pod":
        yield from _by_pod(view, event)
    elif event.key.kind in (CONFIG_MAP, SECRET):
        yield from ((node, event.key) for node in _users(view, event.key))
    elif event.key.kind == CLAIM:
        volumes = {key for record in (event.old, event.new) for key in _volume_named(record)}
        yield from ((node, key) for node in _users(view, event.key) for key in (event.key, *sorted(volumes)))
    elif event.key.kind == VOLUME:
        nodes = {home for record in (event.old, event.new) for home in _homes(record)}
        for claim in view.claims_on(event.key.name):
            nodes |= _users(view, Key(CLAIM, claim.metadata.namespace, claim.metadata.name))
        yield from ((node, event.key) for node in sorted(nodes))


def unreachable(event: Event) -> set[Key]:
    """The volume that no index leads to any more once this claim or volume is deleted: its pods may be gone, too."""
    if event.key.kind == VOLUME:
        return {event.key}
    return _volume_named(event.old) if event.key.kind == CLAIM else set()


def _by_pod(view: View, event: Event) -> Iterator[tuple[str, Key]]:
    old, new = (_pod(record) for record in (event.old, event.new))
    if old is not None and new is not None and _ended(old) == _ended(new) and old.spec == new.spec:
        return  # by far the most frequent: a status
    for node in sorted({pod.spec.nodeName for pod in (old, new) if pod is not None and pod.spec.nodeName}):
        for key in sorted(of_pod(old, node) ^ of_pod(new, node)):
            yield node, key
            yield from ((node, volume) for volume in _volume_of(view, key))


def _pod(record: Record | None) -> o.Pod | None:
    return record.message if record is not None and isinstance(record.message, o.Pod) else None


def _ended(pod: o.Pod) -> bool:
    return pod.status.phase in FINAL_PHASES


def _users(view: View, key: Key) -> set[str]:
    return {pod.spec.nodeName for pod in view.referring(*key) if pod.spec.nodeName}


def _volume_of(view: View, key: Key) -> set[Key]:
    """The volume of a claim, when the key is one that has one."""
    return _volume_named(view.record(key)) if key.kind == CLAIM else set()


def _volume_named(record: Record | None) -> set[Key]:
    claim = record.message if record is not None else None
    named = claim.spec.volumeName if isinstance(claim, o.PersistentVolumeClaim) else ""
    return {Key(VOLUME, "", named)} if named else set()


def _homes(record: Record | None) -> frozenset[str]:
    volume = record.message if record is not None else None
    return homes(volume) if isinstance(volume, o.PersistentVolume) else frozenset()


# ---- the end of a volume ----
def freed(view: View, node: str, name: str) -> Modify | str | None:
    """What follows when `node` says that a volume's folder is gone: its finalizer goes; or why not, in words; None
    when there is nothing to do."""
    volume = view.get(VOLUME, "", name)
    if not isinstance(volume, o.PersistentVolume) or LOCAL_FINALIZER not in volume.metadata.finalizers:
        return None
    if homes(volume) != {node}:
        return f"volume {name} lives on {', '.join(sorted(homes(volume))) or 'no node'}, not on {node}"
    if not volume.metadata.HasField("deletionTimestamp"):
        return f"volume {name} is not being deleted"
    if VOLUME_PROTECTION in volume.metadata.finalizers:
        return f"volume {name} is still a claim's"
    return Modify(Key(VOLUME, "", name), _let_go, uid=volume.metadata.uid)


def _let_go(obj: Object) -> bool:
    if LOCAL_FINALIZER not in obj.metadata.finalizers:
        return False
    obj.metadata.finalizers.remove(LOCAL_FINALIZER)
    return True
