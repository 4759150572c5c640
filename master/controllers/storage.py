"""Claims and volumes: binding, making local volumes, protection while in use, and what follows when a claim is gone.

A volume's claimRef with a uid is the lock: it is written first, and only the claim that it names takes the volume.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable

from shoal.master import volumes as rules
from shoal.master.controllers.base import Controller, Outcome, Said, mark_terminating, terminating
from shoal.master.model import FINAL_PHASES, Create, Event, Key, Modify, Object, View, key_of
from shoal.master.volumes import CLAIM_PROTECTION, SELECTED_NODE, Place
from shoal.proto.references import CLAIM, HOSTNAME, LOCAL_FINALIZER, VOLUME, VOLUME_PROTECTION, claims_of, homes
from shoal.proto.v1 import objects_pb2 as o

PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
DELETE, RETAIN = "Delete", "Retain"
UIDS = uuid.UUID("1f7b7f0d-51c1-5d8e-8b2a-5b0a1a6cf0d4")  # the name space of made volumes' uids


def controller() -> Controller:
    watches = {
        CLAIM: claim_keys,
        VOLUME: volume_keys,
        "StorageClass": class_keys,
        "Pod": pod_keys,
        "Node": node_keys,
    }
    return Controller("storage", watches, reconcile)


# ---- what an event concerns ----
def claim_keys(view: View, event: Event) -> Iterable[Key]:
    """The claim, and the volumes that it names or has been given."""
    keys = {event.key}
    for record in (event.old, event.new):
        claim = record.message if record else None
        if isinstance(claim, o.PersistentVolumeClaim):
            keys |= {key_of(volume) for volume in view.volumes_of(claim.metadata.uid)}
            if claim.spec.volumeName:
                keys.add(Key(VOLUME, "", claim.spec.volumeName))
    return keys


def volume_keys(view: View, event: Event) -> Iterable[Key]:
    """The volume and its claim; a volume that is free now may be what others of its class wait for."""
    keys = {event.key}
    for record in (event.old, event.new):
        volume = record.message if record else None
        if isinstance(volume, o.PersistentVolume):
            if volume.spec.claimRef.name:
                keys.add(Key(CLAIM, volume.spec.claimRef.namespace, volume.spec.claimRef.name))
            if not volume.spec.claimRef.uid:  # it became free, or somebody else was faster
                waiting = view.claims_waiting(volume.spec.storageClassName)
                keys |= {key_of(claim) for claim in waiting if rules.suits(volume, claim)}
    keys |= {key_of(claim) for claim in view.claims_on(event.key.name)}
    return keys


def class_keys(view: View, event: Event) -> Iterable[Key]:
    """Claims that wait for the class, or for a default one."""
    return [key_of(claim) for name in ("", event.key.name) for claim in view.claims_waiting(name)]


def pod_keys(_view: View, event: Event) -> Iterable[Key]:
    """The claims of a pod that came, was placed, or ended."""
    old, new = (record.message if record else None for record in (event.old, event.new))
    if not any(isinstance(pod, o.Pod) and pod.spec.volumes for pod in (old, new)):
        return ()
    if isinstance(old, o.Pod) and isinstance(new, o.Pod) and _use(old) == _use(new):
        return ()
    named = {(pod.metadata.namespace, name) for pod in (old, new) if isinstance(pod, o.Pod) for name in claims_of(pod)}
    return [Key(CLAIM, namespace, name) for namespace, name in sorted(named)]


def _use(pod: o.Pod) -> tuple[str, str, bool]:
    return pod.metadata.uid, pod.spec.nodeName, pod.status.phase in FINAL_PHASES


def node_keys(view: View, event: Event) -> Iterable[Key]:
    """When a node is gone, its volumes and what was to be made there."""
    if event.new is not None:
        return ()
    named = event.key.name
    selected = [claim for claim in view.all(CLAIM) if claim.metadata.annotations.get(SELECTED_NODE) == named]
    return [key_of(found) for found in (*view.volumes_on(named), *selected)]


def reconcile(view: View, key: Key, now: float) -> Outcome:
    obj = view.get(*key)
    if isinstance(obj, o.PersistentVolumeClaim):
        return reconcile_claim(view, obj, now)
    if isinstance(obj, o.PersistentVolume):
        return reconcile_volume(view, obj, now)
    return Outcome()


# ---- claims ----
def reconcile_claim(view: View, claim: o.PersistentVolumeClaim, now: float) -> Outcome:
    if terminating(claim):
        users = view.referring(CLAIM, claim.metadata.namespace, claim.metadata.name)
        if any(pod.spec.nodeName for pod in users) or CLAIM_PROTECTION not in claim.metadata.finalizers:
            return Outcome()
        return Outcome([_without(claim, CLAIM_PROTECTION)], "no pod uses it any more")
    if claim.spec.volumeName:
        return follow(view, claim)
    if not claim.spec.HasField("storageClassName") and (found := rules.default_class(_classes(view))) is not None:
        return Outcome([_give_class(claim, found.metadata.name)], f"is of the default class {found.metadata.name}")
    meant = [v for v in view.volumes_free(claim.spec.storageClassName) if rules.named(v, claim)]
    for volume in (*view.volumes_of(claim.metadata.uid), *meant):
        if rules.suits(volume, claim):
            return take(claim, volume)
    return choose(view, claim, now)


def follow(view: View, claim: o.PersistentVolumeClaim) -> Outcome:
    """The claim names its volume: bound once that names the claim."""
    volume = view.get(VOLUME, "", claim.spec.volumeName)
    if isinstance(volume, o.PersistentVolume) and rules.owned(volume, claim):
        return take(claim, volume)
    if claim.status.phase in ("Bound", "Lost"):
        why = f"Volume {claim.spec.volumeName} is gone: what was on it is lost. Delete the claim and make another one"
        said = [Said(claim, "Warning", "ClaimLost", why)] if claim.status.phase == "Bound" else []
        return Outcome([_set_phase(claim, "Lost")], "its volume is gone" if said else "", said)
    if isinstance(volume, o.PersistentVolume) and rules.suits(volume, claim):
        return Outcome([_reserve(volume, claim)], f"takes volume {volume.metadata.name}")
    why = "does not exist" if volume is None else "does not suit it, or is another claim's"
    return _wait(claim, "FailedBinding", f"Volume {claim.spec.volumeName} {why}")


def take(claim: o.PersistentVolumeClaim, volume: o.PersistentVolume) -> Outcome:
    """Both sides of a binding; the volume's side goes first."""
    if not rules.owned(volume, claim):
        return Outcome([_reserve(volume, claim)], f"takes volume {volume.metadata.name}")
    wanted = o.PersistentVolumeClaimStatus(
        phase="Bound", accessModes=volume.spec.accessModes, capacity=volume.spec.capacity
    )
    name = volume.metadata.name
    if claim.status == wanted and claim.spec.volumeName == name:
        return Outcome()

    def edit(found: Object) -> bool:
        if not isinstance(found, o.PersistentVolumeClaim) or found.spec.volumeName not in ("", name):
            return False
        changed = found.status != wanted or found.spec.volumeName != name
        found.spec.volumeName = name
        found.status.CopyFrom(wanted)
        return changed

    return Outcome([Modify(key_of(claim), edit, uid=claim.metadata.uid)], f"bound to volume {name}")


