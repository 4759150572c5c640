"""Owner-based garbage collection (background, foreground, orphan), by uid, and the end of namespaces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal.master.controllers.base import (
    Controller,
    Outcome,
    Watch,
    count,
    own_key,
    terminate,
    terminating,
)
from shoal.master.controllers.claims import drop_owners
from shoal.master.model import CLUSTER_SCOPED, KINDS, Change, Delete, Event, Key, Modify, Object, View, key_of
from shoal.proto.v1 import objects_pb2 as o

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
NAMESPACED = tuple(kind for kind in KINDS if kind not in CLUSTER_SCOPED)
COLLECTED = tuple(kind for kind in KINDS if kind != "Event")
BATCH = 500  # changes of one call; the rest follows


def controller() -> Controller:
    watches: Mapping[str, Watch] = dict.fromkeys(COLLECTED, family_keys)
    return Controller("gc", watches, reconcile)


def namespace_controller() -> Controller:
    watches: Mapping[str, Watch] = {"Namespace": own_key} | dict.fromkeys(NAMESPACED, closing_keys)
    return Controller("namespace", watches, reconcile_namespace)


def family_keys(view: View, event: Event) -> Iterable[Key]:
    """The object when it may have to go, its dependents when it has gone, its owners when they wait for it."""
    if _stands_alone(event):
        return ()
    keys: list[Key] = []
    records = [record for record in (event.old, event.new) if record is not None]
    if event.new is not None and (terminating(event.new.message) or _owners_changed(event)):
        keys.append(event.key)
    if event.old is not None and (
        event.new is None or event.new.message.metadata.uid != event.old.message.metadata.uid
    ):
        keys += [key_of(child) for child in view.owned(event.old.message.metadata.uid)]
    for uid in sorted({ref.uid for one in records for ref in one.message.metadata.ownerReferences}):
        owner = view.by_uid(uid)
        if owner is not None and terminating(owner):
            keys.append(key_of(owner))
    return keys


def _stands_alone(event: Event) -> bool:
    """By far the most frequent: an object without owners that stays."""
    if event.new is None:
        return False
    now = event.new.message.metadata
    if now.ownerReferences or now.HasField("deletionTimestamp"):
        return False
    if event.old is None:
        return True
    before = event.old.message.metadata
    return not before.ownerReferences and before.uid == now.uid


def _owners_changed(event: Event) -> bool:
    now = event.new.message.metadata.ownerReferences if event.new else []
    before = event.old.message.metadata.ownerReferences if event.old else []
    return bool(now) and [ref.uid for ref in now] != [ref.uid for ref in before]


def closing_keys(view: View, event: Event) -> Iterable[Key]:
    """Namespaces that are on their way out, or gone, care about what is left in them."""
    found = view.get("Namespace", "", event.key.namespace)
    leaving = found is None or terminating(found)
    return (Key("Namespace", "", event.key.namespace),) if leaving else ()


def reconcile(view: View, key: Key, now: float) -> Outcome:
    """One object: ends it when its owners are gone; carries out its own end when that has begun."""
    record = view.record(key)
    if record is None or key.kind == "Event":
        return Outcome()
    obj = record.message
    if terminating(obj):
        return finish(view, obj, now)
    if obj.metadata.ownerReferences:
        return collect(view, obj, now)
    return Outcome()


def present(view: View, obj: Object, ref: o.OwnerReference) -> Object | None:
    """The owner, by uid; one in another namespace is none."""
    owner = view.by_uid(ref.uid)
    if owner is None or owner.kind != ref.kind:
        return None
    inside = owner.metadata.namespace in ("", obj.metadata.namespace)
    return owner if inside else None


def collect(view: View, obj: Object, now: float) -> Outcome:
    owners = {ref.uid: present(view, obj, ref) for ref in obj.metadata.ownerReferences}
    absent = {uid for uid, owner in owners.items() if owner is None}
    waiting = {uid for uid, owner in owners.items() if owner and terminating(owner) and held(owner, FOREGROUND)}
    if not absent and not waiting:
        return Outcome()
    if len(absent) + len(waiting) < len(owners):
        leaving = absent | waiting
        edit = Modify(key_of(obj), lambda found: drop_owners(found, leaving), uid=obj.metadata.uid)
        return Outcome([edit], "lost an owner and keeps another")
    has_children = bool(view.owned(obj.metadata.uid))
    change = terminate(obj, now, FOREGROUND if waiting and has_children else "")
    return Outcome([change], "deleted: its owner is gone") if change else Outcome()


def held(obj: Object, finalizer: str) -> bool:
    return finalizer in obj.metadata.finalizers


def finish(view: View, obj: Object, now: float) -> Outcome:
    """The end of a terminating object: orphan or take along its dependents, then leave."""
    children = view.owned(obj.metadata.uid)
    if held(obj, ORPHAN):
        return let_go(obj, children)
    if held(obj, FOREGROUND):
        return take_along(view, obj, children, now)
    if obj.metadata.finalizers or isinstance(obj, o.Pod | o.Namespace):
        return Outcome()  # somebody else's finalizer, the pod collector, the namespace controller
    return Outcome([Delete(key_of(obj), uid=obj.metadata.uid)], "deleted")


def let_go(obj: Object, children: Iterable[Object]) -> Outcome:
    uid = obj.metadata.uid
    changes = [_disown(child, uid) for child in children]
    if changes:
        done = f"orphaned {count(min(len(changes), BATCH), 'object')}"
        return Outcome(changes[:BATCH], done)
    return Outcome([drop_finalizer(obj, ORPHAN)], "has no dependents left")


def _disown(child: Object, owner_uid: str) -> Change:
    return Modify(key_of(child), lambda found: drop_owners(found, {owner_uid}), uid=child.metadata.uid)


def take_along(view: View, obj: Object, children: Iterable[Object], now: float) -> Outcome:
    """Every dependent goes; only those that block hold the owner back."""
    uid = obj.metadata.uid
    mine = [child for child in children if not other_owner(view, child, uid)]
    blocking = [c for c in mine if any(r.uid == uid and r.blockOwnerDeletion for r in c.metadata.ownerReferences)]
    if not blocking:
        return Outcome([drop_finalizer(obj, FOREGROUND)], "has no dependents left")
    ends = [terminate(c, now, FOREGROUND if view.owned(c.metadata.uid) else "") for c in mine]
    ends += [_disown(c, uid) for c in children if other_owner(view, c, uid)]
    changes = [change for change in ends if change is not None][:BATCH]
    return Outcome(changes, f"deleted {count(len(changes), 'dependent')}" if changes else "")


def other_owner(view: View, child: Object, uid: str) -> bool:
    """True when another owner keeps it."""
    others = [present(view, child, ref) for ref in child.metadata.ownerReferences if ref.uid != uid]
    return any(owner is not None and not terminating(owner) for owner in others)


def drop_finalizer(obj: Object, finalizer: str) -> Change:
    def edit(found: Object) -> bool:
        if finalizer not in found.metadata.finalizers:
            return False
        found.metadata.finalizers.remove(finalizer)
        return True

    return Modify(key_of(obj), edit, uid=obj.metadata.uid)


# ---- namespaces ----
def reconcile_namespace(view: View, key: Key, now: float) -> Outcome:
    """A terminating namespace: everything in it, then itself. One that is gone: what was made in the last moment."""
    found = view.get("Namespace", "", key.name)
    if found is not None and not terminating(found):
        return Outcome()
    inside = [obj for kind in NAMESPACED for obj in view.all(kind, key.name)]
    ends = [change for obj in inside if (change := terminate(obj, now)) is not None]
    changes = ends[:BATCH]
    outcome = Outcome(changes, f"deleted {count(len(changes), 'object')} in it" if changes else "")
    if len(ends) > BATCH:
        outcome.again = 0.0
    if isinstance(found, o.Namespace):
        if found.status.phase != "Terminating":
            changes.append(Modify(key, mark_closing, uid=found.metadata.uid))
        if not inside and not found.metadata.finalizers:
            changes.append(Delete(key, uid=found.metadata.uid))
            outcome.did = "deleted: it is empty"
    return outcome


def mark_closing(found: Object) -> bool:
    if not isinstance(found, o.Namespace) or found.status.phase == "Terminating":
        return False
    found.status.phase = "Terminating"
    return True
