"""What people of the simulation ask of placement, and whether they got it: priorities, gangs, company, spread."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping

from shoal.master.model import Event, Key, Object, Record
from shoal.master.scheduler.classes import GROUP_LABEL, Classes
from shoal.master.scheduler.core import Plan, Scheduler, Waiting
from shoal.master.scheduler.explain import same_story
from shoal.master.scheduler.queue import arrival_of, order
from shoal.master.scheduler.snapshot import Snapshot
from shoal.master.scheduling.loop import WATCHED
from shoal.proto.v1 import objects_pb2 as o

ZONE = "topology.kubernetes.io/zone"
HOST = "kubernetes.io/hostname"
PRIORITIES = {"low": -10, "high": 1000}
GANG = 3  # members


# ---- what is asked ----
def priority_classes() -> list[o.PriorityClass]:
    made = []
    for name, value in PRIORITIES.items():
        one = o.PriorityClass(apiVersion="scheduling.k8s.io/v1", kind="PriorityClass", value=value)
        one.metadata.name = name
        made.append(one)
    return made


def place_particularly(rng: random.Random, spec: o.PodSpec, app: str) -> None:
    """Some pods shun their like, or spread over the zones, or matter more or less than others."""
    kind = rng.choice(("", "", "", "", "apart", "spread", "loosely", "near"))
    if kind == "apart":
        terms = spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution
        terms.add(topologyKey=HOST).labelSelector.matchLabels["app"] = app
    elif kind == "near":
        wish = spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution.add(weight=50)
        wish.podAffinityTerm.topologyKey = ZONE
        wish.podAffinityTerm.labelSelector.matchLabels["app"] = app
    elif kind:
        when = "DoNotSchedule" if kind == "spread" else "ScheduleAnyway"
        rule = spec.topologySpreadConstraints.add(maxSkew=1, topologyKey=ZONE, whenUnsatisfiable=when)
        rule.labelSelector.matchLabels["app"] = app
    if rng.random() < 0.3:
        spec.priorityClassName = rng.choice(sorted(PRIORITIES))


def gang(name: str, command: Iterable[str], cpu: str, image: str) -> list[Object]:
    """A PodGroup and its members, which run together or not at all."""
    group = o.PodGroup(apiVersion="scheduling.x-k8s.io/v1alpha1", kind="PodGroup")
    group.metadata.name, group.metadata.namespace = name, "default"
    group.spec.minMember = GANG
    made: list[Object] = [group]
    for number in range(GANG):
        member = o.Pod(apiVersion="v1", kind="Pod")
        member.metadata.name, member.metadata.namespace = f"{name}{number}", "default"
        member.metadata.labels[GROUP_LABEL] = name
        container = member.spec.containers.add(name="main", image=image, command=list(command))
        container.resources.requests["cpu"].text = cpu
        member.spec.terminationGracePeriodSeconds = 1
        made.append(member)
    return made


def budget(name: str, app: str) -> o.PodDisruptionBudget:
    made = o.PodDisruptionBudget(apiVersion="policy/v1", kind="PodDisruptionBudget")
    made.metadata.name, made.metadata.namespace = name, "default"
    made.spec.minAvailable.number = 1
    made.spec.selector.matchLabels["app"] = app
    return made


# ---- what is right at once ----
def misplaced(pod: o.Pod, others: Iterable[o.Pod], labels: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """What a pod that was just bound must not have met. `others`: bound and not ended; `labels`: of the nodes."""
    here = labels.get(pod.spec.nodeName, {})
    for other in others:
        if other.metadata.uid == pod.metadata.uid:
            continue
        there = labels.get(other.spec.nodeName, {})
        for one, two in ((pod, other), (other, pod)):
            for term in one.spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution:
                together = here.get(term.topologyKey, "") == there.get(term.topologyKey, "") != ""
                if together and one.metadata.namespace == two.metadata.namespace and _selects(term.labelSelector, two):
                    yield f"{pod.metadata.name} on {pod.spec.nodeName} beside {other.metadata.name}, against its rule"


def _selects(selector: o.LabelSelector, pod: o.Pod) -> bool:
    return all(pod.metadata.labels.get(key) == value for key, value in selector.matchLabels.items())


def preempted_for(pod: o.Pod) -> str:
    """namespace/name of the pod for which this one was evicted."""
    for one in pod.status.conditions:
        if one.type == "DisruptionTarget" and one.reason == "PreemptionByScheduler":
            return one.message.split(" ")[3]
    return ""


# ---- what is right at rest ----
def overlooked(objects: Mapping[Key, Object], created: Mapping[Key, int]) -> Iterator[str]:
    """Pods that wait, though a fresh look at the cluster finds them a place or victims, or that tell other reasons than
    the true ones."""
    snapshot, classes = Snapshot(), Classes()
    events = []
    for kind in WATCHED:
        for key, found in objects.items():
            if key.kind == kind:
                record = Record(key, found, b"", created[key], created[key])
                events.append(Event(key, created[key], None, record))
    snapshot.apply(events)
    queue = []
    for key, found in objects.items():
        if isinstance(found, o.Pod) and waits(found):
            arrival = arrival_of(created[key], key.name, found.metadata.uid)
            queue.append(Waiting(found.metadata.uid, key, classes.of(found), arrival))
    plan = Scheduler().schedule(snapshot, order(queue))
    yield from _wrong(plan, objects)


def waits(pod: o.Pod) -> bool:
    meta = pod.metadata
    return not (pod.spec.nodeName or pod.spec.schedulingGates or meta.HasField("deletionTimestamp"))


def _wrong(plan: Plan, objects: Mapping[Key, Object]) -> Iterator[str]:
    for binding in plan.bindings:
        yield f"pod {binding.waiting.key.name} is pending, though {binding.node} would take it"
    pushing = {one.waiting.uid: one.node for one in plan.preemptions}
    for waiting, story in plan.refusals:
        pod = objects[waiting.key]
        assert isinstance(pod, o.Pod)
        node = pod.status.nominatedNodeName
        if pushing.get(waiting.uid, "") != "" and not node:
            yield f"pod {waiting.key.name} is pending, though it may have others evicted on {pushing[waiting.uid]}"
        said = next((one.message for one in pod.status.conditions if one.type == "PodScheduled"), "")
        if not same_story(said, story.message):
            yield f"pod {waiting.key.name} is pending and says {said!r}; the truth is {story.message!r}"
