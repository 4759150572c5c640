"""What a pod refers to by name: the objects that must reach its node with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shoal.proto.v1 import objects_pb2 as o

CONFIG_MAP, SECRET, CLAIM = "ConfigMap", "Secret", "PersistentVolumeClaim"
VOLUME = "PersistentVolume"
LOCAL_FINALIZER = "shoal.dev/local-volume"  # of a volume: its node has still to remove the folder
VOLUME_PROTECTION = "kubernetes.io/pv-protection"  # of a volume: a claim has it
HOSTNAME = "kubernetes.io/hostname"  # the label that every node has, with its name


class Reference(NamedTuple):
    kind: str
    namespace: str
    name: str


def references(pod: o.Pod) -> frozenset[Reference]:
    """The ConfigMaps, Secrets and claims that the pod's spec names, optional ones too."""
    namespace = pod.metadata.namespace
    return frozenset(Reference(kind, namespace, name) for kind, name in _named(pod.spec) if name)


def claims_of(pod: o.Pod) -> tuple[str, ...]:
    """The claims that the pod uses, by name, each once, in the order of its volumes."""
    if not pod.spec.volumes:
        return ()
    named = (volume.persistentVolumeClaim.claimName for volume in pod.spec.volumes)
    return tuple(dict.fromkeys(name for name in named if name))


def homes(volume: o.PersistentVolume) -> frozenset[str]:
    """The nodes that the volume's affinity names."""
    return frozenset(
        value
        for term in volume.spec.nodeAffinity.required.nodeSelectorTerms
        for rule in term.matchExpressions
        if rule.key == HOSTNAME and rule.operator == "In"
        for value in rule.values
    )


def _named(spec: o.PodSpec) -> Iterator[tuple[str, str]]:
    for secret in spec.imagePullSecrets:
        yield SECRET, secret.name
    for container in (*spec.initContainers, *spec.containers):
        for source in container.envFrom:
            yield CONFIG_MAP, source.configMapRef.name
            yield SECRET, source.secretRef.name
        for variable in container.env:
            if variable.HasField("valueFrom"):
                yield CONFIG_MAP, variable.valueFrom.configMapKeyRef.name
                yield SECRET, variable.valueFrom.secretKeyRef.name
    for volume in spec.volumes:
        yield CONFIG_MAP, volume.configMap.name
        yield SECRET, volume.secret.secretName
        yield CLAIM, volume.persistentVolumeClaim.claimName
        for projection in volume.projected.sources:
            yield CONFIG_MAP, projection.configMap.name
            yield SECRET, projection.secret.name
