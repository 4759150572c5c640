"""Shared GPUs through the core: which devices a pod gets, which node, and what it says when there is none."""

from __future__ import annotations

from shoal.master.model import Event, Key, Object, Record, key_of
from shoal.master.scheduler.classes import compile_class
from shoal.master.scheduler.core import Plan, Scheduler, Waiting
from shoal.master.scheduler.snapshot import Snapshot
from shoal.proto.rules.resources import GPU, GPU_DEVICES, GPU_MILLI
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import node, pod


def added(obj: Object) -> Event:
    record = Record(key_of(obj), obj, obj.SerializeToString(), 1, 1)
    return Event(record.key, 1, None, record)


def machine(name: str, gpus: int, cpu: str = "8") -> o.Node:
    made = node(name, cpu=cpu)
    made.status.allocatable[GPU].text = str(gpus)
    return made


def asking(name: str, resource: str = "", amount: int = 0, cpu: str = "1") -> o.Pod:
    made = pod(name, cpu=cpu)
    if resource:
        made.spec.containers[0].resources.requests[resource].text = str(amount)
    return made


def place(snapshot: Snapshot, *pods: o.Pod) -> Plan:
    queue = [Waiting(one.metadata.uid, Key("Pod", "default", one.metadata.name), compile_class(one)) for one in pods]
    return Scheduler().schedule(snapshot, queue)


def snapshot_of(*objects: Object) -> Snapshot:
    snapshot = Snapshot()
    snapshot.apply([added(obj) for obj in objects])
    return snapshot


def devices(snapshot: Snapshot, *pods: o.Pod) -> list[tuple[int, ...]]:
    holds = [snapshot.held(one.metadata.uid) for one in pods]
    return [hold.devices if hold else () for hold in holds]


def test_a_share_takes_the_fullest_device_and_whole_ones_the_first_free() -> None:
    snapshot = snapshot_of(machine("a", 4))
    pods = [
        asking("p0", GPU_MILLI, 300),
        asking("p1", GPU, 1),
        asking("p2", GPU_MILLI, 800),
        asking("p3", GPU_MILLI, 150),
        asking("p4", GPU_MILLI, 700),
    ]
    place(snapshot, *pods)
    assert devices(snapshot, *pods) == [(0,), (1,), (2,), (2,), (0,)]
    assert snapshot.gpu_left.tolist() == [[0, 0, 50, 1000]]
    for one in pods:
        snapshot.undo(one.metadata.uid)
    assert snapshot.gpu_left.tolist() == [[1000] * 4]


def test_devices_that_do_not_suffice_are_the_reason() -> None:
    snapshot = snapshot_of(machine("a", 1), machine("b", 2), node("c"))
    plan = place(snapshot, asking("p0", GPU, 3), asking("p1", GPU_MILLI, 2000), asking("p2", GPU, 2))
    reasons = [dict(refusal.explanation.counts) for refusal in plan.refusals]
    assert [binding.node for binding in plan.bindings] == ["b"]
    assert reasons == [{"Insufficient shoal.dev/gpu": 3}, {"Insufficient shoal.dev/gpu": 3}]


def test_what_bound_pods_say_of_their_devices_is_believed() -> None:
    bound = asking("old", GPU_MILLI, 600)
    bound.spec.nodeName = "a"
    bound.metadata.annotations[GPU_DEVICES] = "1"
    snapshot = snapshot_of(machine("a", 2), bound)
    assert snapshot.gpu_left.tolist() == [[1000, 400]]
    new = asking("new", GPU_MILLI, 400)
    place(snapshot, new)
    assert devices(snapshot, new) == [(1,)]


def test_a_pod_without_devices_keeps_away_from_idle_ones() -> None:
    snapshot = snapshot_of(machine("a", 2, cpu="64"), node("b", cpu="4"))
    assert [binding.node for binding in place(snapshot, asking("p")).bindings] == ["b"]


def test_a_share_goes_where_it_breaks_up_least() -> None:
    """The pods that are there ask for whole devices: a rest on b is of no use to them, all of a is."""
    others = [asking(f"w{i}", GPU, 1) for i in range(3)]
    rest = asking("rest", GPU_MILLI, 500)
    for one in (*others, rest):
        one.spec.nodeName = "b"
    for one, device in zip((*others, rest), ("0", "1", "2", "3"), strict=True):
        one.metadata.annotations[GPU_DEVICES] = device
    snapshot = snapshot_of(machine("a", 1), machine("b", 8), *others, rest)
    assert [binding.node for binding in place(snapshot, asking("p", GPU_MILLI, 500)).bindings] == ["b"]
