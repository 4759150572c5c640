"""Pods made from templates: names, uids, and which one goes first when there are too many."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Iterable

from shoal.master.controllers.base import Rng, condition, instant, owner_reference, ready, seconds
from shoal.master.controllers.priorities import begin, give_priority
from shoal.master.model import Object, View
from shoal.proto.defaults import apply_defaults
from shoal.proto.rules.resources import GPU_DEVICES
from shoal.proto.v1 import objects_pb2 as o

# Kubernetes' alphabet for generated names: no vowels (no words), no 0, 1 and 3 (no doubt).
ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
SUFFIX_LENGTH = 5
BASE_LENGTH = 58  # a generated name stays a DNS label: 63 with its suffix


def new_uid(rng: Rng) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def new_name(base: str, taken: Collection[str], rng: Rng) -> str:
    """`base` and five characters that no sibling has."""
    while True:
        suffix = "".join(ALPHABET[rng.getrandbits(32) % len(ALPHABET)] for _ in range(SUFFIX_LENGTH))
        name = base[:BASE_LENGTH] + suffix
        if name not in taken:
            return name


def pod_from(view: View, template: o.PodTemplateSpec, owner: Object, name: str, uid: str, now: float) -> o.Pod:
    """A new pending pod of this owner; whether its priority class is there has been looked at before."""
    pod = o.Pod(apiVersion="v1", kind="Pod")
    meta = pod.metadata
    meta.name, meta.uid, meta.namespace = name, uid, owner.metadata.namespace
    meta.generateName = f"{owner.metadata.name}-"
    meta.generation = 1
    meta.creationTimestamp.CopyFrom(instant(now))
    meta.labels.update(template.metadata.labels)
    meta.annotations.update(template.metadata.annotations)
    meta.annotations.pop(GPU_DEVICES, None)  # which only the scheduler writes
    meta.finalizers.extend(template.metadata.finalizers)
    meta.ownerReferences.append(owner_reference(owner))
    pod.spec.CopyFrom(template.spec)
    pod.spec.nodeName = ""
    apply_defaults(pod)
    give_priority(view, pod.spec)
    begin(pod)
    return pod


def crowding(related: Iterable[o.Pod]) -> Counter[str]:
    """How many of the related pods each node holds."""
    return Counter(pod.spec.nodeName for pod in related if pod.spec.nodeName)


def deletion_order(pod: o.Pod, crowd: Counter[str]) -> tuple[object, ...]:
    """Sort key: what goes first. As kubectl users know it: unscheduled, pending, not ready, crowded, newly ready,
    often restarted, young; the name decides ties (kubernetes pkg/controller, ActivePodsWithRanks)."""
    is_ready = ready(pod)
    found = condition(pod.status.conditions, "Ready")
    ready_since = seconds(found.lastTransitionTime) if is_ready and found is not None else 0.0
    restarts = max((status.restartCount for status in pod.status.containerStatuses), default=0)
    return (
        bool(pod.spec.nodeName),
        pod.status.phase == "Running",
        is_ready,
        -crowd[pod.spec.nodeName],
        -ready_since,
        -restarts,
        -seconds(pod.metadata.creationTimestamp),
        pod.metadata.name,
    )
