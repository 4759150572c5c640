"""Deployment: one ReplicaSet per template; a change comes one new pod up and, when it is ready, one old pod down."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from shoal.master.controllers.base import (
    Controller,
    Outcome,
    Rng,
    Said,
    active,
    condition,
    count,
    fetch,
    instant,
    namespace_closing,
    own_key,
    owner_keys,
    owner_reference,
    ready,
    seconds,
    terminating,
)
from shoal.master.controllers.claims import claim, matches
from shoal.master.controllers.pods import ALPHABET, new_uid
from shoal.master.controllers.replicaset import REPLICA_FAILURE, news_of_orphan, wanted
from shoal.master.model import Change, Create, Delete, Event, Key, Modify, Object, View, key_of
from shoal.proto.v1 import objects_pb2 as o

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
HASH_LENGTH = 10
MAX_SURGE = 1
MAX_UNAVAILABLE = 0
HISTORY_LIMIT = 10  # old ReplicaSets that are kept
PROGRESS_DEADLINE_SECONDS = 600  # Kubernetes' default of progressDeadlineSeconds


def controller(rng: Rng) -> Controller:
    watches = {"Deployment": own_key, "ReplicaSet": replicaset_keys, "Pod": pod_keys}
    return Controller("deployment", watches, partial(_call, rng))


def _call(rng: Rng, view: View, key: Key, now: float) -> Outcome:
    return reconcile(view, key, now, rng)


def replicaset_keys(view: View, event: Event) -> Iterable[Key]:
    keys = owner_keys(event, "Deployment")
    rs = event.new.message if event.new else None
    if keys or rs is None or not news_of_orphan(event):
        return keys
    for found in view.all("Deployment", event.key.namespace):
        if isinstance(found, o.Deployment) and matches(found.spec.selector, rs.metadata.labels):
            keys.add(key_of(found))
    return keys


def pod_keys(view: View, event: Event) -> Iterable[Key]:
    """The Deployment above the pod's ReplicaSet: readiness moves a rollout on."""
    keys: set[Key] = set()
    for above in owner_keys(event, "ReplicaSet"):
        rs = fetch(view, o.ReplicaSet, above)
        if rs is not None:
            keys |= {
                Key("Deployment", above.namespace, ref.name)
                for ref in rs.metadata.ownerReferences
                if ref.controller and ref.kind == "Deployment"
            }
    return keys


@dataclass(slots=True)
class Member:
    """A ReplicaSet of the Deployment with what its pods say now."""

    rs: o.ReplicaSet
    size: int  # asked for
    pods: int  # active
    ready: int

    @property
    def safe(self) -> int:
        """Ready pods that stay once its ReplicaSet has caught up with the size asked for."""
        return min(self.ready, self.size)


def member(view: View, rs: o.ReplicaSet) -> Member:
    pods = [pod for pod in view.owned(rs.metadata.uid) if isinstance(pod, o.Pod) and active(pod)]
    return Member(rs, wanted(rs), len(pods), sum(map(ready, pods)))


def reconcile(view: View, key: Key, now: float, rng: Rng) -> Outcome:
    """Finds or makes the template's ReplicaSet, moves sizes, tidies old ones and reports."""
    deployment = fetch(view, o.Deployment, key)
    if deployment is None or terminating(deployment):
        return Outcome()
    claimed = claim(view, deployment, o.ReplicaSet, "ReplicaSet", deployment.spec.selector)
    outcome = Outcome(changes=list(claimed.changes))
    members = [member(view, rs) for rs in claimed.mine if not terminating(rs)]
    members.sort(key=lambda m: (seconds(m.rs.metadata.creationTimestamp), m.rs.metadata.name))
    new = find_new(deployment, members)
    old = [m for m in members if m is not new]
    if new is None:
        if not namespace_closing(view, key.namespace):
            introduce(view, deployment, old, now, rng, outcome)
    else:
        roll(deployment, new, old, outcome)
        adopt_revision(deployment, new.rs, old, outcome)
    tidy(old, new, outcome)
    report(deployment, new, members, now, outcome)
    return outcome


