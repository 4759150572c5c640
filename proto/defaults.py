"""Kubernetes' defaults for the fields that are honoured; filled in before validation, and stored."""

from __future__ import annotations

from typing import Any

from shoal.proto import known
from shoal.proto.v1 import objects_pb2 as o

NAMESPACE = "default"
GRACE_PERIOD_SECONDS = 30


def apply_defaults(obj: Any, namespace: str = NAMESPACE) -> None:
    """Fills in, in place, what the object leaves unset; `namespace` is for objects that name none. Idempotent."""
    if obj.kind not in known.CLUSTER_SCOPED and not obj.metadata.namespace:
        obj.metadata.namespace = namespace
    if isinstance(obj, o.Pod):
        _pod_spec(obj.spec)
        for container in obj.spec.containers:
            _requests(container.resources)
    elif isinstance(obj, o.Deployment | o.ReplicaSet):
        _workload(obj)
    elif isinstance(obj, o.Secret):
        _secret(obj)
    elif isinstance(obj, o.Namespace):
        obj.metadata.labels["kubernetes.io/metadata.name"] = obj.metadata.name
    elif isinstance(obj, o.Event) and not obj.involvedObject.namespace and obj.involvedObject.kind != "Node":
        obj.involvedObject.namespace = obj.metadata.namespace


def _workload(obj: o.Deployment | o.ReplicaSet) -> None:
    spec = obj.spec
    if not spec.HasField("replicas"):
        spec.replicas = 1
    _pod_spec(spec.template.spec)
    if isinstance(obj, o.ReplicaSet) and spec.template.metadata.labels:
        if not spec.HasField("selector"):  # extensions' old habit, which many files still rely on
            spec.selector.matchLabels.update(spec.template.metadata.labels)
        if not obj.metadata.labels:
            obj.metadata.labels.update(spec.template.metadata.labels)


def _pod_spec(spec: o.PodSpec) -> None:
    if not spec.HasField("restartPolicy"):
        spec.restartPolicy = "Always"
    if not spec.HasField("terminationGracePeriodSeconds"):
        spec.terminationGracePeriodSeconds = GRACE_PERIOD_SECONDS
    for container in spec.containers:
        for port in container.ports:
            if not port.HasField("protocol"):
                port.protocol = "TCP"
    for toleration in spec.tolerations:
        if not toleration.HasField("operator"):
            toleration.operator = "Equal"


def _requests(resources: o.ResourceRequirements) -> None:
    """A pod asks for what it is limited to. (Not so in templates: a later change of the limit must move both.)"""
    for name, limit in resources.limits.items():
        if limit.text and name not in resources.requests:  # a limit that could not be read has no text
            resources.requests[name].CopyFrom(limit)


def _secret(secret: o.Secret) -> None:
    if not secret.HasField("type"):
        secret.type = "Opaque"
    fold_string_data(secret)


def fold_string_data(secret: o.Secret) -> None:
    """Moves stringData, which is write-only and wins, into data."""
    for key, text in secret.stringData.items():
        secret.data[key] = text.encode()
    secret.ClearField("stringData")
