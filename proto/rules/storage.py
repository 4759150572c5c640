"""The rules for persistent volumes, claims and storage classes."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.proto import names
from shoal.proto.errors import shorten
from shoal.proto.rules.base import Report, at_most, exactly_one, not_absolute, say
from shoal.proto.rules.placement import node_selector
from shoal.proto.rules.resources import size
from shoal.proto.rules.volumes import host_path
from shoal.proto.v1 import objects_pb2 as o

LOCAL_PROVISIONER = "shoal.dev/local"
NO_PROVISIONER = "kubernetes.io/no-provisioner"
PROVISIONERS = (LOCAL_PROVISIONER, NO_PROVISIONER)
ACCESS_MODES = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")
RECLAIM_POLICIES = ("Retain", "Delete")
BINDING_MODES = ("WaitForFirstConsumer", "Immediate")
MAX_MODES = 10


def volume(obj: o.PersistentVolume, report: Report) -> None:
    """A PersistentVolume."""
    spec = obj.spec
    _storage(spec.capacity, "spec.capacity", report)
    _access_modes(spec.accessModes, report)
    _mode_and_class(spec, report)
    say(report, "spec.persistentVolumeReclaimPolicy", _not_reclaim(spec.persistentVolumeReclaimPolicy))
    kind = exactly_one(spec, ("local", "hostPath"), "spec", report)
    if kind == "local":
        if spec.local.path:  # else a folder of Shoal's own on that node
            say(report, "spec.local.path", not_absolute(spec.local.path))
        if not spec.nodeAffinity.HasField("required"):
            report("spec.nodeAffinity.required", "is missing: a local volume must say on which node it is")
    elif kind == "hostPath":
        host_path(spec.hostPath, "spec.hostPath", report)
    if spec.nodeAffinity.HasField("required"):
        node_selector(spec.nodeAffinity.required, "spec.nodeAffinity.required", report)
    if spec.HasField("claimRef"):
        for name, check in (("name", names.not_dns_subdomain), ("namespace", names.not_dns_label)):
            text = getattr(spec.claimRef, name)
            say(report, f"spec.claimRef.{name}", check(text) if text else f"is missing: give the claim's {name}")


def claim(obj: o.PersistentVolumeClaim, report: Report) -> None:
    """A PersistentVolumeClaim, save its selector, which is checked like every other."""
    spec = obj.spec
    _access_modes(spec.accessModes, report)
    _mode_and_class(spec, report)
    _storage(spec.resources.requests, "spec.resources.requests", report)
    for name in sorted(spec.resources.limits):
        report(f"spec.resources.limits.{name}", "a local volume has no limit but its disk: remove it")
    if spec.volumeName:
        say(report, "spec.volumeName", names.not_dns_subdomain(spec.volumeName))


def storage_class(obj: o.StorageClass, report: Report) -> None:
    """A StorageClass."""
    if obj.provisioner not in PROVISIONERS:
        given = f"{shorten(obj.provisioner)} is not here" if obj.provisioner else "is missing"
        have = f"{LOCAL_PROVISIONER}, which makes folders on nodes, and {NO_PROVISIONER}, for volumes made by hand"
        report("provisioner", f"{given}: there are {have}")
    say(report, "reclaimPolicy", _not_reclaim(obj.reclaimPolicy))
    say(report, "volumeBindingMode", names.not_one_of(obj.volumeBindingMode, BINDING_MODES))
    if obj.provisioner == LOCAL_PROVISIONER and obj.volumeBindingMode == "Immediate":
        report("volumeBindingMode", 'must be "WaitForFirstConsumer": a folder is made where the pod that uses it goes')
    if obj.allowVolumeExpansion:
        report("allowVolumeExpansion", "is not supported: a local volume may fill its disk anyway; remove it")


def _storage(amounts: object, path: str, report: Report) -> None:
    given: dict[str, o.Quantity] = dict(amounts)  # type: ignore[call-overload]
    if "storage" not in given:
        report(f"{path}.storage", "is missing: say how much, such as 1Gi")
    for name in sorted(given):
        if name != "storage":
            report(f"{path}.{name}", "volumes have storage only: remove it")
        else:
            size(given[name], f"{path}.storage", report)


def _access_modes(modes: Sequence[str], report: Report) -> None:
    if not modes:
        report("spec.accessModes", f"are missing: use {' or '.join(ACCESS_MODES[:1])}")
    at_most(modes, MAX_MODES, "spec.accessModes", report)
    for index, text in enumerate(modes):
        say(report, f"spec.accessModes[{index}]", names.not_one_of(text, ACCESS_MODES))
    if "ReadWriteOncePod" in modes and len(modes) > 1:
        report("spec.accessModes", "ReadWriteOncePod excludes every other mode: keep it alone or remove it")


def _mode_and_class(spec: o.PersistentVolumeSpec | o.PersistentVolumeClaimSpec, report: Report) -> None:
    if spec.volumeMode == "Block":
        report("spec.volumeMode", "raw block devices are not supported yet: use Filesystem")
    else:
        say(report, "spec.volumeMode", names.not_one_of(spec.volumeMode, ("Filesystem",)))
    if spec.storageClassName:
        say(report, "spec.storageClassName", names.not_dns_subdomain(spec.storageClassName))


def _not_reclaim(policy: str) -> str | None:
    if policy == "Recycle":
        return '"Recycle" is not supported, and deprecated by Kubernetes: use Retain or Delete'
    return names.not_one_of(policy, RECLAIM_POLICIES)


# ---- changes ----
def volume_update(old: o.PersistentVolume, new: o.PersistentVolume, report: Report) -> None:
    for field in ("local", "hostPath", "volumeMode"):
        if getattr(old.spec, field) != getattr(new.spec, field):
            report(f"spec.{field}", "cannot be changed: what is on the volume stays where it is; make another one")
    if old.spec.HasField("nodeAffinity") and old.spec.nodeAffinity != new.spec.nodeAffinity:
        report("spec.nodeAffinity", "cannot be changed: the volume does not move; make another one")


def claim_update(old: o.PersistentVolumeClaim, new: o.PersistentVolumeClaim, report: Report) -> None:
    """volumeName and storageClassName may be filled in once."""
    for field in ("accessModes", "selector", "volumeMode"):
        if getattr(old.spec, field) != getattr(new.spec, field):
            report(f"spec.{field}", "cannot be changed: make another claim")
    if old.spec.resources != new.spec.resources:
        report("spec.resources", "cannot be changed: a local volume has its disk's size; make another claim")
    if old.spec.volumeName not in ("", new.spec.volumeName):
        report("spec.volumeName", f'cannot be changed: the claim is bound to "{old.spec.volumeName}"')
    if old.spec.HasField("storageClassName") and old.spec.storageClassName != new.spec.storageClassName:
        report("spec.storageClassName", f'cannot be changed from "{old.spec.storageClassName}": make another claim')


def storage_class_update(old: o.StorageClass, new: o.StorageClass, report: Report) -> None:
    for field in ("provisioner", "reclaimPolicy", "volumeBindingMode"):
        if getattr(old, field) != getattr(new, field):
            report(field, "cannot be changed: delete the class and create it anew (its volumes stay as they are)")
