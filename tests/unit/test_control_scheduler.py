"""The scheduler's core: fit, selectors, taints, readiness, spreading, and reasons with counts."""

from __future__ import annotations

import pytest

from shoal.master import volumes as rules
from shoal.master.controllers import storage
from shoal.master.model import Event, Key, Object, Record, key_of
from shoal.master.scheduler.classes import Classes, compile_class, load_of, requests_of
from shoal.master.scheduler.core import Plan, Waiting, schedule
from shoal.master.scheduler.explain import same_story
from shoal.master.scheduler.snapshot import Snapshot
from shoal.master.scheduling import sentence
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import claim, made_class, node, pod, replicaset, volume


def added(obj: Object, revision: int = 1) -> Event:
    key = key_of(obj)
    return Event(key, revision, None, Record(key, obj, obj.SerializeToString(), revision, revision))


def gone(obj: Object) -> Event:
    key = key_of(obj)
    return Event(key, 9, Record(key, obj, obj.SerializeToString(), 1, 1), None)


def snapshot_of(*objects: Object) -> Snapshot:
    snapshot = Snapshot()
    snapshot.apply([added(obj) for obj in objects])
    return snapshot


def waiting(one: o.Pod) -> Waiting:
    return Waiting(one.metadata.uid, Key("Pod", "default", one.metadata.name), compile_class(one))


def place(snapshot: Snapshot, *pods: o.Pod) -> Plan:
    return schedule(snapshot, [waiting(one) for one in pods])


def nodes_of(plan: Plan) -> list[str]:
    return [binding.node for binding in plan.bindings]


def test_replicas_of_one_owner_are_spread_over_the_nodes() -> None:
    rs = replicaset()
    snapshot = snapshot_of(*(node(f"n{i}") for i in range(3)))
    plan = place(snapshot, *(pod(f"p{i}", owner=rs, cpu="100m") for i in range(7)))
    assert nodes_of(plan) == ["n0", "n1", "n2", "n0", "n1", "n2", "n0"]


def test_pods_without_owner_go_where_most_is_free() -> None:
    snapshot = snapshot_of(node("a", cpu="2"), node("b", cpu="4"))
    assert nodes_of(place(snapshot, pod("x", cpu="1"))) == ["b"]


def test_pods_that_ask_for_nothing_spread() -> None:
    snapshot = snapshot_of(*(node(f"n{i}", cpu="1", memory="4Gi") for i in range(3)))
    bare = [pod(f"p{i}") for i in range(3)]
    found = [nodes_of(place(snapshot, one))[0] for one in bare] + nodes_of(place(snapshot, pod("p3"), pod("p4")))
    assert found == ["n0", "n1", "n2", "n0", "n1"]
    assert int(snapshot.used[:3].sum()) == 0, "what is assumed for the scores takes nothing away"
    assert snapshot.undo(bare[0].metadata.uid)
    assert nodes_of(place(snapshot, pod("p5"))) == ["n0"]
    assert snapshot.load.tolist() == [[200, 200, 100], [400 << 20, 400 << 20, 200 << 20]]


def test_a_node_that_comes_later_counts_what_its_bare_pods_are_taken_to_use() -> None:
    snapshot = snapshot_of(pod("early", node="m", phase="Running"), node("n"), node("m"))
    assert nodes_of(place(snapshot, pod("x"))) == ["n"]
    snapshot.apply([gone(node("n"))])
    assert snapshot.load.tolist() == [[100], [200 << 20]]


def test_what_a_container_does_not_say_is_assumed_for_the_scores_only() -> None:
    one = pod("x", cpu="0")
    one.spec.containers.add(name="second").resources.limits["memory"].text = "1Mi"
    assert load_of(one.spec) == (100, (200 << 20) + (1 << 20))
    assert requests_of(one.spec) == (("memory", 1 << 20), ("pods", 1))


def test_sidecars_count_in_the_scores_and_init_containers_do_not() -> None:
    one = pod("x", cpu="1", memory="1Gi")
    one.spec.initContainers.add(name="proxy", restartPolicy="Always").resources.requests["cpu"].text = "250m"
    one.spec.initContainers.add(name="migrate").resources.requests["cpu"].text = "4"
    assert load_of(one.spec) == (1250, (1 << 30) + (200 << 20))


def test_a_resource_that_is_used_up_is_not_given_twice() -> None:
    snapshot = snapshot_of(node("a", cpu="1"))
    plan = place(snapshot, pod("x", cpu="600m"), pod("y", cpu="600m"))
    assert nodes_of(plan) == ["a"]
    assert plan.refusals[0].explanation.message == (
        "0/1 nodes are available: 1 Insufficient cpu (short of 200m at best)."
    )


