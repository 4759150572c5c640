"""Claims and volumes: what suits what, for the scheduler and the storage controller alike (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shoal.proto import affinity
from shoal.proto.quantity import QuantityError, parse
from shoal.proto.references import HOSTNAME
from shoal.proto.selector import from_message
from shoal.proto.v1 import objects_pb2 as o

PROVISIONER = "shoal.dev/local"  # makes a volume on the node where the claim's first pod is placed
LOCAL_CLASS = "local"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
SELECTED_NODE = "volume.kubernetes.io/selected-node"  # on a claim: where its volume is to be, once and for all
CLAIM_PROTECTION = "kubernetes.io/pvc-protection"  # the finalizer that keeps what is in use
WAIT = "WaitForFirstConsumer"
ONCE, ONCE_POD = "ReadWriteOnce", "ReadWriteOncePod"
STORAGE = "storage"


@dataclass(frozen=True, slots=True)
class Place:
    """A node as volumes see it."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


def full_name(claim: o.PersistentVolumeClaim) -> str:
    """namespace/name"""
    return f"{claim.metadata.namespace}/{claim.metadata.name}"


def ours(volume: o.PersistentVolume) -> bool:
    """Whether its data lies in a folder that an agent chose, and removes when asked."""
    return volume.spec.HasField("local") and not volume.spec.local.path


def waits(storage_class: o.StorageClass | None) -> bool:
    """Whether its claims are bound only when a pod that uses them is placed. Shoal's own always are: a volume on a
    node that nobody has chosen would tie the pod to it."""
    if storage_class is None:
        return False
    return storage_class.volumeBindingMode == WAIT or storage_class.provisioner == PROVISIONER


def provisions(storage_class: o.StorageClass | None) -> bool:
    """Whether Shoal makes volumes of this class."""
    return storage_class is not None and storage_class.provisioner == PROVISIONER


def default_class(classes: Iterable[o.StorageClass]) -> o.StorageClass | None:
    """The class of claims that name none; the newest of several, as in Kubernetes."""
    found = [c for c in classes if c.metadata.annotations.get(DEFAULT_CLASS) == "true"]
    found.sort(key=lambda c: (c.metadata.creationTimestamp.seconds, c.metadata.name))
    return found[-1] if found else None


def local_class(uid: str, created: int) -> o.StorageClass:
    """The class that a new cluster has: a folder on the node of the claim's first pod."""
    made = o.StorageClass(apiVersion="storage.k8s.io/v1", kind="StorageClass", provisioner=PROVISIONER)
    made.metadata.name, made.metadata.uid, made.metadata.generation = LOCAL_CLASS, uid, 1
    made.metadata.creationTimestamp.seconds = created
    made.metadata.annotations[DEFAULT_CLASS] = "true"
    made.reclaimPolicy, made.volumeBindingMode = "Delete", WAIT
    return made


def amount(quantities: Mapping[str, o.Quantity]) -> int:
    """Bytes of storage; 0 when nothing is said."""
    try:
        return parse(quantities[STORAGE].text).whole() if STORAGE in quantities else 0
    except QuantityError:
        return 0


def named(volume: o.PersistentVolume, claim: o.PersistentVolumeClaim) -> bool:
    """Whether the volume's claimRef means this claim; a reference without uid means whoever has the name."""
    ref = volume.spec.claimRef
    here = (ref.namespace, ref.name) == (claim.metadata.namespace, claim.metadata.name)
    return bool(ref.name) and here and ref.uid in ("", claim.metadata.uid)


def owned(volume: o.PersistentVolume, claim: o.PersistentVolumeClaim) -> bool:
    """Whether the volume has been given to this very claim."""
    return named(volume, claim) and bool(volume.spec.claimRef.uid)


def suits(volume: o.PersistentVolume, claim: o.PersistentVolumeClaim) -> bool:
    """Whether the claim could have the volume, wherever its pod runs."""
    spec, wants = volume.spec, claim.spec
    if volume.metadata.HasField("deletionTimestamp") or (spec.claimRef.name and not named(volume, claim)):
        return False
    if wants.volumeName and wants.volumeName != volume.metadata.name:
        return False
    if spec.storageClassName != wants.storageClassName or not set(wants.accessModes) <= set(spec.accessModes):
        return False
    if (spec.volumeMode or "Filesystem") != (wants.volumeMode or "Filesystem"):
        return False
    if wants.HasField("selector") and not from_message(wants.selector).matches(volume.metadata.labels):
        return False
    return amount(spec.capacity) >= amount(wants.resources.requests)


def reachable(volume: o.PersistentVolume, place: Place) -> bool:
    """Whether pods on the node can use the volume."""
    if not volume.spec.nodeAffinity.required.nodeSelectorTerms:
        return True
    return affinity.matches(volume.spec.nodeAffinity.required, place.name, {HOSTNAME: place.name} | dict(place.labels))


def pick(
    volumes: Iterable[o.PersistentVolume], claim: o.PersistentVolumeClaim, place: Place | None = None
) -> o.PersistentVolume | None:
    """The volume that was made for the claim, or the smallest that suits it (on that node)."""
    fitting = [v for v in volumes if suits(v, claim) and (place is None or reachable(v, place))]
    order = [(not v.spec.claimRef.name, amount(v.spec.capacity), v.metadata.name, v) for v in fitting]
    return min(order, key=lambda entry: entry[:3])[3] if order else None
