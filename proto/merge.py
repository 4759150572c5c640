"""The three-way merge of `apply`: what the last manifest set and the new one does not is removed; what neither
mentions keeps its current value (kubectl apply's strategic merge)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from shoal.proto.defaults import fold_string_data
from shoal.proto.v1 import objects_pb2 as o

M = TypeVar("M", bound=Message)
Identify: TypeAlias = Callable[[Any], Any]

# Lists whose items are merged, by the item's message type; every other list is replaced as a whole.
MERGED_LISTS: Mapping[str, Identify] = {
    "Container": lambda item: item.name,
    "ContainerPort": lambda item: (item.containerPort, item.protocol or "TCP"),
    "EnvVar": lambda item: item.name,
    "OwnerReference": lambda item: item.uid,
    "Volume": lambda item: item.name,
    "VolumeMount": lambda item: item.mountPath,
    "LocalObjectReference": lambda item: item.name,
    "HostAlias": lambda item: item.ip,
    "TopologySpreadConstraint": lambda item: (item.topologyKey, item.whenUnsatisfiable),
    "PodSchedulingGate": lambda item: item.name,
}
# Of these the new manifest names one field of several, and the others go, defaults too (retainKeys).
_ALTERNATIVES = frozenset({"Volume"})
_ATOMIC = frozenset({"Quantity", "Time", "IntOrString"})
_NOT_APPLIED = frozenset({"status"})  # one writer: the system


def merge(current: M, last_applied: M | None, new: M) -> M:
    """The object that results from applying `new` onto `current`; no argument is changed.

    All three are messages of the same kind, `last_applied` the manifest of the previous apply. Server-kept metadata
    (uid, resourceVersion, creationTimestamp, ...) and status stay as they are in `current`. Defaults are to be applied
    to the result: a list that is replaced as a whole loses those of its items."""
    last, wanted = type(new)(), type(new)()
    if last_applied is not None:
        last.CopyFrom(last_applied)
    wanted.CopyFrom(new)
    merged = type(current)()
    merged.CopyFrom(current)
    for message in (last, wanted, merged):
        if isinstance(message, o.Secret):  # it is stored in this form
            fold_string_data(message)
    _merge(merged, last, wanted, at_top=True)
    _keep_identity(merged, current)
    return merged


_SERVER_KEPT = ("uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")


def _keep_identity(merged: Any, current: Any) -> None:
    for name in (*_SERVER_KEPT, "deletionGracePeriodSeconds", "generateName"):
        if current.metadata.HasField(name) if _presence(current.metadata, name) else getattr(current.metadata, name):
            value = getattr(current.metadata, name)
            if isinstance(value, Message):
                getattr(merged.metadata, name).CopyFrom(value)
            else:
                setattr(merged.metadata, name, value)
        else:
            merged.metadata.ClearField(name)


def _presence(message: Any, name: str) -> bool:
    return bool(message.DESCRIPTOR.fields_by_name[name].has_presence)


def _merge(target: Any, last: Any, new: Any, *, at_top: bool = False) -> None:
    """Changes `target` (the current state) in place."""
    in_last, in_new = _set_fields(last), _set_fields(new)
    for field in _fields(target.DESCRIPTOR):
        name = field.name
        if at_top and name in _NOT_APPLIED:
            continue
        if field in in_new:
            _set(target, last, new, field)
        elif field in in_last:
            _unset(target, last, new, field)


def _set_fields(message: Message) -> set[FieldDescriptor]:
    return {field for field, _ in message.ListFields()}


@cache
def _fields(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    return tuple(descriptor.fields)


def _set(target: Any, last: Any, new: Any, field: FieldDescriptor) -> None:
    name = field.name
    if _is_map(field):
        _merge_map(getattr(target, name), getattr(last, name), getattr(new, name))
    elif field.is_repeated:
        _merge_list(target, last, new, field)
    elif field.message_type is None:
        setattr(target, name, getattr(new, name))
    elif field.message_type.name in _ATOMIC:
        getattr(target, name).CopyFrom(getattr(new, name))
    else:
        getattr(target, name).SetInParent()
        _merge(getattr(target, name), getattr(last, name), getattr(new, name))


def _unset(target: Any, last: Any, new: Any, field: FieldDescriptor) -> None:
    """The last manifest had the field and the new one has not."""
    name = field.name
    if _is_map(field):
        _merge_map(getattr(target, name), getattr(last, name), getattr(new, name))
    elif field.is_repeated and _identify(field) is not None:
        _merge_list(target, last, new, field)
    else:
        target.ClearField(name)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _merge_map(target: Any, last: Any, new: Any) -> None:
    for key in last:
        if key not in new and key in target:
            del target[key]
    for key in new:
        if isinstance(new[key], Message):
            target[key].CopyFrom(new[key])
        else:
            target[key] = new[key]


def _identify(field: FieldDescriptor) -> Identify | None:
    return MERGED_LISTS.get(field.message_type.name) if field.message_type is not None else None


def _merge_list(target: Any, last: Any, new: Any, field: FieldDescriptor) -> None:
    """Items of the new manifest in its order, then the current ones that neither manifest mentions."""
    have, had, wanted = (getattr(message, field.name) for message in (target, last, new))
    identify = _identify(field)
    by_id = {identify(item): item for item in have} if identify is not None else {}
    if identify is None or len(by_id) != len(have) or len({identify(item) for item in wanted}) != len(wanted):
        target.ClearField(field.name)
        getattr(target, field.name).extend(wanted)
        return
    last_by_id = {identify(item): item for item in had}
    result = [_merged_item(item, by_id.get(identify(item)), last_by_id.get(identify(item))) for item in wanted]
    mentioned = {identify(item) for item in wanted} | last_by_id.keys()
    kept = [_copy(item) for item in have if identify(item) not in mentioned]
    target.ClearField(field.name)
    getattr(target, field.name).extend([*result, *kept])


def _merged_item(new: Any, current: Any, last: Any) -> Any:
    merged = _copy(current if current is not None else new)
    if current is not None:
        _merge(merged, last if last is not None else type(new)(), new)
        if new.DESCRIPTOR.name in _ALTERNATIVES:
            for field in _set_fields(merged) - _set_fields(new):
                merged.ClearField(field.name)
    return merged


def _copy(message: M) -> M:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