def test_every_pod_takes_a_pod_slot() -> None:
    snapshot = snapshot_of(node("a", pods="2"))
    plan = place(snapshot, pod("x"), pod("y"), pod("z"))
    assert nodes_of(plan) == ["a", "a"]
    assert plan.refusals[0].explanation.message == "0/1 nodes are available: 1 Too many pods."


def test_the_reasons_count_every_node_once() -> None:
    nodes = [node(f"full{i}", cpu="1") for i in range(9)]
    nodes += [node(f"tainted{i}", taints=[("a", "b", "NoSchedule")]) for i in range(2)]
    plan = place(snapshot_of(*nodes, node("away", is_ready=False)), pod("x", cpu="1500m"))
    story = plan.refusals[0].explanation
    assert story.message == (
        "0/12 nodes are available: 9 Insufficient cpu (short of 500m at best), "
        "2 node(s) had untolerated taint {a=b:NoSchedule}, 1 node(s) were not ready."
    )
    assert sum(number for _, number in story.counts) == 12
    assert story.by_usage


def test_without_nodes_it_says_so() -> None:
    plan = place(Snapshot(), pod("x"))
    assert plan.refusals[0].explanation.message == "0/0 nodes are available: no nodes are registered."


def test_memory_that_is_missing_is_said_in_its_unit() -> None:
    plan = place(snapshot_of(node("a", memory="1Gi")), pod("x", memory="1536Mi"))
    assert "1 Insufficient memory (short of 512Mi at best)" in plan.refusals[0].explanation.message


def test_a_resource_no_node_has_is_refused_and_adds_no_row() -> None:
    snapshot = snapshot_of(node("a"))
    one = pod("x")
    one.spec.containers[0].resources.requests["example.com/gpu"].text = "1"
    plan = place(snapshot, one)
    assert "1 Insufficient example.com/gpu" in plan.refusals[0].explanation.message
    assert "example.com/gpu" not in snapshot.resources


def test_an_extended_resource_is_counted() -> None:
    owner = node("a")
    owner.status.allocatable["example.com/gpu"].text = "1"
    one, two = pod("x"), pod("y")
    for each in (one, two):
        each.spec.containers[0].resources.limits["example.com/gpu"].text = "1"
    plan = place(snapshot_of(owner, node("b")), one, two)
    assert nodes_of(plan) == ["a"]
    assert "2 Insufficient example.com/gpu" in plan.refusals[0].explanation.message


def test_the_node_selector_holds() -> None:
    one = pod("x")
    one.spec.nodeSelector["disk"] = "ssd"
    assert nodes_of(place(snapshot_of(node("a"), node("b", disk="ssd")), one)) == ["b"]
    refused = place(snapshot_of(node("a")), one).refusals[0].explanation
    assert "1 node(s) didn't match Pod's node affinity/selector" in refused.message
    assert not refused.by_usage


@pytest.mark.parametrize(
    ("toleration", "placed"),
    [
        (o.Toleration(key="a", operator="Equal", value="b", effect="NoSchedule"), True),
        (o.Toleration(key="a", value="b"), True),
        (o.Toleration(key="a", operator="Exists"), True),
        (o.Toleration(operator="Exists"), True),
        (o.Toleration(key="a", value="c"), False),
        (o.Toleration(key="a", operator="Exists", effect="NoExecute"), False),
    ],
)
def test_tolerations(toleration: o.Toleration, placed: bool) -> None:
    one = pod("x")
    one.spec.tolerations.append(toleration)
    plan = place(snapshot_of(node("a", taints=[("a", "b", "NoSchedule")])), one)
    assert bool(plan.bindings) is placed


def test_prefer_no_schedule_only_scores() -> None:
    soft = node("a", cpu="64", taints=[("a", "b", "PreferNoSchedule")])
    snapshot = snapshot_of(soft, node("b", cpu="1"))
    assert nodes_of(place(snapshot, pod("x", cpu="600m"), pod("y", cpu="600m"))) == ["b", "a"]


def test_ended_pods_give_back_and_deleted_ones_do_not_before_their_end() -> None:
    going = pod("old", node="a", phase="Running", cpu="3")
    going.metadata.deletionTimestamp.seconds = 5
    snapshot = snapshot_of(node("a"), going)
    assert place(snapshot, pod("x", cpu="2")).refusals
    ended = o.Pod.FromString(going.SerializeToString())
    ended.status.phase = "Failed"
    assert snapshot.apply([added(ended)]).freed
    assert nodes_of(place(snapshot, pod("x", cpu="2"))) == ["a"]


