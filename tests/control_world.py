"""A small cluster state for the tests of controllers and scheduler: a View with the Store's face, and object makers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence

from shoal.master.controllers.base import Outcome, instant
from shoal.master.model import (
    CLUSTER_SCOPED,
    AlreadyExists,
    Change,
    Conflict,
    Create,
    Event,
    Fault,
    Modify,
    NotFound,
    Object,
    Record,
    key_of,
)
from shoal.master.volumes import CLAIM_PROTECTION, ONCE, PROVISIONER
from shoal.proto.references import VOLUME_PROTECTION
from shoal.proto.v1 import objects_pb2 as o
from tests.memory_view import MemoryView


class World(MemoryView):
    """A View that is its own Store: `write` has the Store's rules."""

    def __init__(self, objects: Iterable[Object] = ()) -> None:
        super().__init__()
        self.events: list[Event] = []  # of all commits, for tests that take them
        self._queues: list[tuple[frozenset[str] | None, asyncio.Queue[tuple[int, list[Event]]]]] = []
        for obj in objects:
            assert not isinstance(self.commit(Create(obj)), Fault)

    # ---- View ----
    @property
    def view(self) -> World:
        return self

    def pods(self, namespace: str = "default") -> list[o.Pod]:
        return [obj for obj in self.all("Pod", namespace) if isinstance(obj, o.Pod)]

    # ---- Store ----
    async def write(self, changes: Sequence[Change], *, low_priority: bool = False) -> list[Record | Fault | None]:
        await asyncio.sleep(0)
        return self.apply(changes)

    def subscribe(self, kinds: Collection[str] | None) -> AsyncIterator[tuple[int, list[Event]]]:
        queue: asyncio.Queue[tuple[int, list[Event]]] = asyncio.Queue()
        self._queues.append((None if kinds is None else frozenset(kinds), queue))
        return Subscription(queue)

    def apply(self, changes: Iterable[Change]) -> list[Record | Fault | None]:
        return [self.commit(change) for change in changes]

    def commit(self, change: Change) -> Record | Fault | None:
        if isinstance(change, Create):
            return self._create(change.object)
        old = self.records.get(change.key)
        if old is None:
            return NotFound(f"{change.key} is not there")
        if change.uid and old.message.metadata.uid != change.uid:
            return Conflict(f"{change.key} is another object now")
        if change.revision and old.revision != change.revision:
            return Conflict(f"{change.key} is at revision {old.revision}")
        if not isinstance(change, Modify):
            self.revision += 1
            del self.records[change.key]
            self._tell(Event(change.key, self.revision, old, None))
            return None
        body = old.message.SerializeToString(deterministic=True)
        clone = type(old.message).FromString(body)
        if not change.edit(clone):
            return old
        assert clone.SerializeToString(deterministic=True) != body, f"an edit of {change.key} says True for nothing"
        return self._put(clone, old)

    def _create(self, obj: Object) -> Record | Fault:
        old = self.records.get(key_of(obj))
        if old is not None:
            same = old.message.metadata.uid == obj.metadata.uid
            return old if same else AlreadyExists(f"{key_of(obj)} exists")
        return self._put(type(obj).FromString(obj.SerializeToString()), None)

    def _put(self, obj: Object, old: Record | None) -> Record:
        self.revision += 1
        created = old.created if old else self.revision
        record = Record(key_of(obj), obj, obj.SerializeToString(deterministic=True), self.revision, created)
        self.records[record.key] = record
        self._tell(Event(record.key, self.revision, old, record))
        return record

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        for kinds, queue in self._queues:
            if kinds is None or event.key.kind in kinds:
                queue.put_nowait((event.revision, [event]))

    def unchanged(self) -> bool:
        """Nobody has changed a shared message in place."""
        return all(r.message.SerializeToString(deterministic=True) == r.body for r in self.records.values())


class Subscription:
    """Begins with the call, not with the first take."""

    def __init__(self, queue: asyncio.Queue[tuple[int, list[Event]]]) -> None:
        self.queue = queue

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> tuple[int, list[Event]]:
        return await self.queue.get()


# ---- objects ----
def meta(kind: str, name: str, labels: Mapping[str, str], at: float = 0.0) -> o.ObjectMeta:
    cluster = kind in CLUSTER_SCOPED
    return o.ObjectMeta(
        name=name,
        namespace="" if cluster else "default",
        uid=f"uid-{kind}-{name}",
        labels=labels,
        creationTimestamp=instant(at),
        generation=1,
    )


def pod(
    name: str,
    *,
    owner: Object | None = None,
    node: str = "",
    phase: str = "Pending",
    is_ready: bool = False,
    at: float = 0.0,
    cpu: str = "",
    memory: str = "",
    **labels: str,
) -> o.Pod:
    made = o.Pod(apiVersion="v1", kind="Pod", metadata=meta("Pod", name, labels, at))
    requests = {k: o.Quantity(text=v) for k, v in (("cpu", cpu), ("memory", memory)) if v}
    made.spec.containers.append(o.Container(name="c", image="i", resources=o.ResourceRequirements(requests=requests)))
    made.spec.nodeName = node
    made.status.phase = phase
    if is_ready:
        made.status.conditions.append(o.Condition(type="Ready", status="True", lastTransitionTime=instant(at)))
    if owner is not None:
        made.metadata.ownerReferences.append(reference(owner))
    return made