def choose(view: View, claim: o.PersistentVolumeClaim, now: float) -> Outcome:
    """A hand-made volume, or a new one, or a reason to wait."""
    name = claim.spec.storageClassName
    storage_class = view.get("StorageClass", "", name) if name else None
    found = storage_class if isinstance(storage_class, o.StorageClass) else None
    place = None
    if rules.waits(found):
        selected = selected_node(view, claim)
        if not selected:
            return _wait(claim, "WaitForFirstConsumer", "Waits for the first pod that uses it to be placed on a node")
        node = view.get("Node", "", selected)
        if node is None:
            return Outcome([_forget_node(claim)], f"node {selected}, where its volume was to be, is gone")
        place = Place(selected, node.metadata.labels)
    volume = rules.pick(view.volumes_free(name), claim, place)
    if volume is not None:
        return Outcome([_reserve(volume, claim)], f"takes volume {volume.metadata.name}")
    if found is not None and place is not None and rules.provisions(found) and not claim.spec.HasField("selector"):
        return provision(view, claim, found, place.name, now)
    if name and found is None:
        return _wait(claim, "ProvisioningFailed", f"Storage class {name} does not exist, and no volume of it fits")
    where = f" on node {place.name}" if place else ""
    return _wait(claim, "FailedBinding", f"No volume{where} fits: make one, or name a class whose volumes are made")


