"""Replays a workload through Shoal's scheduling core: real nodes and pods, `Scheduler.schedule`, one profile."""

from __future__ import annotations

from collections.abc import Sequence

from bench.openb import Ask, Machine
from bench.openb_replay import Meter

from shoal.master.model import Event, Key, Record, key_of
from shoal.master.scheduler.classes import Classes
from shoal.master.scheduler.core import Scheduler, Waiting
from shoal.master.scheduler.gpus import WHOLE
from shoal.master.scheduler.snapshot import Snapshot
from shoal.proto.v1 import objects_pb2 as o

MODEL_LABEL = "shoal.dev/gpu-model"
POD_SLOTS = "100000"  # the trace knows no limit
PROFILE = "bin-packing"
WINDOW = 1000  # pods in one call; they are placed in their order


def node_of(machine: Machine, number: int) -> o.Node:
    """Its name keeps the order of the nodes."""
    node = o.Node(apiVersion="v1", kind="Node")
    node.metadata.name = f"{number:05d}-{machine.name}"
    node.metadata.labels[MODEL_LABEL] = machine.model
    there = {
        "cpu": f"{machine.cpu}m",
        "memory": f"{machine.memory}Mi",
        "pods": POD_SLOTS,
        "shoal.dev/gpu": str(machine.gpus),
    }
    for name, text in there.items():
        node.status.allocatable[name].text = text
    node.status.conditions.add(type="Ready", status="True")
    return node


def pod_of(ask: Ask) -> o.Pod:
    pod = o.Pod(apiVersion="v1", kind="Pod")
    pod.metadata.namespace = "default"
    pod.spec.schedulerName = PROFILE
    wanted = {"cpu": f"{ask.cpu}m", "memory": f"{ask.memory}Mi"}
    if ask.want.milli == WHOLE:
        wanted["shoal.dev/gpu"] = str(ask.want.number)
    elif ask.want.milli:
        wanted["shoal.dev/gpu-milli"] = str(ask.want.milli)
    container = pod.spec.containers.add(name="main", image="trace")
    for name, text in wanted.items():
        container.resources.requests[name].text = text
    if ask.models:
        needed = pod.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution
        term = needed.nodeSelectorTerms.add()
        term.matchExpressions.add(key=MODEL_LABEL, operator="In", values=ask.models)
    return pod


def snapshot_of(machines: Sequence[Machine]) -> Snapshot:
    """In the order of their names."""
    snapshot = Snapshot()
    events = []
    for number, machine in enumerate(machines):
        node = node_of(machine, number)
        record = Record(key_of(node), node, node.SerializeToString(), 1, 1)
        events.append(Event(record.key, 1, None, record))
    snapshot.apply(events)
    return snapshot


def replay_core(machines: Sequence[Machine], queue: Sequence[Ask]) -> dict[int, float]:
    """The allocated share at each level of arrival, in %."""
    snapshot, scheduler, classes = snapshot_of(machines), Scheduler(), Classes()
    compiled = {ask: classes.of(pod_of(ask)) for ask in set(queue)}
    waiting = [
        Waiting(str(number), Key("Pod", "default", str(number)), compiled[ask]) for number, ask in enumerate(queue)
    ]
    meter = Meter(sum(machine.gpus for machine in machines) * WHOLE)
    for start in range(0, len(waiting), WINDOW):
        scheduler.schedule(snapshot, waiting[start : start + WINDOW])
    for number, ask in enumerate(queue):
        meter.note(ask, snapshot.held(str(number)) is not None)
    return meter.levels()