def reference(owner: Object, *, controller: bool = True, blocks: bool = True) -> o.OwnerReference:
    return o.OwnerReference(
        apiVersion=owner.apiVersion,
        kind=owner.kind,
        name=owner.metadata.name,
        uid=owner.metadata.uid,
        controller=controller,
        blockOwnerDeletion=blocks,
    )


def template(image: str = "web:1", **labels: str) -> o.PodTemplateSpec:
    made = o.PodTemplateSpec(metadata=o.ObjectMeta(labels=labels or {"app": "web"}))
    made.spec.containers.append(o.Container(name="c", image=image))
    return made


def replicaset(name: str = "web", replicas: int = 3, **labels: str) -> o.ReplicaSet:
    labels = labels or {"app": "web"}
    rs = o.ReplicaSet(apiVersion="apps/v1", kind="ReplicaSet", metadata=meta("ReplicaSet", name, labels))
    rs.spec.replicas = replicas
    rs.spec.selector.matchLabels.update(labels)
    rs.spec.template.CopyFrom(template(**labels))
    return rs


def deployment(name: str = "web", replicas: int = 3, image: str = "web:1") -> o.Deployment:
    made = o.Deployment(apiVersion="apps/v1", kind="Deployment", metadata=meta("Deployment", name, {"app": name}))
    made.spec.replicas = replicas
    made.spec.selector.matchLabels["app"] = name
    made.spec.template.CopyFrom(template(image, app=name))
    return made


def node(
    name: str,
    *,
    is_ready: bool = True,
    cpu: str = "4",
    memory: str = "8Gi",
    pods: str = "110",
    taints: Iterable[tuple[str, str, str]] = (),
    **labels: str,
) -> o.Node:
    made = o.Node(apiVersion="v1", kind="Node", metadata=meta("Node", name, labels))
    for resource, text in (("cpu", cpu), ("memory", memory), ("pods", pods), ("ephemeral-storage", "100Gi")):
        made.status.allocatable[resource].text = text
    for key, value, effect in taints:
        made.spec.taints.append(o.Taint(key=key, value=value, effect=effect))
    made.status.conditions.append(o.Condition(type="Ready", status="True" if is_ready else "Unknown"))
    return made


def namespace(name: str = "default", *, closing: bool = False) -> o.Namespace:
    made = o.Namespace(apiVersion="v1", kind="Namespace", metadata=meta("Namespace", name, {}))
    made.status.phase = "Active"
    if closing:
        made.metadata.deletionTimestamp.CopyFrom(instant(1.0))
    return made


def made_class(name: str = "local", provisioner: str = PROVISIONER, *, wait: bool = True) -> o.StorageClass:
    made = o.StorageClass(apiVersion="storage.k8s.io/v1", kind="StorageClass", provisioner=provisioner)
    made.metadata.CopyFrom(meta("StorageClass", name, {}))
    made.volumeBindingMode = "WaitForFirstConsumer" if wait else "Immediate"
    made.reclaimPolicy = "Delete"
    return made


def claim(
    name: str = "data", size: str = "1Gi", cls: str | None = "local", mode: str = ONCE
) -> o.PersistentVolumeClaim:
    made = o.PersistentVolumeClaim(apiVersion="v1", kind="PersistentVolumeClaim")
    made.metadata.CopyFrom(meta("PersistentVolumeClaim", name, {}))
    made.metadata.finalizers.append(CLAIM_PROTECTION)
    made.spec.accessModes.append(mode)
    made.spec.resources.requests["storage"].text = size
    if cls is not None:
        made.spec.storageClassName = cls
    return made


def volume(name: str, size: str = "1Gi", cls: str = "", home: str = "", policy: str = "Retain") -> o.PersistentVolume:
    made = o.PersistentVolume(apiVersion="v1", kind="PersistentVolume", metadata=meta("PersistentVolume", name, {}))
    made.metadata.finalizers.append(VOLUME_PROTECTION)
    made.spec.capacity["storage"].text = size
    made.spec.accessModes.append(ONCE)
    made.spec.storageClassName, made.spec.persistentVolumeReclaimPolicy = cls, policy
    made.spec.local.path = "/data"
    if home:
        rule = made.spec.nodeAffinity.required.nodeSelectorTerms.add().matchExpressions.add()
        rule.key, rule.operator = "kubernetes.io/hostname", "In"
        rule.values.append(home)
    return made


def carry_out(world: World, outcome: Outcome) -> list[Record | Fault | None]:
    """Commits what a controller wants."""
    return world.apply(outcome.changes)
