"""The rows of volumes, claims and storage classes, with kubectl's columns."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.deploy.cli.printers.text import created_age
from shoal.proto.references import homes
from shoal.proto.v1 import objects_pb2 as o

SHORT_MODES = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
UNSET = "<unset>"


def modes(names: Iterable[str]) -> str:
    """RWO,ROX"""
    return ",".join(SHORT_MODES.get(name, name) for name in names)


def phase(obj: o.PersistentVolume | o.PersistentVolumeClaim) -> str:
    """Its phase, or Terminating."""
    return "Terminating" if obj.metadata.HasField("deletionTimestamp") else obj.status.phase or "Pending"


def node_of(volume: o.PersistentVolume) -> str:
    """The nodes that its affinity names; empty when it does not bind the volume to any."""
    return ",".join(sorted(homes(volume)))


def bound_to(volume: o.PersistentVolume) -> str:
    """namespace/name of its claim."""
    claim = volume.spec.claimRef
    return f"{claim.namespace}/{claim.name}" if claim.name else ""


def is_default(obj: o.StorageClass) -> bool:
    return obj.metadata.annotations.get(DEFAULT_CLASS) == "true"


def volume_row(volume: o.PersistentVolume, now: float) -> list[str]:
    spec = volume.spec
    return [
        volume.metadata.name,
        spec.capacity["storage"].text if "storage" in spec.capacity else "",
        modes(spec.accessModes),
        spec.persistentVolumeReclaimPolicy or "Retain",
        phase(volume),
        bound_to(volume),
        spec.storageClassName,
        volume.status.reason,
        created_age(volume, now),
        node_of(volume) or "<any>",
        spec.volumeMode or "Filesystem",
    ]


def claim_row(claim: o.PersistentVolumeClaim, now: float) -> list[str]:
    status = claim.status
    return [
        claim.metadata.name,
        phase(claim),
        claim.spec.volumeName,
        status.capacity["storage"].text if "storage" in status.capacity else "",
        modes(status.accessModes),
        claim.spec.storageClassName if claim.spec.HasField("storageClassName") else UNSET,
        created_age(claim, now),
        claim.spec.volumeMode or "Filesystem",
    ]


def class_row(obj: o.StorageClass, now: float) -> list[str]:
    return [
        obj.metadata.name + (" (default)" if is_default(obj) else ""),
        obj.provisioner,
        obj.reclaimPolicy or "Delete",
        obj.volumeBindingMode or "Immediate",
        str(obj.allowVolumeExpansion).lower(),
        created_age(obj, now),
    ]
