"""Kubernetes' defaults for the fields that are honoured; filled in before validation, and stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.proto import known
from shoal.proto.rules.base import chosen
from shoal.proto.rules.handlers import HOOKS, PROBES
from shoal.proto.rules.storage import LOCAL_PROVISIONER
from shoal.proto.v1 import objects_pb2 as o

NAMESPACE = "default"
GRACE_PERIOD_SECONDS = 30
DEFAULT_MODE = 0o644
PROBE_NUMBERS: Mapping[str, int] = {
    "timeoutSeconds": 1,
    "periodSeconds": 10,
    "successThreshold": 1,
    "failureThreshold": 3,
}


def apply_defaults(obj: Any, namespace: str = NAMESPACE) -> None:
    """Fills in, in place, what the object leaves unset; `namespace` is for objects that name none. Idempotent."""
    if obj.kind not in known.CLUSTER_SCOPED and not obj.metadata.namespace:
        obj.metadata.namespace = namespace
    if isinstance(obj, o.Pod):
        _pod_spec(obj.spec)
        _host_ports(obj.spec)
        for container in (*obj.spec.initContainers, *obj.spec.containers):
            _requests(container.resources)
    elif isinstance(obj, o.Deployment | o.ReplicaSet):
        _workload(obj)
    elif isinstance(obj, o.Secret):
        _secret(obj)
    elif isinstance(obj, o.PersistentVolume):
        _set(obj.spec, persistentVolumeReclaimPolicy="Retain", volumeMode="Filesystem")
        if obj.spec.HasField("hostPath"):
            _set(obj.spec.hostPath, type="")
    elif isinstance(obj, o.PersistentVolumeClaim):
        _set(obj.spec, volumeMode="Filesystem")
    elif isinstance(obj, o.StorageClass):
        # Kubernetes' default is Immediate; but a local volume is made where its pod goes
        local = obj.provisioner == LOCAL_PROVISIONER
        mode = "WaitForFirstConsumer" if local else "Immediate"
        _set(obj, reclaimPolicy="Delete", volumeBindingMode=mode)
    elif isinstance(obj, o.PriorityClass):
        _set(obj, preemptionPolicy="PreemptLowerPriority")
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


def _set(message: Any, **values: object) -> None:
    """Sets those of the fields that are not set."""
    for name, value in values.items():
        if not message.HasField(name):
            setattr(message, name, value)


def _pod_spec(spec: o.PodSpec) -> None:
    _set(spec, restartPolicy="Always", terminationGracePeriodSeconds=GRACE_PERIOD_SECONDS)
    spec.securityContext.SetInParent()
    for toleration in spec.tolerations:
        _set(toleration, operator="Equal")
    for volume in spec.volumes:
        _volume(volume)
    for container in (*spec.initContainers, *spec.containers):
        _container(container)


def _host_ports(spec: o.PodSpec) -> None:
    """On the node's network every port is one of the node's. (Not so in templates, as in Kubernetes.)"""
    sidecars = (one for one in spec.initContainers if one.restartPolicy == "Always")
    for container in (*sidecars, *spec.containers) if spec.hostNetwork else ():
        for port in container.ports:
            port.hostPort = port.hostPort or port.containerPort


def _container(container: o.Container) -> None:
    # A moving tag is asked for again with each start
    policy = "Always" if tag(container.image) == "latest" else "IfNotPresent"
    _set(container, imagePullPolicy=policy)
    _set(container, terminationMessagePath="/dev/termination-log", terminationMessagePolicy="File")
    for port in container.ports:
        _set(port, protocol="TCP")
    for variable in container.env:
        if variable.HasField("valueFrom"):
            _told(variable.valueFrom)
    for name in chosen(container, PROBES):
        _probe(getattr(container, name))
    for name in chosen(container.lifecycle, HOOKS) if container.HasField("lifecycle") else ():
        hook = getattr(container.lifecycle, name)
        if hook.HasField("httpGet"):
            _http_get(hook.httpGet)


def tag(image: str) -> str:
    """The tag of an image's name; "latest" when it has neither tag nor digest."""
    name, at, _ = image.partition("@")
    _, colon, found = name.rpartition("/")[2].partition(":")
    return found if colon else "" if at else "latest"


def _probe(probe: o.Probe) -> None:
    for name, value in PROBE_NUMBERS.items():
        if not getattr(probe, name):  # 0 as well, as in Kubernetes
            setattr(probe, name, value)
    if probe.HasField("httpGet"):
        _http_get(probe.httpGet)
    if probe.HasField("grpc"):
        _set(probe.grpc, service="")


def _http_get(action: o.HTTPGetAction) -> None:
    action.path = action.path or "/"
    _set(action, scheme="HTTP")


def _told(source: o.EnvVarSource | o.DownwardAPIVolumeFile) -> None:
    """References to the pod's own fields and to amounts of its containers."""
    if source.HasField("fieldRef"):
        _set(source.fieldRef, apiVersion="v1")
    if source.HasField("resourceFieldRef") and not source.resourceFieldRef.divisor.text:
        source.resourceFieldRef.divisor.text = "1"


def _volume(volume: o.Volume) -> None:
    kinds = [field.name for field, _ in volume.ListFields() if field.name != "name"]
    if not kinds:
        volume.emptyDir.SetInParent()
    for kind in kinds:
        source = getattr(volume, kind)
        if kind in ("configMap", "secret", "downwardAPI", "projected"):
            _set(source, defaultMode=DEFAULT_MODE)
    if volume.HasField("hostPath"):
        _set(volume.hostPath, type="")
    for item in volume.downwardAPI.items:
        _told(item)
    for projection in volume.projected.sources:
        for item in projection.downwardAPI.items:
            _told(item)


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
