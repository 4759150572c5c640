"""Which devices pods get, and which nodes keep theirs whole, on the plain scheduler and on the fast one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from shoal.master.scheduler.classes import PodClass
from tests.reference.cluster import Cluster, Pod
from tests.reference.devices import GPU, Typical
from tests.reference.nodes import Node
from tests.reference.scheduler import Outcome
from tests.scheduler_cases import GIB, Decide, both, cluster, node, on, place, pods, reasons, what


def box(name: str, gpus: int, **fields: object) -> Node:
    made = node(name, **fields)  # type: ignore[arg-type]
    return replace(made, alloc={**made.alloc, GPU: gpus})


def share(milli: int, **fields: object) -> PodClass:
    return what(cpu=100, gpu_milli=milli, **fields)  # type: ignore[arg-type]


def whole(count: int, **fields: object) -> PodClass:
    return what(cpu=100, gpu_count=count, **fields)  # type: ignore[arg-type]


def one(decide: Decide, where: Cluster, asked: PodClass) -> Outcome:
    return decide(where, [Pod("asked", asked)])[0]


@both
def test_a_share_takes_the_device_with_the_least_left(decide: Decide) -> None:
    held = [on("n", share(300), "x", devices=(1,)), on("n", share(600), "y", devices=(2,))]
    where = cluster([box("n", 4)], held)
    assert one(decide, where, share(400)).devices == (2,)
    assert one(decide, where, share(500)).devices == (1,)
    assert one(decide, where, share(701)).devices == (0,)


@both
def test_whole_devices_are_free_ones_from_the_first_on(decide: Decide) -> None:
    where = cluster([box("n", 4)], [on("n", share(1), "x", devices=(1,))])
    assert one(decide, where, whole(2)).devices == (0, 2)
    assert one(decide, where, whole(3)).devices == (0, 2, 3)
    assert reasons(decide, where, whole(4)) == {"Insufficient shoal.dev/gpu": 1}


@both
def test_shares_of_several_devices_do_not_add_up(decide: Decide) -> None:
    held = [on("n", share(600), f"x{device}", devices=(device,)) for device in range(4)]
    where = cluster([box("n", 4), node("none")], held)
    assert reasons(decide, where, share(500)) == {"Insufficient shoal.dev/gpu-milli": 2}
    assert [found.devices for found in decide(where, pods(share(400), 5))] == [(0,), (1,), (2,), (3,), ()]


@both
def test_a_share_goes_where_devices_are_broken_up_already(decide: Decide) -> None:
    where = cluster([box("a", 2), box("b", 2)], [on("b", share(500), "x", devices=(0,))])
    assert place(decide, where, *pods(share(500))) == ["b"]


@both
def test_pods_without_devices_keep_away_from_idle_ones(decide: Decide) -> None:
    where = cluster([box("a", 4), node("b", cpu=500)])
    assert place(decide, where, *pods(what(cpu=400))) == ["b"]


def scarce() -> Cluster:
    """As many idle devices everywhere; a core is asked for per device, and `b` and `c` have more than that."""
    asked = what(cpu=1000, gpu_count=1)
    nodes = [box("a", 4, cpu=6000), box("b", 4, cpu=16000, memory=GIB), box("c", 4, cpu=9000, memory=GIB), box("x", 1)]
    return cluster(nodes, [on("x", asked, "x", devices=(0,))])


@both
def test_pods_without_devices_leave_the_cpu_that_idle_ones_need(decide: Decide) -> None:
    where = scarce()
    where.nodes["x"] = box("x", 1, cpu=1000)
    assert place(decide, where, *pods(what(cpu=2000, memory=GIB // 2))) == ["b"]
    where.pods.clear()
    where.typical = Typical()
    del where.nodes["x"]
    assert place(decide, where, *pods(what(cpu=2000, memory=GIB // 2))) == ["a"], "nobody is known to ask for devices"


@both
def test_a_run_of_pods_without_devices_takes_spare_cpu_first(decide: Decide) -> None:
    """The fifth of a node may cost devices what the first did not."""
    where = scarce()
    found = Counter(place(decide, where, *pods(what(cpu=200, memory=1), 90)))
    assert found == {"x": 15, "b": 52, "c": 17, "a": 6}


@both
def test_a_node_that_lost_a_device_has_no_debts(decide: Decide) -> None:
    """Of its two devices the second is gone, with a pod still on it; another node has more."""
    where = cluster([box("a", 1), box("b", 4)], [on("a", whole(1), "x", devices=(1,))])
    assert one(decide, where, whole(1)).node == "a"
    where.hold(on("a", share(600), "y", devices=(0,)))
    where.nodes["b"] = box("b", 4, ready=False)
    assert one(decide, where, share(400)).devices == (0,)
    where = cluster([box("a", 1), box("b", 2)], [on("a", whole(1), "x", devices=(1,))])
    where.pods |= {f"y{i}": on("b", whole(1), f"y{i}", devices=(i,)) for i in range(2)}
    assert place(decide, where, *pods(what(cpu=100))) == ["b"], "idle devices are counted as they are"


@both
def test_a_device_that_is_lost_is_not_won_by_eviction(decide: Decide) -> None:
    """Its pod may go, but nothing comes free with it; another node has more devices."""
    held = [on("a", whole(1), "x", devices=(1,)), on("a", whole(1, priority=200), "y", devices=(0,))]
    where = cluster([box("a", 1), box("b", 4, ready=False)], held)
    assert not one(decide, where, whole(1, priority=100)).nominated
    where.pods["y"] = replace(where.pods["y"], what=whole(1))
    found = one(decide, where, whole(1, priority=100))
    assert (found.nominated, found.victims) == ("a", ("y",))
