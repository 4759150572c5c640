"""What Kubernetes' API would refuse, for the fields that are honoured. Objects come with their defaults filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shoal.proto import known, names, podsecurity
from shoal.proto.defaults import apply_defaults
from shoal.proto.errors import MAX_PROBLEMS, FieldError, join, keyed
from shoal.proto.rules import scheduling, storage
from shoal.proto.rules.base import Report, say
from shoal.proto.rules.labels import label_selector, labels
from shoal.proto.rules.pod import pod_spec, pod_spec_update
from shoal.proto.selector import from_message
from shoal.proto.v1 import objects_pb2 as o

MAX_DATA_BYTES = 1024 * 1024  # ConfigMap and Secret
MAX_ANNOTATION_BYTES = 256 * 1024
KNOWN_FINALIZERS = frozenset({"foregroundDeletion", "orphan", "kubernetes"})
LAST_APPLIED = "shoal.dev/last-applied"


def validate(obj: Any, *, sound_spec: bool = False) -> list[FieldError]:
    """All that is wrong with an object that is to be created; `sound_spec`: nothing is with its spec, as is known."""
    errors: list[FieldError] = []
    report = _reporter(errors)
    expected = known.API_VERSIONS.get(obj.kind)
    if expected is None:
        report("kind", f'"{obj.kind}" is not a known kind: use one of {", ".join(known.API_VERSIONS)}')
        return errors
    if obj.apiVersion != expected:
        report("apiVersion", f'"{obj.apiVersion}" is not the version of {obj.kind}: write {expected}')
    _metadata(obj.metadata, obj.kind, report)
    if not sound_spec:
        _BY_KIND[obj.kind](obj, report)
    return errors


def validate_update(old: Any, new: Any) -> list[FieldError]:
    """All that is wrong with `new` as the next state of `old`."""
    errors = validate(new)
    report = _reporter(errors)
    for name in ("name", "namespace", "uid"):
        before, after = getattr(old.metadata, name), getattr(new.metadata, name)
        if before != after:
            report(f"metadata.{name}", f'cannot be changed (from "{before}" to "{after}"): create another object')
    if isinstance(new, o.Pod):
        pod_spec_update(_complete(old).spec, new.spec, report)
    elif isinstance(new, o.PersistentVolume):
        storage.volume_update(old, new, report)
    elif isinstance(new, o.PersistentVolumeClaim):
        storage.claim_update(old, new, report)
    elif isinstance(new, o.StorageClass):
        storage.storage_class_update(old, new, report)
    elif isinstance(new, o.PriorityClass):
        scheduling.priority_class_update(old, new, report)
    elif isinstance(new, o.Deployment | o.ReplicaSet):
        if old.spec.selector != new.spec.selector:
            report(
                "spec.selector", "cannot be changed: delete the object (--cascade=orphan keeps its pods), create anew"
            )
    elif isinstance(new, o.ConfigMap | o.Secret):
        _data_update(old, new, report)
    elif isinstance(new, o.Node) and old.spec.podCIDR not in ("", new.spec.podCIDR):
        report("spec.podCIDR", f"cannot be changed: it is {old.spec.podCIDR} for as long as the node is here")
    return errors


def _complete(old: o.Pod) -> o.Pod:
    """With the defaults of this version: one that an earlier version stored has not changed for lack of them."""
    complete = o.Pod()
    complete.CopyFrom(old)
    apply_defaults(complete)
    return complete


def _reporter(errors: list[FieldError]) -> Report:
    def report(path: str, message: str) -> None:
        if len(errors) < MAX_PROBLEMS:
            errors.append(FieldError(path, message))

    return report


# ---- metadata ----
def _metadata(metadata: o.ObjectMeta, kind: str, report: Report) -> None:
    check = names.not_dns_label if kind == "Namespace" else names.not_dns_subdomain
    if metadata.name:
        say(report, "metadata.name", check(metadata.name))
    elif metadata.generateName:
        say(report, "metadata.generateName", check(metadata.generateName.rstrip("-.") + "x"))
    else:
        report("metadata.name", "is missing: give the object a name")
    if kind in known.CLUSTER_SCOPED:
        if metadata.namespace:
            report("metadata.namespace", f"a {kind} belongs to no namespace: remove it")
    elif not metadata.namespace:
        report("metadata.namespace", "is missing: name a namespace, such as default")
    else:
        say(report, "metadata.namespace", names.not_dns_label(metadata.namespace))
    labels(metadata.labels, "metadata.labels", report)
    _annotations(metadata.annotations, "metadata.annotations", report)
    _owners(metadata, report)
    for index, finalizer in enumerate(metadata.finalizers):
        if finalizer not in KNOWN_FINALIZERS:
            say(report, f"metadata.finalizers[{index}]", names.not_finalizer(finalizer))


def _annotations(values: Mapping[str, str], path: str, report: Report) -> None:
    for key in values:
        say(report, keyed(path, key), names.not_label_key(key.lower()))
    # The manifest as applied is kept by the system; it must not use up the room of the owner's own annotations.
    size = sum(len(key) + len(value.encode()) for key, value in values.items() if key != LAST_APPLIED)
    if size > MAX_ANNOTATION_BYTES:
        report(path, f"hold {size} bytes together: at most {MAX_ANNOTATION_BYTES} are kept; use a ConfigMap")


def _owners(metadata: o.ObjectMeta, report: Report) -> None:
    controllers = 0
    for index, owner in enumerate(metadata.ownerReferences):
        path = f"metadata.ownerReferences[{index}]"
        for name in ("apiVersion", "kind", "name", "uid"):
            if not getattr(owner, name):
                report(f"{path}.{name}", "is missing: an owner is named by apiVersion, kind, name and uid")
        controllers += owner.controller
        if owner.controller and controllers > 1:
            report(f"{path}.controller", "an object has at most one controller: set it on one owner only")


# ---- kinds ----
def _namespace(obj: o.Namespace, report: Report) -> None:
    if podsecurity.LABEL in obj.metadata.labels:
        wrong = names.not_one_of(obj.metadata.labels[podsecurity.LABEL], podsecurity.LEVELS)
        say(report, keyed("metadata.labels", podsecurity.LABEL), wrong)
    for index, finalizer in enumerate(obj.spec.finalizers):
        if finalizer not in KNOWN_FINALIZERS:
            say(report, f"spec.finalizers[{index}]", names.not_finalizer(finalizer))


def _node(obj: o.Node, report: Report) -> None:
    seen: set[tuple[str, str]] = set()
    for index, taint in enumerate(obj.spec.taints):
        path = f"spec.taints[{index}]"
        if not taint.key:
            report(f"{path}.key", "is missing: name the taint")
        else:
            say(report, f"{path}.key", names.not_label_key(taint.key))
        say(report, f"{path}.value", names.not_label_value(taint.value))
        say(report, f"{path}.effect", names.not_one_of(taint.effect, names.TAINT_EFFECTS))
        if (taint.key, taint.effect) in seen:
            report(path, f'the taint "{taint.key}" with effect "{taint.effect}" is given twice: keep one')
        seen.add((taint.key, taint.effect))
    if obj.spec.podCIDR:
        say(report, "spec.podCIDR", names.not_cidr(obj.spec.podCIDR))


def _pod(obj: o.Pod, report: Report) -> None:
    pod_spec(obj.spec, "spec", report)


def _workload(obj: o.Deployment | o.ReplicaSet, report: Report) -> None:
    spec = obj.spec
    if spec.replicas < 0:
        report("spec.replicas", f"must not be negative, but it is {spec.replicas}")
    selector_ok = _selector(spec, report)
    template = spec.template
    labels(template.metadata.labels, "spec.template.metadata.labels", report)
    _annotations(template.metadata.annotations, "spec.template.metadata.annotations", report)
    if selector_ok and not from_message(spec.selector).matches(template.metadata.labels):
        report("spec.template.metadata.labels", "do not match spec.selector: give the pods the labels it asks for")
    if not template.HasField("spec"):
        report("spec.template.spec", "is missing: describe the pods")
        return
    pod_spec(template.spec, "spec.template.spec", report)
    if template.spec.restartPolicy in ("OnFailure", "Never"):
        advice = f'must be "Always" for pods of a {obj.kind}: remove it, or use a Pod'
        report("spec.template.spec.restartPolicy", advice)


def _selector(spec: o.DeploymentSpec | o.ReplicaSetSpec, report: Report) -> bool:
    """Whether the selector can be used."""
    selector = spec.selector
    if not selector.matchLabels and not selector.matchExpressions:
        report("spec.selector", "is missing: give matchLabels that are among the template's labels")
        return False
    return label_selector(selector, "spec.selector", report)


def _config_map(obj: o.ConfigMap, report: Report) -> None:
    size = 0
    for field in ("data", "binaryData"):
        values = getattr(obj, field)
        for key in sorted(values):
            say(report, keyed(field, key), names.not_data_key(key))
            size += len(key) + len(values[key] if field == "binaryData" else values[key].encode())
    for key in sorted(obj.data.keys() & obj.binaryData.keys()):
        report(keyed("binaryData", key), "is under data too: keep one of them")
    _size(size, obj.kind, report)


def _secret(obj: o.Secret, report: Report) -> None:
    for key in sorted(obj.data):
        say(report, keyed("data", key), names.not_data_key(key))
    _size(sum(len(key) + len(value) for key, value in obj.data.items()), obj.kind, report)
    needed = _SECRET_KEYS.get(obj.type, ())
    for key in needed:
        if key not in obj.data:
            report(keyed("data", key), f"is missing: a Secret of type {obj.type} has {' and '.join(needed)}")
    if obj.type == "kubernetes.io/basic-auth" and not obj.data.keys() & {"username", "password"}:
        report("data", "needs username or password for a Secret of type kubernetes.io/basic-auth")


_SECRET_KEYS: Mapping[str, tuple[str, ...]] = {
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
}


def _size(size: int, kind: str, report: Report) -> None:
    if size > MAX_DATA_BYTES:
        report("data", f"holds {size} bytes: a {kind} holds at most {MAX_DATA_BYTES}; split it")


def _data_update(old: Any, new: Any, report: Report) -> None:
    if isinstance(new, o.Secret) and old.type != new.type:
        report("type", f'cannot be changed (from "{old.type}" to "{new.type}"): delete the Secret and create it anew')
    if not old.immutable:
        return
    if not new.immutable:
        report("immutable", f"cannot be taken back: delete the {new.kind} and create it anew")
    for field in ("data", "binaryData") if isinstance(new, o.ConfigMap) else ("data",):
        if dict(getattr(old, field)) != dict(getattr(new, field)):
            report(field, f"this {new.kind} is immutable: delete it and create it anew")


def _event(obj: o.Event, report: Report) -> None:
    for name in ("kind", "name"):
        if not getattr(obj.involvedObject, name):
            report(join("involvedObject", name), "is missing: say which object the event is about")
    if obj.type not in ("", "Normal", "Warning"):
        say(report, "type", names.not_one_of(obj.type, ("Normal", "Warning")))


def _claim(obj: o.PersistentVolumeClaim, report: Report) -> None:
    storage.claim(obj, report)
    if obj.spec.HasField("selector"):
        label_selector(obj.spec.selector, "spec.selector", report)


def _metadata_only(obj: Any, report: Report) -> None:
    """Nodes write these; people may only delete them."""


_BY_KIND: Mapping[str, Callable[[Any, Report], None]] = {
    "Namespace": _namespace,
    "Node": _node,
    "Pod": _pod,
    "ReplicaSet": _workload,
    "Deployment": _workload,
    "ConfigMap": _config_map,
    "Secret": _secret,
    "Event": _event,
    "PersistentVolume": storage.volume,
    "PersistentVolumeClaim": _claim,
    "StorageClass": storage.storage_class,
    "PriorityClass": scheduling.priority_class,
    "PodDisruptionBudget": scheduling.disruption_budget,
    "PodGroup": scheduling.pod_group,
    "Death": _metadata_only,
}