def selected_node(view: View, claim: o.PersistentVolumeClaim) -> str:
    """Where the scheduler has put the first pod that uses it."""
    selected = claim.metadata.annotations.get(SELECTED_NODE, "")
    users = view.referring(CLAIM, claim.metadata.namespace, claim.metadata.name)
    return selected or min((pod.spec.nodeName for pod in users if pod.spec.nodeName), default="")


def made_name(claim: o.PersistentVolumeClaim) -> str:
    """Of the volume that is made for it: the same however often that is tried."""
    return f"pvc-{claim.metadata.uid}"


def provision(
    view: View, claim: o.PersistentVolumeClaim, storage_class: o.StorageClass, node: str, now: float
) -> Outcome:
    name = made_name(claim)
    there = view.get(VOLUME, "", name)
    if isinstance(there, o.PersistentVolume):
        return Outcome()  # leaving, or another's: its events come here again
    volume = o.PersistentVolume(apiVersion="v1", kind=VOLUME)
    volume.metadata.name = name
    volume.metadata.uid = str(uuid.uuid5(UIDS, claim.metadata.uid))
    volume.metadata.generation = 1
    volume.metadata.creationTimestamp.seconds = int(now)
    volume.metadata.annotations[PROVISIONED_BY] = rules.PROVISIONER
    volume.metadata.finalizers.extend([VOLUME_PROTECTION, LOCAL_FINALIZER])
    spec = volume.spec
    spec.capacity[rules.STORAGE].CopyFrom(claim.spec.resources.requests[rules.STORAGE])
    spec.accessModes.extend(claim.spec.accessModes)
    spec.persistentVolumeReclaimPolicy = storage_class.reclaimPolicy or DELETE
    spec.storageClassName = storage_class.metadata.name
    spec.volumeMode = claim.spec.volumeMode or "Filesystem"
    spec.local.path = ""
    spec.local.SetInParent()
    rule = spec.nodeAffinity.required.nodeSelectorTerms.add().matchExpressions.add(key=HOSTNAME, operator="In")
    rule.values.append(node)
    spec.claimRef.CopyFrom(reference(claim))
    volume.status.phase = "Bound"
    said = Said(claim, "Normal", "ProvisioningSucceeded", f"Made volume {name} on node {node}")
    return Outcome([Create(volume)], f"made volume {name} on node {node}", [said])


def reference(claim: o.PersistentVolumeClaim) -> o.ObjectReference:
    meta = claim.metadata
    return o.ObjectReference(apiVersion="v1", kind=CLAIM, namespace=meta.namespace, name=meta.name, uid=meta.uid)


def _classes(view: View) -> list[o.StorageClass]:
    return [found for found in view.all("StorageClass") if isinstance(found, o.StorageClass)]


def _wait(claim: o.PersistentVolumeClaim, reason: str, message: str) -> Outcome:
    """Pending; the event says why."""
    grave = "Normal" if reason == "WaitForFirstConsumer" else "Warning"
    changes = [] if claim.status.phase == "Pending" else [_set_phase(claim, "Pending")]
    return Outcome(list(changes), "", [Said(claim, grave, reason, message)])


def _set_phase(claim: o.PersistentVolumeClaim, phase: str) -> Modify:
    def edit(found: Object) -> bool:
        if not isinstance(found, o.PersistentVolumeClaim) or found.status.phase == phase:
            return False
        found.status.phase = phase
        return True

    return Modify(key_of(claim), edit, uid=claim.metadata.uid)


def _give_class(claim: o.PersistentVolumeClaim, name: str) -> Modify:
    def edit(found: Object) -> bool:
        if not isinstance(found, o.PersistentVolumeClaim) or found.spec.HasField("storageClassName"):
            return False
        found.spec.storageClassName = name
        return True

    return Modify(key_of(claim), edit, uid=claim.metadata.uid)


def _forget_node(claim: o.PersistentVolumeClaim) -> Modify:
    def edit(found: Object) -> bool:
        return found.metadata.annotations.pop(SELECTED_NODE, None) is not None

    return Modify(key_of(claim), edit, uid=claim.metadata.uid)


