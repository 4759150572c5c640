"""Node lifecycle, the brake, eviction, and what becomes of pods on lost nodes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from shoal.master.controllers import deployment, eviction, gc, podgc, replicaset
from shoal.master.controllers import node as nodes
from shoal.master.controllers.base import condition, instant, seconds, set_condition
from shoal.master.controllers.node import Beats
from shoal.master.model import Delete, Key, Modify, Object
from shoal.proto.v1 import objects_pb2 as o
from tests.control_steps import Steps
from tests.control_world import World, namespace, node, pod
from tests.control_world import replicaset as rs_of

PERIOD = 5.0
GRACE = 15.0


class Cluster(Steps):
    """Nodes n0.. with a heart each, all controllers, a clock that moves both times."""

    def __init__(self, count: int, *objects: Object, period: float = PERIOD) -> None:
        self.clock = 500.0
        self.beats = Beats(self.clock, {}, 0.0, period)
        self.alive = {f"n{i}" for i in range(count)}
        rng = random.Random(3)
        controllers = [
            nodes.controller(lambda: self.beats),
            eviction.controller(lambda: self.beats),
            deployment.controller(rng),
            replicaset.controller(rng),
            podgc.controller(),
            gc.controller(),
        ]
        world = World([namespace(), *(node(name, is_ready=False) for name in sorted(self.alive)), *objects])
        super().__init__(world, controllers)
        self.pass_time(0)

    def pass_time(self, duration: float, *, beating: bool = True) -> None:
        """Second by second: hearts beat, every sweep and appointment is kept."""
        for _ in range(int(duration) + 1):
            seen = dict(self.beats.last_seen)
            if beating:
                seen |= dict.fromkeys(self.alive, self.clock)
            self.beats = replace(self.beats, clock=self.clock, last_seen=seen)
            self.dirty["node", nodes.SWEEP] = None
            for name in self.node_names():
                self.dirty["eviction", Key("Node", "", name)] = None
            self.settle(agents=False)
            self.clock += 1
            self.now += 1

    def node_names(self) -> list[str]:
        return sorted(n.metadata.name for n in self.world.all("Node"))

    def state(self, name: str) -> tuple[str, list[str]]:
        found = self.world.get("Node", "", name)
        assert isinstance(found, o.Node)
        is_ready = condition(found.status.conditions, "Ready")
        return is_ready.status if is_ready else "", [f"{t.key}:{t.effect}" for t in found.spec.taints]

    def pod(self, name: str) -> o.Pod | None:
        found = self.world.get("Pod", "default", name)
        return found if isinstance(found, o.Pod) else None


UNREACHABLE = ["node.shoal.dev/unreachable:NoExecute"]


def running(name: str, on: str, **more: object) -> o.Pod:
    made = pod(name, node=on, phase="Running", is_ready=True)
    status = made.status.containerStatuses.add(name="c", ready=True)
    status.state.running.startedAt.CopyFrom(instant(1.0))
    return made


def test_a_beating_node_becomes_ready() -> None:
    c = Cluster(1)
    assert c.state("n0") == ("True", [])
    assert c.sentences[0].endswith("n0 is ready")


def test_three_missed_beats_make_a_node_unknown_and_its_pods_lost() -> None:
    c = Cluster(3, running("p", "n0"))
    c.alive.remove("n0")
    c.pass_time(14)
    assert c.state("n0") == ("True", [])
    c.pass_time(3)
    assert c.state("n0") == ("Unknown", UNREACHABLE)
    lost = c.pod("p")
    assert lost is not None and lost.status.phase == "Running"
    c.pass_time(6)
    lost = c.pod("p")
    assert lost is not None
    assert (lost.status.phase, lost.status.reason) == ("Failed", "Lost")
    assert lost.status.containerStatuses[0].state.terminated.reason == "ContainerStatusUnknown"
    assert not lost.status.containerStatuses[0].ready


def test_lost_pods_are_replaced_and_their_records_go_when_the_node_is_back() -> None:
    owner = rs_of(replicas=2)
    c = Cluster(3, owner)
    c.settle()
    before = {p.metadata.uid for p in c.world.pods()}
    assert {p.spec.nodeName for p in c.world.pods()} == {"n0"}
    c.alive.remove("n0")
    c.pass_time(25)
    phases = sorted(p.status.phase for p in c.world.pods())
    assert phases == ["Failed", "Failed", "Pending", "Pending"]
    c.alive.add("n0")
    c.pass_time(1)
    assert c.state("n0") == ("True", [])
    assert sorted(p.status.phase for p in c.world.pods()) == ["Pending", "Pending"]
    assert not before & {p.metadata.uid for p in c.world.pods()}


def test_a_node_that_returns_before_the_toleration_ends_keeps_its_pods() -> None:
    c = Cluster(3, running("p", "n0"))
    c.alive.remove("n0")
    c.pass_time(18)
    assert c.state("n0") == ("Unknown", UNREACHABLE)
    c.alive.add("n0")
    c.pass_time(20)
    assert c.state("n0") == ("True", [])
    kept = c.pod("p")
    assert kept is not None and kept.status.phase == "Running"


def test_a_pod_that_tolerates_for_longer_stays_longer_and_one_for_ever_stays() -> None:
    longer, ever = running("longer", "n0"), running("ever", "n0")
    longer.spec.tolerations.append(
        o.Toleration(key=nodes.UNREACHABLE, operator="Exists", effect="NoExecute", tolerationSeconds=60)
    )
    ever.spec.tolerations.append(o.Toleration(operator="Exists"))
    c = Cluster(3, longer, ever)
    c.alive.remove("n0")
    c.pass_time(60)
    assert [p.status.phase for p in (c.pod("longer"), c.pod("ever")) if p] == ["Running", "Running"]
    c.pass_time(20)
    assert [p.status.phase for p in (c.pod("longer"), c.pod("ever")) if p] == ["Failed", "Running"]


def test_a_deleted_pod_on_a_lost_node_goes_with_it() -> None:
    going = running("p", "n0")
    going.metadata.deletionTimestamp.seconds = 1
    c = Cluster(3, going)
    assert c.pod("p") is not None
    c.alive.remove("n0")
    c.pass_time(25)
    assert c.pod("p") is None


# ---- the brake ----
def test_the_brake_holds_when_many_vanish_at_once() -> None:
    c = Cluster(9, *(running(f"p{i}", f"n{i}") for i in range(9)))
    c.alive -= {"n0", "n1", "n2"}
    c.pass_time(60)
    for index in range(3):
        assert c.state(f"n{index}") == ("Unknown", [])
    assert all(p.status.phase == "Running" for p in c.world.pods())
    assert any("3 of 9 nodes vanished at once" in s for s in c.sentences)


def test_the_brake_is_released_when_they_come_back() -> None:
    c = Cluster(9, running("p0", "n0"))
    c.alive -= {"n0", "n1", "n2"}
    c.pass_time(30)
    c.alive |= {"n1", "n2"}
    c.pass_time(3)
    assert c.state("n0") == ("Unknown", UNREACHABLE)
    c.pass_time(6)
    lost = c.pod("p0")
    assert lost is not None and lost.status.reason == "Lost"


@pytest.mark.parametrize(("total", "gone"), [(10, 3), (4, 2), (3, 2), (2, 2)])
def test_few_or_a_small_share_do_not_brake(total: int, gone: int) -> None:
    c = Cluster(total)
    c.alive -= {f"n{i}" for i in range(gone)}
    c.pass_time(20)
    assert c.state("n0") == ("Unknown", UNREACHABLE)


def test_a_partition_is_seen_before_the_first_pod_is_given_up() -> None:
    """Heartbeats are jittered: the last nodes may fall silent almost a period after the first, and a period may be
    longer than what pods tolerate."""
    c = Cluster(4, *(running(f"p{i}", f"n{i}") for i in range(4)), period=10.0)
    c.alive.discard("n0")
    c.pass_time(8)
    c.alive.clear()
    c.pass_time(100)
    assert all(p.status.phase == "Running" for p in c.world.pods())
    assert [c.state(f"n{i}")[1] for i in range(4)] == [[], [], [], []]


def test_nodes_that_died_one_by_one_do_not_brake() -> None:
    c = Cluster(6)
    for index in range(3):
        c.alive.discard(f"n{index}")
        c.pass_time(40)
    assert [c.state(f"n{i}") for i in range(3)] == [("Unknown", UNREACHABLE)] * 3


# ---- what the master cannot know ----
def test_while_the_master_cannot_judge_nobody_is_lost() -> None:
    c = Cluster(3, running("p", "n0"))
    c.alive.clear()
    for _ in range(6):  # etcd is away: the caller moves the moment from which silence counts
        c.beats = replace(c.beats, judging_since=c.clock)
        c.pass_time(9)
    assert c.state("n0") == ("True", [])
    kept = c.pod("p")
    assert kept is not None and kept.status.phase == "Running"


def test_a_new_leader_does_not_take_old_losses_for_a_partition() -> None:
    c = Cluster(6)
    for index in range(3):
        c.alive.discard(f"n{index}")
        c.pass_time(40)
    c.beats = Beats(c.clock, {}, c.clock, PERIOD)
    c.pass_time(30)
    assert [c.state(f"n{i}") for i in range(3)] == [("Unknown", UNREACHABLE)] * 3
    assert not any("at once" in s for s in c.sentences)


def test_a_new_leader_leaves_a_lost_node_lost_until_it_beats() -> None:
    c = Cluster(3)
    c.alive.discard("n0")
    c.pass_time(20)
    c.beats = Beats(c.clock, {}, c.clock, PERIOD)
    c.pass_time(3)
    assert c.state("n0") == ("Unknown", UNREACHABLE)


def test_a_jump_of_the_wall_clock_evicts_nobody() -> None:
    longer = running("p", "n0")
    longer.spec.tolerations.append(o.Toleration(operator="Exists", tolerationSeconds=300))
    c = Cluster(3, longer)
    c.alive.discard("n0")
    c.pass_time(20)
    c.now += 100_000
    c.pass_time(5)
    kept = c.pod("p")
    assert kept is not None and kept.status.phase == "Running"


# ---- not ready, taints of people, nodes that are gone ----
def test_a_runtime_that_is_not_ready_makes_the_node_not_ready() -> None:
    c = Cluster(3, running("p", "n0"))

    def edit(found: Object) -> bool:
        assert isinstance(found, o.Node)
        found.status.conditions.append(o.Condition(type="RuntimeReady", status="False", message="no spawner"))
        return True

    c.world.commit(Modify(Key("Node", "", "n0"), edit))
    c.pass_time(2)
    assert c.state("n0") == ("False", ["node.shoal.dev/not-ready:NoExecute"])
    c.pass_time(6)
    going = c.pod("p")
    assert going is not None and going.metadata.HasField("deletionTimestamp")
    assert going.status.phase == "Running"


def say(cluster: Cluster, name: str, type_: str, status: str) -> None:
    """What its agent reports."""

    def edit(found: Object) -> bool:
        assert isinstance(found, o.Node)
        kept = [c for c in found.status.conditions if c.type != type_]
        del found.status.conditions[:]
        found.status.conditions.extend([*kept, o.Condition(type=type_, status=status)])
        return True

    cluster.world.apply([Modify(Key("Node", "", name), edit)])
    cluster.pass_time(1)


def taints_of(cluster: Cluster, name: str) -> list[tuple[str, str]]:
    found = cluster.world.get("Node", "", name)
    assert isinstance(found, o.Node)
    return [(t.key, t.effect) for t in found.spec.taints]


def test_pressure_keeps_new_pods_away_and_goes_when_it_is_over() -> None:
    cluster = Cluster(2, running("calm", "n0"))
    say(cluster, "n0", "MemoryPressure", "True")
    say(cluster, "n0", "DiskPressure", "True")
    assert taints_of(cluster, "n0") == [
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ]
    assert not taints_of(cluster, "n1")
    cluster.pass_time(20)
    assert cluster.world.get("Pod", "default", "calm") is not None, "who is there stays"
    say(cluster, "n0", "MemoryPressure", "False")
    assert taints_of(cluster, "n0") == [("node.kubernetes.io/disk-pressure", "NoSchedule")]
    say(cluster, "n0", "DiskPressure", "Unknown")
    assert not taints_of(cluster, "n0")


def test_a_persons_own_taint_stays_under_pressure() -> None:
    cluster = Cluster(1)

    def taint(found: Object) -> bool:
        assert isinstance(found, o.Node)
        found.spec.taints.add(key="mine", effect="NoSchedule")
        return True

    cluster.world.apply([Modify(Key("Node", "", "n0"), taint)])
    say(cluster, "n0", "PIDPressure", "True")
    say(cluster, "n0", "PIDPressure", "False")
    assert taints_of(cluster, "n0") == [("mine", "NoSchedule")]


def test_a_no_execute_taint_evicts_gracefully_after_the_tolerated_time() -> None:
    soon, later = running("soon", "n0"), running("later", "n0")
    later.spec.tolerations.append(o.Toleration(key="maintenance", operator="Exists", tolerationSeconds=30))
    c = Cluster(3, soon, later)

    def edit(found: Object) -> bool:
        assert isinstance(found, o.Node)
        found.spec.taints.append(o.Taint(key="maintenance", effect="NoExecute", timeAdded=instant(c.now)))
        return True

    c.world.commit(Modify(Key("Node", "", "n0"), edit))
    start = c.now
    c.pass_time(2)
    gone, stays = c.pod("soon"), c.pod("later")
    assert gone is not None and stays is not None
    assert gone.metadata.deletionGracePeriodSeconds == 30
    assert seconds(gone.metadata.deletionTimestamp) >= start + 30
    assert not stays.metadata.HasField("deletionTimestamp")
    c.pass_time(31)
    stays = c.pod("later")
    assert stays is not None and stays.metadata.HasField("deletionTimestamp")


def test_appointments_say_when_the_next_toleration_ends() -> None:
    tolerant = running("p", "n0")
    tolerant.spec.tolerations.append(o.Toleration(key="m", operator="Exists", tolerationSeconds=30))
    world = World([node("n0", taints=[("m", "", "NoExecute")]), tolerant])
    held = world.get("Node", "", "n0")
    assert isinstance(held, o.Node)

    def edit(found: Object) -> bool:
        assert isinstance(found, o.Node)
        found.spec.taints[0].timeAdded.CopyFrom(instant(100.0))
        return True

    world.commit(Modify(Key("Node", "", "n0"), edit))
    outcome = eviction.reconcile(world, Key("Node", "", "n0"), 110.0, Beats(0.0, {"n0": 0.0}))
    assert outcome.changes == []
    assert outcome.again == pytest.approx(20.0, abs=0.1)


def test_pods_of_a_node_that_is_removed_go() -> None:
    c = Cluster(3, running("p", "n0"))
    c.world.commit(Delete(Key("Node", "", "n0")))
    c.alive.discard("n0")
    c.pass_time(0)
    assert c.pod("p") is None


def test_a_pod_bound_to_a_node_that_never_was_goes() -> None:
    c = Cluster(1, running("p", "nowhere"))
    assert c.pod("p") is None


def test_a_deleted_pod_that_was_never_bound_goes_at_once() -> None:
    going = pod("p")
    going.metadata.deletionTimestamp.seconds = 1
    held = pod("q")
    held.metadata.deletionTimestamp.seconds = 1
    held.metadata.finalizers.append("example.com/wait")
    c = Cluster(1, going, held)
    assert c.pod("p") is None
    assert c.pod("q") is not None


@pytest.mark.parametrize("seed", range(10))
def test_nodes_that_were_fine_are_passed_over_only_while_nothing_about_them_changes(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"n{i}" for i in range(8)]
    world = World([namespace(), *(node(name, is_ready=False) for name in names)])
    fine: nodes.Fine = {}
    seen = dict.fromkeys(names, 100.0)
    passed_over = 0
    for step in range(80):
        clock = 100.0 + step
        seen |= {name: clock for name in names if rng.random() < rng.choice((0.05, 0.9))}
        if rng.random() < 0.3:
            kind, status = rng.choice(("MemoryPressure", "RuntimeReady")), rng.choice(("True", "False"))
            world.commit(Modify(Key("Node", "", rng.choice(names)), reports(kind, status, clock)))
        beats = Beats(clock, seen, 0.0, PERIOD)
        plain = nodes.reconcile(world, nodes.SWEEP, clock, beats)
        again = nodes.reconcile(world, nodes.SWEEP, clock, beats, fine)
        passed_over += len(fine)
        assert [change.key for change in again.changes if isinstance(change, Modify)] == [
            change.key for change in plain.changes if isinstance(change, Modify)
        ]
        assert (again.said, again.did) == (plain.said, plain.did)
        world.apply(plain.changes)
    assert passed_over > 100, "most nodes are fine most of the time"


def reports(kind: str, status: str, now: float) -> Callable[[Object], bool]:
    def edit(found: Object) -> bool:
        assert isinstance(found, o.Node)
        return set_condition(found.status.conditions, o.Condition(type=kind, status=status), now)

    return edit