def test_pods_of_a_node_that_comes_later_count_there() -> None:
    snapshot = snapshot_of(pod("early", node="m", phase="Running", cpu="3"), node("a", cpu="1"))
    snapshot.apply([added(node("m")), added(node("z", cpu="1"))])
    assert snapshot.names == ["a", "m", "z"]
    assert int(snapshot.free("cpu")[1]) == 1000
    snapshot.apply([gone(node("a"))])
    assert snapshot.names == ["m", "z"]
    assert int(snapshot.free("cpu")[0]) == 1000


def test_a_name_that_is_used_again_is_another_pod() -> None:
    first = pod("x", node="a", phase="Running", cpu="3")
    snapshot = snapshot_of(node("a"), first)
    second = pod("x", node="a", phase="Running", cpu="1")
    second.metadata.uid = "other"
    key = key_of(first)
    old, new = (Record(key, p, p.SerializeToString(), 1, 1) for p in (first, second))
    snapshot.apply([Event(key, 5, old, new)])
    assert int(snapshot.used[0, 0]) == 1000
    assert snapshot.held(first.metadata.uid) is None


def test_requests_round_up_and_limits_stand_in() -> None:
    one = pod("x", cpu="0.5m")
    one.spec.containers.append(o.Container(name="d"))
    one.spec.containers[1].resources.limits["memory"].text = "1k"
    assert requests_of(one.spec) == (("cpu", 1), ("memory", 1000), ("pods", 1))


def test_init_containers_count_by_the_most_that_runs_at_once() -> None:
    one = pod("one", cpu="500m")
    for name, cpu, policy in (("side", "200m", "Always"), ("first", "600m", ""), ("last", "100m", "")):
        made = one.spec.initContainers.add(name=name)
        made.resources.requests["cpu"].text = cpu
        if policy:
            made.restartPolicy = policy
    assert dict(requests_of(one.spec))["cpu"] == 800  # the sidecar and "first"
    one.spec.containers[0].resources.requests["cpu"].text = "1"
    assert dict(requests_of(one.spec))["cpu"] == 1200  # the sidecar and the app


def test_a_message_with_other_counts_tells_the_same_story() -> None:
    first = "0/12 nodes are available: 9 Insufficient cpu (short of 250m at best), 3 node(s) were not ready."
    assert same_story(
        first, "0/13 nodes are available: 3 node(s) were not ready, 10 Insufficient cpu (short of 1m at best)."
    )
    assert not same_story(first, "0/12 nodes are available: 12 Insufficient cpu (short of 250m at best).")
    assert not same_story("", first)


def test_a_cycle_is_told_in_a_sentence() -> None:
    assert sentence(1, []) == "bound 1 pod"
    assert sentence(3, ["0/2 nodes are available: 2 not ready."]) == (
        "bound 3 pods, 1 pod waits (0/2 nodes are available: 2 not ready.)"
    )
    assert sentence(0, ["a", "b"]) == "2 pods wait (a)"


# ---- volumes ----
def with_claims(one: o.Pod, *names: str) -> o.Pod:
    for name in names:
        one.spec.volumes.add(name=name).persistentVolumeClaim.claimName = name
    return one


def why(snapshot: Snapshot, one: o.Pod) -> str:
    plan = place(snapshot, one)
    for binding in plan.bindings:
        snapshot.undo(binding.waiting.uid)
    return plan.refusals[0].explanation.message if plan.refusals else ""


NODES = (node("n1"), node("n2"), node("n3"))


def bound_claim(name: str, to: str, mode: str = rules.ONCE) -> tuple[o.PersistentVolumeClaim, o.PersistentVolume]:
    made, vol = claim(name, mode=mode), volume(f"v-{name}", cls="local", home=to)
    made.spec.volumeName = vol.metadata.name
    vol.spec.claimRef.CopyFrom(storage.reference(made))
    return made, vol