def _reserve(volume: o.PersistentVolume, claim: o.PersistentVolumeClaim) -> Modify:
    """Gives the volume to the claim, unless another was faster."""
    wanted = reference(claim)

    def edit(found: Object) -> bool:
        if not isinstance(found, o.PersistentVolume) or not rules.suits(found, claim):
            return False
        if found.spec.claimRef == wanted:
            return False
        found.spec.claimRef.CopyFrom(wanted)
        return True

    return Modify(key_of(volume), edit, uid=volume.metadata.uid)


def _without(obj: Object, *finalizers: str) -> Modify:
    def edit(found: Object) -> bool:
        kept = [name for name in found.metadata.finalizers if name not in finalizers]
        changed = len(kept) != len(found.metadata.finalizers)
        del found.metadata.finalizers[:]
        found.metadata.finalizers.extend(kept)
        return changed

    return Modify(key_of(obj), edit, uid=obj.metadata.uid)


# ---- volumes ----
def reconcile_volume(view: View, volume: o.PersistentVolume, now: float) -> Outcome:
    claim = owner(view, volume)
    if terminating(volume):
        return end(view, volume, claim)
    if claim is not None and claim.spec.volumeName not in ("", volume.metadata.name):
        return Outcome([_free(volume)], "its claim has another volume")
    if claim is not None:
        return _phase(volume, "Bound")
    if not volume.spec.claimRef.uid:
        return _phase(volume, "Available")
    if volume.spec.persistentVolumeReclaimPolicy != DELETE:
        return _phase(volume, "Released", message="its claim is gone; what is on it is kept (Retain)")
    if not rules.ours(volume):
        why = "its claim is gone, but only volumes that Shoal has made are deleted: look after its data and delete it"
        return _phase(volume, "Failed", "VolumeFailedDelete", why)
    change = Modify(key_of(volume), lambda found: mark_terminating(found, now), uid=volume.metadata.uid)
    return Outcome([change], "its claim is gone: it is deleted")


def owner(view: View, volume: o.PersistentVolume) -> o.PersistentVolumeClaim | None:
    """The claim that the volume was given to, while there is one."""
    ref = volume.spec.claimRef
    claim = view.get(CLAIM, ref.namespace, ref.name) if ref.uid else None
    return claim if isinstance(claim, o.PersistentVolumeClaim) and claim.metadata.uid == ref.uid else None


def end(view: View, volume: o.PersistentVolume, claim: o.PersistentVolumeClaim | None) -> Outcome:
    """A deleted volume stays while its claim is there, and then until its node has removed the folder."""
    done, words = [], []
    if claim is None and VOLUME_PROTECTION in volume.metadata.finalizers:
        done.append(VOLUME_PROTECTION)
        words.append("no claim has it any more")
    if LOCAL_FINALIZER in volume.metadata.finalizers:
        if not any(view.get("Node", "", home) is not None for home in homes(volume)):
            done.append(LOCAL_FINALIZER)
            words.append("its node is gone")
        elif claim is None and volume.spec.persistentVolumeReclaimPolicy != DELETE:
            done.append(LOCAL_FINALIZER)
            words.append("what is on it is kept (Retain)")
    return Outcome([_without(volume, *done)], ", ".join(words)) if done else Outcome()


def _phase(volume: o.PersistentVolume, phase: str, reason: str = "", message: str = "") -> Outcome:
    wanted = o.PersistentVolumeStatus(phase=phase, reason=reason, message=message)
    if volume.status == wanted:
        return Outcome()
    return Outcome([Modify(key_of(volume), _status(wanted), uid=volume.metadata.uid)], f"is {phase.lower()}")


def _status(wanted: o.PersistentVolumeStatus) -> Callable[[Object], bool]:
    def edit(found: Object) -> bool:
        if not isinstance(found, o.PersistentVolume) or found.status == wanted:
            return False
        found.status.CopyFrom(wanted)
        return True

    return edit


def _free(volume: o.PersistentVolume) -> Modify:
    uid = volume.spec.claimRef.uid

    def edit(found: Object) -> bool:
        if not isinstance(found, o.PersistentVolume) or found.spec.claimRef.uid != uid:
            return False
        found.spec.ClearField("claimRef")
        return True

    return Modify(key_of(volume), edit, uid=volume.metadata.uid)