# ---- the ReplicaSet of the template ----
def bare(template: o.PodTemplateSpec) -> o.PodTemplateSpec:
    """The template without the hash label."""
    copy = o.PodTemplateSpec()
    copy.CopyFrom(template)
    copy.metadata.labels.pop(HASH_LABEL, None)
    return copy


def template_hash(template: o.PodTemplateSpec, collisions: int) -> str:
    """Ten characters of the template and the collision count."""
    data = bare(template).SerializeToString(deterministic=True)
    number = int.from_bytes(hashlib.sha256(data + b"/%d" % collisions).digest(), "big")
    text = ""
    for _ in range(HASH_LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        text += ALPHABET[digit]
    return text


def find_new(deployment: o.Deployment, members: list[Member]) -> Member | None:
    """The oldest one with the very template."""
    template = bare(deployment.spec.template)
    for found in members:
        if bare(found.rs.spec.template) == template:
            return found
    return None


def revision(rs: o.ReplicaSet) -> int:
    text = rs.metadata.annotations.get(REVISION, "0")
    return int(text) if text.isdecimal() else 0


def introduce(view: View, deployment: o.Deployment, old: list[Member], now: float, rng: Rng, outcome: Outcome) -> None:
    """Makes the new ReplicaSet, or counts a collision when its name is taken by another."""
    suffix = template_hash(deployment.spec.template, deployment.status.collisionCount)
    name = f"{deployment.metadata.name}-{suffix}"
    taken = view.get("ReplicaSet", deployment.metadata.namespace, name)
    if taken is not None:
        if not terminating(taken):
            outcome.changes.append(count_collision(deployment))
            outcome.did = f"found its ReplicaSet's name {name} taken"
        return
    rs = o.ReplicaSet(apiVersion="apps/v1", kind="ReplicaSet")
    meta = rs.metadata
    meta.name, meta.namespace, meta.uid = name, deployment.metadata.namespace, new_uid(rng)
    meta.generation = 1
    meta.creationTimestamp.CopyFrom(instant(now))
    rs.spec.selector.CopyFrom(deployment.spec.selector)
    rs.spec.template.CopyFrom(deployment.spec.template)
    rs.spec.template.metadata.labels[HASH_LABEL] = suffix
    rs.spec.selector.matchLabels[HASH_LABEL] = suffix
    meta.labels.update(rs.spec.template.metadata.labels)
    meta.annotations[REVISION] = str(max((revision(m.rs) for m in old), default=0) + 1)
    meta.ownerReferences.append(owner_reference(deployment))
    rs.spec.replicas = growth(desired(deployment), 0, sum(m.size for m in old))
    outcome.changes.append(Create(rs))
    outcome.did = f"created ReplicaSet {name} of {count(rs.spec.replicas, 'pod')}"
    outcome.said.append(Said(deployment, "Normal", "ScalingReplicaSet", outcome.did.capitalize()))


def count_collision(deployment: o.Deployment) -> Change:
    seen = deployment.status.collisionCount

    def edit(found: Object) -> bool:
        if not isinstance(found, o.Deployment) or found.status.collisionCount != seen:
            return False
        found.status.collisionCount = seen + 1
        return True

    return Modify(key_of(deployment), edit, uid=deployment.metadata.uid)


def adopt_revision(deployment: o.Deployment, new: o.ReplicaSet, old: list[Member], outcome: Outcome) -> None:
    """A template that returns becomes the newest revision; the Deployment carries its number."""
    newest = max((revision(m.rs) for m in old), default=0) + 1
    number = str(max(newest, revision(new)))
    for obj in (new, deployment):
        if obj.metadata.annotations.get(REVISION) != number:
            outcome.changes.append(annotate(obj, REVISION, number))


def annotate(obj: Object, name: str, value: str) -> Change:
    def edit(found: Object) -> bool:
        if found.metadata.annotations.get(name) == value:
            return False
        found.metadata.annotations[name] = value
        return True

    return Modify(key_of(obj), edit, uid=obj.metadata.uid)


# ---- sizes ----
def desired(deployment: o.Deployment) -> int:
    return deployment.spec.replicas if deployment.spec.HasField("replicas") else 1


def growth(goal: int, size: int, others: int) -> int:
    """The new ReplicaSet's size: as far towards the goal as the surge above it allows. Never smaller than it was."""
    room = goal + MAX_SURGE - size - others
    return max(size, min(goal, size + max(0, room))) if others else goal


def roll(deployment: o.Deployment, new: Member, old: list[Member], outcome: Outcome) -> None:
    """One step: the new one up to the surge, the old ones down as far as ready pods allow."""
    goal = desired(deployment)
    living = [m for m in old if m.size > 0]
    size = goal if new.size > goal else growth(goal, new.size, sum(m.size for m in living))
    shrunk = shrink(goal, min(new.safe, size), living)
    steps = [(new, size), *zip(living, shrunk, strict=True)]
    words = []
    for target, to in steps:
        if to != target.size:
            outcome.changes.append(resize(target.rs, to))
            words.append(f"scaled {target.rs.metadata.name} from {target.size} to {to}")
    if words:
        outcome.did = ", ".join(words)
        outcome.said.append(Said(deployment, "Normal", "ScalingReplicaSet", outcome.did.capitalize()))


def shrink(goal: int, new_ready: int, old: list[Member]) -> list[int]:
    """New sizes of the old ones, oldest first: what is not ready goes first, ready pods only while enough others are.
    A pod that is asked for but not ready counts for nothing, so that what stays ready never falls below the goal."""
    need = goal - MAX_UNAVAILABLE
    sizes = [m.size for m in old]
    spare = max(0, sum(sizes) + new_ready - need)
    surplus = new_ready + sum(m.safe for m in old) - need
    for index, m in enumerate(old):
        gone = min(spare, m.size - m.safe)
        sizes[index] -= gone
        spare -= gone
    for index in range(len(old)):
        gone = max(0, min(surplus, sizes[index]))
        sizes[index] -= gone
        surplus -= gone
    return sizes


def resize(rs: o.ReplicaSet, size: int) -> Change:
    """Only from the size that was seen: somebody else's change makes the next call decide anew."""
    seen = wanted(rs)

    def edit(found: Object) -> bool:
        if not isinstance(found, o.ReplicaSet) or wanted(found) != seen:
            return False
        found.spec.replicas = size
        found.metadata.generation += 1
        return True

    return Modify(key_of(rs), edit, uid=rs.metadata.uid)


def tidy(old: list[Member], new: Member | None, outcome: Outcome) -> None:
    """Old ReplicaSets without pods, beyond the history that is kept; never before the new one exists."""
    if new is None:
        return
    empty = [m for m in old if m.size == 0 and m.pods == 0 and m.rs.status.replicas == 0]
    empty.sort(key=lambda m: revision(m.rs))
    for m in empty[: max(0, len(empty) - HISTORY_LIMIT)]:
        outcome.changes.append(Delete(key_of(m.rs), uid=m.rs.metadata.uid))


# ---- status ----
def report(deployment: o.Deployment, new: Member | None, members: list[Member], now: float, outcome: Outcome) -> None:
    """Writes the status when it says something new, and asks to be called when the progress deadline passes."""
    status = o.DeploymentStatus()
    status.CopyFrom(deployment.status)
    total = sum(m.pods for m in members)
    available = sum(m.ready for m in members)
    status.observedGeneration = deployment.metadata.generation
    status.replicas = total
    status.updatedReplicas = new.pods if new else 0
    status.readyReplicas = status.availableReplicas = available
    status.unavailableReplicas = max(0, max(total, sum(m.size for m in members)) - available)
    available_condition(status, available >= desired(deployment) - MAX_UNAVAILABLE, now)
    failure_condition(status, members, now)
    outcome.again = progress_condition(deployment, status, new, now)
    if status == deployment.status:
        return

    def edit(found: Object) -> bool:
        if not isinstance(found, o.Deployment):
            return False
        collisions = found.status.collisionCount
        before = found.status.SerializeToString(deterministic=True)
        had = found.status.HasField("collisionCount")
        found.status.CopyFrom(status)
        if had:  # counted by a change of the same group
            found.status.collisionCount = collisions
        return found.status.SerializeToString(deterministic=True) != before

    outcome.changes.append(Modify(key_of(deployment), edit, uid=deployment.metadata.uid))


def available_condition(status: o.DeploymentStatus, enough: bool, now: float) -> None:
    new = o.Condition(
        type="Available",
        status="True" if enough else "False",
        reason="MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
        message=f"Deployment {'has' if enough else 'does not have'} minimum availability.",
    )
    update_condition(status, new, now)


def failure_condition(status: o.DeploymentStatus, members: list[Member], now: float) -> None:
    """What keeps a ReplicaSet from making its pods, as it says itself."""
    for found in (condition(m.rs.status.conditions, REPLICA_FAILURE) for m in members):
        if found is not None:
            new = o.Condition(type=found.type, status=found.status, reason=found.reason, message=found.message)
            update_condition(status, new, now)
            return
    kept = [found for found in status.conditions if found.type != REPLICA_FAILURE]
    del status.conditions[:]
    status.conditions.extend(kept)


def progress_condition(
    deployment: o.Deployment, status: o.DeploymentStatus, new: Member | None, now: float
) -> float | None:
    """Sets Progressing; gives the seconds until the deadline while a rollout is under way."""
    old = condition(deployment.status.conditions, "Progressing")
    name = new.rs.metadata.name if new else ""
    goal = desired(deployment)
    done = status.updatedReplicas == status.replicas == goal == status.availableReplicas and new is not None
    if done:
        message = f'ReplicaSet "{name}" has successfully progressed.'
        update_condition(status, progressing("True", "NewReplicaSetAvailable", message), now)
        return None
    if old is not None and old.reason == "NewReplicaSetAvailable" and status.replicas == status.updatedReplicas:
        return None  # a pod that fails after the rollout is not a rollout
    if progressed(deployment.status, status) or old is None or old.reason == "NewReplicaSetAvailable":
        reason, message = "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.'
        if new is None:
            reason, message = "NewReplicaSetCreated", "A new ReplicaSet is being created."
        found = update_condition(status, progressing("True", reason, message), now)
        found.lastUpdateTime.CopyFrom(instant(now))
        return float(PROGRESS_DEADLINE_SECONDS)
    left = seconds(old.lastUpdateTime) + PROGRESS_DEADLINE_SECONDS - now
    if left > 0:
        return left
    message = f'ReplicaSet "{name}" has timed out progressing.'
    update_condition(status, progressing("False", "ProgressDeadlineExceeded", message), now)
    return None


def progressing(status: str, reason: str, message: str) -> o.Condition:
    return o.Condition(type="Progressing", status=status, reason=reason, message=message)


def progressed(before: o.DeploymentStatus, after: o.DeploymentStatus) -> bool:
    """More new pods, fewer old ones, or more ready ones (kubernetes: DeploymentProgressing)."""
    return (
        after.observedGeneration != before.observedGeneration
        or after.updatedReplicas > before.updatedReplicas
        or after.replicas - after.updatedReplicas < before.replicas - before.updatedReplicas
        or after.availableReplicas > before.availableReplicas
    )


def update_condition(status: o.DeploymentStatus, new: o.Condition, now: float) -> o.Condition:
    """Puts the condition in and gives the one that is there."""
    found = condition(status.conditions, new.type)
    if found is None:
        status.conditions.append(new)
        found = status.conditions[-1]
        found.lastTransitionTime.CopyFrom(instant(now))
        found.lastUpdateTime.CopyFrom(instant(now))
        return found
    if (found.status, found.reason, found.message) != (new.status, new.reason, new.message):
        if found.status != new.status:
            found.lastTransitionTime.CopyFrom(instant(now))
        found.status, found.reason, found.message = new.status, new.reason, new.message
        found.lastUpdateTime.CopyFrom(instant(now))
    return found