def test_b82_a_claim_says_why_it_holds_its_pod_back() -> None:
    one = with_claims(pod("one"), "data")
    assert why(snapshot_of(*NODES), one) == "0/3 nodes are available: claim data does not exist."
    assert "claim data is not bound yet" in why(snapshot_of(*NODES, claim(cls="")), one)
    assert "claim data is not bound yet" in why(snapshot_of(*NODES, claim(cls="unknown")), one)
    leaving = claim()
    leaving.metadata.deletionTimestamp.seconds = 1
    assert "claim data is being deleted" in why(snapshot_of(*NODES, made_class(), leaving), one)
    lost, _ = bound_claim("data", "n1")
    assert "the volume of claim data does not exist" in why(snapshot_of(*NODES, lost), one)
    here, vol = bound_claim("data", "n9")
    assert (
        why(snapshot_of(*NODES, here, vol), one)
        == "0/3 nodes are available: 3 node(s) did not have the volume of a claim."
    )
    disks = made_class("disks", "kubernetes.io/no-provisioner")
    elsewhere = volume("on-9", cls="disks", home="n9")
    assert "3 no volume fits claim data" in why(snapshot_of(*NODES, disks, elsewhere, claim(cls="disks")), one)


def test_a_pod_goes_where_its_volume_is() -> None:
    snapshot = snapshot_of(*NODES, *bound_claim("data", "n2"))
    plan = place(snapshot, with_claims(pod("one"), "data"), with_claims(pod("two"), "data"))
    assert [b.node for b in plan.bindings] == ["n2", "n2"]


def test_two_pods_of_one_unbound_claim_in_one_window_go_to_one_node() -> None:
    owner = replicaset()
    pods = [with_claims(pod(f"p{index}", owner=owner), "data") for index in range(4)]
    plan = place(snapshot_of(*NODES, made_class(), claim()), *pods)
    assert len({b.node for b in plan.bindings}) == 1
    assert len(plan.bindings) == 4


def test_a_claim_of_another_namespace_is_another_claim() -> None:
    classes = Classes()
    one, other = with_claims(pod("one"), "data"), with_claims(pod("two"), "data")
    other.metadata.namespace = "shop"
    assert classes.of(one).claims == ("default/data",)
    assert classes.of(other).claims == ("shop/data",)


def test_the_node_that_a_claim_was_tied_to_is_kept() -> None:
    tied = claim()
    tied.metadata.annotations[rules.SELECTED_NODE] = "n3"
    plan = place(snapshot_of(*NODES, made_class(), tied), with_claims(pod("one"), "data"))
    assert [b.node for b in plan.bindings] == ["n3"]


def test_one_pod_at_a_time_has_a_read_write_once_pod_claim() -> None:
    snapshot = snapshot_of(*NODES, *bound_claim("data", "n2", mode=rules.ONCE_POD))
    plan = place(snapshot, with_claims(pod("one"), "data"), with_claims(pod("two"), "data"))
    assert len(plan.bindings) == 1
    assert "in use by another pod" in plan.refusals[0].explanation.message
    snapshot.undo(plan.bindings[0].waiting.uid)
    assert not why(snapshot, with_claims(pod("three"), "data"))


def test_hand_made_volumes_are_given_out_one_after_the_other() -> None:
    disks = made_class("disks", "kubernetes.io/no-provisioner")
    only = volume("only", cls="disks", home="n2")
    snapshot = snapshot_of(*NODES, disks, only, claim("a", cls="disks"), claim("b", cls="disks"))
    plan = place(snapshot, with_claims(pod("one"), "a"), with_claims(pod("two"), "b"))
    assert [b.node for b in plan.bindings] == ["n2"]
    assert "waits until another claim" in plan.refusals[0].explanation.message


def test_a_pod_needs_as_many_hand_made_volumes_as_it_has_claims() -> None:
    disks = made_class("disks", "kubernetes.io/no-provisioner")
    claims = [claim("a", cls="disks"), claim("b", cls="disks")]
    both = with_claims(pod("one"), "a", "b")
    first = [volume("v1", cls="disks", home="n1"), volume("v2", cls="disks", home="n2")]
    assert "no volume fits claim b" in why(snapshot_of(*NODES, disks, *first, *claims), both)
    plan = place(snapshot_of(*NODES, disks, *first, volume("v3", cls="disks", home="n2"), *claims), both)
    assert [b.node for b in plan.bindings] == ["n2"]


def test_memory_pressure_is_tolerated_by_who_has_asked_for_something() -> None:
    taint = ("node.kubernetes.io/memory-pressure", "", "NoSchedule")
    assert "memory-pressure" in why(snapshot_of(node("n1", taints=[taint])), pod("best-effort"))
    assert not why(snapshot_of(node("n1", taints=[taint])), pod("burstable", cpu="100m"))
    disk = ("node.kubernetes.io/disk-pressure", "", "NoSchedule")
    assert "disk-pressure" in why(snapshot_of(node("n1", taints=[disk])), pod("burstable", cpu="100m"))
