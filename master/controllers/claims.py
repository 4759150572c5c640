"""Who belongs to whom: owners adopt what their selector matches and release what it no longer does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from shoal.master.controllers.base import controller_of, owner_reference, terminating
from shoal.master.model import Change, Modify, Object, View, key_of
from shoal.proto.selector import LabelSelector, from_message
from shoal.proto.v1 import objects_pb2 as o

T = TypeVar("T", bound=Object)


def matches(selector: o.LabelSelector, labels: Mapping[str, str]) -> bool:
    """Kubernetes' rule for objects, save that an empty selector matches nothing: no owner may claim everything."""
    return _claims(from_message(selector), labels)


def _claims(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    return not selector.empty and selector.matches(labels)


def candidates(view: View, kind: str, namespace: str, selector: LabelSelector) -> Iterable[Object]:
    """A superset of what the selector matches, from the smallest index that answers."""
    found = [view.labelled(kind, namespace, key, value) for key, value in selector.equalities()]
    if found:
        return min(found, key=len)
    for rule in selector.requirements:
        if rule.operator == "In":
            return [obj for value in sorted(rule.values) for obj in view.labelled(kind, namespace, rule.key, value)]
    return view.all(kind, namespace)


@dataclass(slots=True)
class Claim(Generic[T]):
    """What the owner has once the changes are in."""

    mine: list[T] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    adopted: int = 0
    released: int = 0


def claim(view: View, owner: Object, cls: type[T], kind: str, wanted: o.LabelSelector) -> Claim[T]:
    """Sorts the owner's objects and the orphans that match. Terminating objects and owners change nothing."""
    result: Claim[T] = Claim()
    selector = from_message(wanted)
    uid = owner.metadata.uid
    for obj in view.owned(uid):
        ref = controller_of(obj)
        if not isinstance(obj, cls) or ref is None or ref.uid != uid:
            continue
        if terminating(obj) or terminating(owner) or _claims(selector, obj.metadata.labels):
            result.mine.append(obj)
        else:
            result.released += 1
            result.changes.append(_release(obj, uid, selector))
    if terminating(owner):
        return result
    for obj in candidates(view, kind, owner.metadata.namespace, selector):
        if isinstance(obj, cls) and _adoptable(obj, selector):
            result.adopted += 1
            result.mine.append(obj)
            result.changes.append(_adopt(obj, owner, selector))
    return result


def _adoptable(obj: Object, selector: LabelSelector) -> bool:
    if isinstance(obj, o.Pod) and obj.status.phase in ("Succeeded", "Failed"):
        return False
    return controller_of(obj) is None and not terminating(obj) and _claims(selector, obj.metadata.labels)


def _adopt(obj: Object, owner: Object, selector: LabelSelector) -> Change:
    reference = owner_reference(owner)

    def edit(found: Object) -> bool:
        if not _adoptable(found, selector):
            return False
        kept = [ref for ref in found.metadata.ownerReferences if ref.uid != reference.uid]
        del found.metadata.ownerReferences[:]
        found.metadata.ownerReferences.extend([*kept, reference])
        return True

    return Modify(key_of(obj), edit, uid=obj.metadata.uid)


def _release(obj: Object, uid: str, selector: LabelSelector) -> Change:
    def edit(found: Object) -> bool:
        return not _claims(selector, found.metadata.labels) and drop_owners(found, {uid})

    return Modify(key_of(obj), edit, uid=obj.metadata.uid)


def drop_owners(obj: Object, uids: set[str]) -> bool:
    """Takes these owners off the object in place; True when one was there."""
    kept = [ref for ref in obj.metadata.ownerReferences if ref.uid not in uids]
    if len(kept) == len(obj.metadata.ownerReferences):
        return False
    del obj.metadata.ownerReferences[:]
    obj.metadata.ownerReferences.extend(kept)
    return True
