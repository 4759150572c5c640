"""What every controller is made of: its declaration, the outcome of a call, and small readers of objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableSequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

from shoal.master.model import FINAL_PHASES, Change, Delete, Event, Key, Modify, Object, View, key_of
from shoal.proto.v1 import objects_pb2 as o

DEFAULT_GRACE_SECONDS = 30  # PodSpec.terminationGracePeriodSeconds' default
NANOS = 1_000_000_000
LOST = "Lost"  # status.reason of a pod whose node was declared lost

T = TypeVar("T", bound=Object)


class Rng(Protocol):
    """The part of random.Random that controllers use; it comes in as an argument."""

    def getrandbits(self, k: int, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Said:
    """Something worth an Event: about which object, how grave, and in words."""

    about: Object
    type: str  # Normal, Warning
    reason: str
    message: str
    part: str = ""  # of the object: what is said of another part is another Event
    count: int = 1


@dataclass(slots=True)
class Outcome:
    """What one reconcile wants: changes in order, a plain sentence for the log, events, and when to be called again."""

    changes: list[Change] = field(default_factory=list)
    did: str = ""
    said: list[Said] = field(default_factory=list)
    again: float | None = None  # seconds from now


Watch: TypeAlias = Callable[[View, Event], Iterable[Key]]
Reconcile: TypeAlias = Callable[[View, Key, float], Outcome]


@dataclass(frozen=True, slots=True)
class Controller:
    """A named reconcile and, for each kind it watches, which of its keys an event concerns."""

    name: str
    watches: Mapping[str, Watch]
    reconcile: Reconcile


# ---- time ----
def instant(now: float) -> o.Time:
    """Seconds since the epoch as a message."""
    whole = int(now // 1)
    return o.Time(seconds=whole, nanos=min(NANOS - 1, int((now - whole) * NANOS)))


def seconds(time: o.Time) -> float:
    return time.seconds + time.nanos / NANOS


# ---- reading ----
def fetch(view: View, cls: type[T], key: Key) -> T | None:
    """The object under the key, when it is there and of this class."""
    found = view.get(key.kind, key.namespace, key.name)
    return found if isinstance(found, cls) else None


def own_key(_view: View, event: Event) -> Iterable[Key]:
    """The watch of a controller's own kind."""
    return (event.key,)


def terminating(obj: Object) -> bool:
    return obj.metadata.HasField("deletionTimestamp")


def controller_of(obj: Object) -> o.OwnerReference | None:
    """The one owner reference that says `controller: true`."""
    for ref in obj.metadata.ownerReferences:
        if ref.controller:
            return ref
    return None


def owner_keys(event: Event, kind: str) -> set[Key]:
    """Keys of the controllers of this kind that own the object now or owned it before the event."""
    keys = set()
    for record in (event.old, event.new):
        ref = controller_of(record.message) if record else None
        if ref is not None and ref.kind == kind:
            keys.add(Key(kind, event.key.namespace, ref.name))
    return keys


def owner_reference(owner: Object) -> o.OwnerReference:
    meta = owner.metadata
    return o.OwnerReference(
        apiVersion=owner.apiVersion,
        kind=owner.kind,
        name=meta.name,
        uid=meta.uid,
        controller=True,
        blockOwnerDeletion=True,
    )


def active(pod: o.Pod) -> bool:
    """Neither ended nor on its way out."""
    return pod.status.phase not in FINAL_PHASES and not terminating(pod)


def condition(conditions: Iterable[o.Condition], type_: str) -> o.Condition | None:
    for found in conditions:
        if found.type == type_:
            return found
    return None


def ready(pod: o.Pod) -> bool:
    found = condition(pod.status.conditions, "Ready")
    return found is not None and found.status == "True"


# ---- writing ----
def set_condition(conditions: MutableSequence[o.Condition], new: o.Condition, now: float) -> bool:
    """Puts the condition in; its transition time moves only with its status. True when something changed."""
    old = condition(conditions, new.type)
    if old is None:
        conditions.append(new)
        conditions[-1].lastTransitionTime.CopyFrom(instant(now))
        return True
    if (old.status, old.reason, old.message) == (new.status, new.reason, new.message):
        return False
    if old.status != new.status:
        old.lastTransitionTime.CopyFrom(instant(now))
    old.status, old.reason, old.message = new.status, new.reason, new.message
    return True


def mark_terminating(obj: Object, now: float) -> bool:
    """Sets the deletion time (for a pod: when its grace is over, as in Kubernetes); False when it was set before."""
    if terminating(obj):
        return False
    grace = 0
    if isinstance(obj, o.Pod) and obj.spec.nodeName:
        spec = obj.spec
        named = spec.HasField("terminationGracePeriodSeconds")
        grace = spec.terminationGracePeriodSeconds if named else DEFAULT_GRACE_SECONDS
    obj.metadata.deletionTimestamp.CopyFrom(instant(now + grace))
    obj.metadata.deletionGracePeriodSeconds = grace
    return True


def terminate(obj: Object, now: float, finalizer: str = "") -> Change | None:
    """The change that begins an object's end: pods gracefully, others at once unless a finalizer holds them."""
    if terminating(obj):
        return None
    meta = obj.metadata
    if not isinstance(obj, o.Pod) and not meta.finalizers and not finalizer:
        return Delete(key_of(obj), uid=meta.uid)

    def edit(found: Object) -> bool:
        if not mark_terminating(found, now):
            return False
        if finalizer and finalizer not in found.metadata.finalizers:
            found.metadata.finalizers.append(finalizer)
        return True

    return Modify(key_of(obj), edit, uid=meta.uid)


def count(number: int, noun: str) -> str:
    """ "1 pod", "3 pods": for log sentences."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def namespace_closing(view: View, namespace: str) -> bool:
    """True when nothing new may be made in the namespace."""
    found = view.get("Namespace", "", namespace)
    return found is not None and terminating(found)
