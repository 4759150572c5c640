"""The kinds and their message types, and copies of objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from shoal.proto import known
from shoal.proto.v1 import objects_pb2 as o

Object: TypeAlias = (
    o.Namespace
    | o.Node
    | o.Pod
    | o.ReplicaSet
    | o.Deployment
    | o.ConfigMap
    | o.Secret
    | o.Event
    | o.PersistentVolume
    | o.PersistentVolumeClaim
    | o.StorageClass
    | o.PriorityClass
    | o.PodDisruptionBudget
    | o.PodGroup
    | o.Death
)

CLASSES: Mapping[str, type[Object]] = {
    "Namespace": o.Namespace,
    "Node": o.Node,
    "Pod": o.Pod,
    "ReplicaSet": o.ReplicaSet,
    "Deployment": o.Deployment,
    "ConfigMap": o.ConfigMap,
    "Secret": o.Secret,
    "Event": o.Event,
    "PersistentVolume": o.PersistentVolume,
    "PersistentVolumeClaim": o.PersistentVolumeClaim,
    "StorageClass": o.StorageClass,
    "PriorityClass": o.PriorityClass,
    "PodDisruptionBudget": o.PodDisruptionBudget,
    "PodGroup": o.PodGroup,
    "Death": o.Death,
}
assert CLASSES.keys() == known.API_VERSIONS.keys()
# The kinds without spec and status.
Plain: TypeAlias = o.ConfigMap | o.Secret | o.Event | o.StorageClass | o.PriorityClass | o.Death
