"""What a pod refers to by name: the objects that must reach its node with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shoal.proto.v1 import objects_pb2 as o

CONFIG_MAP, SECRET, CLAIM = "ConfigMap", "Secret", "PersistentVolumeClaim"


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    kind: str
    namespace: str
    name: str


def references(pod: o.Pod) -> frozenset[Reference]:
    """The ConfigMaps, Secrets and claims that the pod's spec names, optional ones too."""
    namespace = pod.metadata.namespace
    return frozenset(Reference(kind, namespace, name) for kind, name in _named(pod.spec) if name)


def _named(spec: o.PodSpec) -> Iterator[tuple[str, str]]:
    for secret in spec.imagePullSecrets:
        yield SECRET, secret.name
    for container in (*spec.initContainers, *spec.containers):
        for source in container.envFrom:
            yield CONFIG_MAP, source.configMapRef.name
            yield SECRET, source.secretRef.name
        for variable in container.env:
            yield CONFIG_MAP, variable.valueFrom.configMapKeyRef.name
            yield SECRET, variable.valueFrom.secretKeyRef.name
    for volume in spec.volumes:
        yield CONFIG_MAP, volume.configMap.name
        yield SECRET, volume.secret.secretName
        yield CLAIM, volume.persistentVolumeClaim.claimName
        for projection in volume.projected.sources:
            yield CONFIG_MAP, projection.configMap.name
            yield SECRET, projection.secret.name
