"""What admission looks up for the scheduling of pods: priority classes, profiles, and cordoned nodes (pure)."""

from __future__ import annotations

from collections.abc import Collection

from shoal.master.controllers import priorities
from shoal.master.model import Object, View
from shoal.proto.errors import FieldError, nearest
from shoal.proto.rules.resources import GPU_DEVICES
from shoal.proto.v1 import objects_pb2 as o

UNSCHEDULABLE = "node.kubernetes.io/unschedulable"  # the taint of a cordoned node


def problems(view: View, obj: Object, profiles: Collection[str], old: Object | None = None) -> list[FieldError]:
    """What an object names that is not there, or is there already. A new Pod is given its priority, in place. Of a
    template that stays as it was nothing is said: its class may have gone, and it can still be scaled."""
    if isinstance(obj, o.PriorityClass):
        return _one_default(view, obj)
    if isinstance(obj, o.Pod):
        if old is not None:
            return []
        return [*priorities.give_priority(view, obj.spec), *_profile(obj.spec, "spec", profiles)]
    if not isinstance(obj, o.Deployment | o.ReplicaSet):
        return []
    spec, path = obj.spec.template.spec, "spec.template.spec"
    if isinstance(old, o.Deployment | o.ReplicaSet) and old.spec.template.spec == spec:
        return []
    # A copy is asked: what the class says is written into the pods, not into their template
    asked = o.PodSpec()
    asked.CopyFrom(spec)
    return [*priorities.give_priority(view, asked, path), *_profile(spec, path, profiles)]


def _profile(spec: o.PodSpec, path: str, profiles: Collection[str]) -> list[FieldError]:
    name = spec.schedulerName
    if not name or name in profiles:
        return []
    meant = nearest(name, profiles)
    there = ", ".join(sorted(profiles))
    advice = f'did you mean "{meant}"? There are {there}' if meant else f"there are {there}"
    return [FieldError(f"{path}.schedulerName", f'there is no scheduling profile "{name}": {advice}')]


def _one_default(view: View, obj: o.PriorityClass) -> list[FieldError]:
    if not obj.globalDefault:
        return []
    other = priorities.default_class(view, other_than=obj.metadata.name)
    if other is None:
        return []
    return [FieldError("globalDefault", f'the class "{other.metadata.name}" is the default already: change that first')]


def keep_priority(old: o.Pod, new: o.Pod) -> None:
    """What the server wrote at the pod's creation stays when the manifest does not say it."""
    for name in ("priority", "preemptionPolicy"):
        if old.spec.HasField(name) and not new.spec.HasField(name):
            setattr(new.spec, name, getattr(old.spec, name))


def keep_devices(old: o.Pod | None, new: o.Pod) -> None:
    """Which devices a pod has only the scheduler says, when it binds it."""
    new.metadata.annotations.pop(GPU_DEVICES, None)
    if old is not None and GPU_DEVICES in old.metadata.annotations:
        new.metadata.annotations[GPU_DEVICES] = old.metadata.annotations[GPU_DEVICES]


def cordon(node: o.Node, old: o.Node | None, now: float) -> None:
    """Keeps the taint in step with spec.unschedulable."""
    taints = node.spec.taints
    if node.spec.unschedulable:
        if not any(taint.key == UNSCHEDULABLE for taint in taints):
            before = [taint for taint in old.spec.taints if taint.key == UNSCHEDULABLE] if old is not None else []
            new = o.Taint(key=UNSCHEDULABLE, effect="NoSchedule", timeAdded=o.Time(seconds=int(now)))
            taints.append(before[0] if before else new)
    elif old is not None and old.spec.unschedulable:
        kept = [taint for taint in taints if taint.key != UNSCHEDULABLE]
        del taints[:]
        taints.extend(kept)
