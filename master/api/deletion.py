"""How an object goes: at once, gracefully, or when its finalizers let it (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.master.api.admission import DEFAULT_NAMESPACE, SYSTEM_NAMESPACE
from shoal.master.api.faults import Forbidden, Invalid
from shoal.master.model import FINAL_PHASES, Change, Conflict, Delete, Modify, Object, Record, View
from shoal.proto.kinds import Plain
from shoal.proto.rules.scheduling import SYSTEM_CLASSES
from shoal.proto.v1 import objects_pb2 as o

FINALIZERS = {"": "", "Background": "", "Foreground": "foregroundDeletion", "Orphan": "orphan"}
DEFAULT_GRACE_SECONDS = 30
MAX_GRACE_SECONDS = 365 * 24 * 3600
PROTECTED = frozenset({DEFAULT_NAMESPACE, SYSTEM_NAMESPACE})


@dataclass(frozen=True, slots=True)
class Wish:
    """How the caller wants it; `grace` None is the pod's own."""

    grace: int | None = None
    propagation: str = ""
    uid: str = ""

    def check(self) -> None:
        """Raises Invalid."""
        if self.propagation not in FINALIZERS:
            wanted = ", ".join(name for name in FINALIZERS if name)
            raise Invalid(f"propagation {self.propagation[:40]!r} is unknown: use one of {wanted}")
        if self.grace is not None and not 0 <= self.grace <= MAX_GRACE_SECONDS:
            raise Invalid(f"grace_period_seconds must be from 0 to {MAX_GRACE_SECONDS}, not {self.grace}")


def plan(view: View, record: Record, wish: Wish, now: float, begin_only: bool = False) -> Change:
    """The change that begins the object's end, or completes it; with `begin_only` it never completes it, so that it
    holds whatever others write meanwhile: the collectors do the rest. Raises Fault."""
    obj, key = record.message, record.key
    if wish.uid and wish.uid != obj.metadata.uid:
        raise Conflict(f"{key} has uid {obj.metadata.uid}, not {wish.uid}: it is another object now")
    if key.kind == "Namespace" and key.name in PROTECTED:
        raise Forbidden(f"namespace {key.name!r} belongs to the cluster and cannot be deleted")
    if key.kind == "PriorityClass" and key.name in SYSTEM_CLASSES:
        raise Forbidden(f"priority class {key.name!r} belongs to the cluster and cannot be deleted")
    finalizer = FINALIZERS[wish.propagation]
    held = bool(obj.metadata.finalizers or finalizer or begin_only) or key.kind == "Namespace"
    if not held and (not isinstance(obj, o.Pod) or _nobody_runs(view, obj, wish)):
        return Delete(key, uid=obj.metadata.uid, revision=record.revision)
    return Modify(key, _Terminate(finalizer, wish.grace, now), uid=obj.metadata.uid)


def _nobody_runs(view: View, pod: o.Pod, wish: Wish) -> bool:
    """No agent will ever report this pod's end, or the caller will not wait for one that is cut off."""
    if not pod.spec.nodeName or pod.status.reason == "Lost":
        return True
    node = view.get("Node", "", pod.spec.nodeName)
    if not isinstance(node, o.Node):
        return True
    ready = any(c.type == "Ready" and c.status == "True" for c in node.status.conditions)
    return wish.grace == 0 and not ready


@dataclass(frozen=True, slots=True)
class _Terminate:
    finalizer: str
    grace: int | None
    now: float

    def __call__(self, obj: Object) -> bool:
        meta = obj.metadata
        grace = self._grace(obj)
        if meta.HasField("deletionTimestamp"):
            if grace >= meta.deletionGracePeriodSeconds:
                return False
        elif self.finalizer and self.finalizer not in meta.finalizers:
            meta.finalizers.append(self.finalizer)
        # Kubernetes' meaning: the time at which the grace is over
        at = self.now + grace
        meta.deletionTimestamp.CopyFrom(o.Time(seconds=int(at), nanos=int(at % 1 * 1e9)))
        meta.deletionGracePeriodSeconds = grace
        if isinstance(obj, o.Namespace):
            obj.status.phase = "Terminating"
        if has_generation(obj):
            meta.generation += 1
        return True

    def _grace(self, obj: Object) -> int:
        if not isinstance(obj, o.Pod):
            return 0
        if self.grace is not None:
            return self.grace
        spec = obj.spec
        named = spec.HasField("terminationGracePeriodSeconds")
        return spec.terminationGracePeriodSeconds if named else DEFAULT_GRACE_SECONDS


def has_generation(obj: Object) -> bool:
    """As Kubernetes counts: the beginning of the end is a new generation of what has a spec."""
    return not isinstance(obj, Plain)


def may_go(obj: Object) -> bool:
    """Whether a deleted object whose last finalizer was taken away can be removed right now. A pod on a node goes when
    its agent has reported its end: the grace is 0 and the phase final then."""
    meta = obj.metadata
    if not meta.HasField("deletionTimestamp") or meta.finalizers or isinstance(obj, o.Namespace):
        return False
    if not isinstance(obj, o.Pod) or not obj.spec.nodeName:
        return True
    return meta.deletionGracePeriodSeconds == 0 and obj.status.phase in FINAL_PHASES
