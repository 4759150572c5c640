"""ReplicaSet and Deployment: what they want for a given state."""

from __future__ import annotations

import random

import pytest

from shoal.master.controllers import deployment as deployments
from shoal.master.controllers import podgc
from shoal.master.controllers import replicaset as replicasets
from shoal.master.controllers.base import ready, set_condition
from shoal.master.controllers.pods import crowding, deletion_order, new_name
from shoal.master.model import Create, Key, Modify, Object
from shoal.proto.qos import qos_class
from shoal.proto.v1 import objects_pb2 as o
from tests.control_steps import Steps
from tests.control_world import World, deployment, namespace, node, pod, replicaset

RS = Key("ReplicaSet", "default", "web")
DEPLOYMENT = Key("Deployment", "default", "web")


def steps(*objects: Object) -> Steps:
    rng = random.Random(1)
    world = World([namespace(), node("n0"), *objects])
    return Steps(world, [deployments.controller(rng), replicasets.controller(rng), podgc.controller()])


def edit_deployment(s: Steps, *, image: str = "", replicas: int | None = None) -> None:
    def edit(found: Object) -> bool:
        assert isinstance(found, o.Deployment)
        if image:
            found.spec.template.spec.containers[0].image = image
        if replicas is not None:
            found.spec.replicas = replicas
        found.metadata.generation += 1
        return True

    s.world.commit(Modify(DEPLOYMENT, edit))


def get_deployment(s: Steps) -> o.Deployment:
    found = s.world.get(*DEPLOYMENT)
    assert isinstance(found, o.Deployment)
    return found


def sets(s: Steps) -> dict[str, int]:
    """Image -> size of its ReplicaSet."""
    found = [rs for rs in s.world.all("ReplicaSet") if isinstance(rs, o.ReplicaSet)]
    return {rs.spec.template.spec.containers[0].image: rs.spec.replicas for rs in found}


# ---- ReplicaSet ----
def test_missing_pods_are_created_with_owner_labels_and_defaults() -> None:
    world = World([replicaset()])
    outcome = replicasets.reconcile(world, RS, 5.0, random.Random(7))
    made = [c.object for c in outcome.changes if isinstance(c, Create)]
    assert len(made) == 3
    assert outcome.did == "created 3 pods"
    first = made[0]
    assert isinstance(first, o.Pod)
    assert first.metadata.name.startswith("web-")
    assert len(first.metadata.name) == len("web-") + 5
    assert first.metadata.labels["app"] == "web"
    assert first.metadata.ownerReferences[0].uid == "uid-ReplicaSet-web"
    assert first.metadata.creationTimestamp.seconds == 5
    assert first.spec.terminationGracePeriodSeconds == 30
    assert (first.status.phase, first.status.qosClass) == ("Pending", "BestEffort")
    assert len({m.metadata.uid for m in made}) == 3


def test_the_same_randomness_makes_the_same_pods() -> None:
    world = World([replicaset()])
    outcomes = [replicasets.reconcile(world, RS, 5.0, random.Random(7)).changes for _ in range(2)]
    names = [[c.object.metadata.name for c in changes if isinstance(c, Create)] for changes in outcomes]
    assert names[0] == names[1]


def test_a_name_that_is_taken_is_not_used_again() -> None:
    taken = new_name("web-", (), random.Random(7))
    world = World([replicaset(replicas=1), pod(taken)])
    outcome = replicasets.reconcile(world, RS, 5.0, random.Random(7))
    made = [c.object for c in outcome.changes if isinstance(c, Create)]
    assert made[0].metadata.name != taken


def test_nothing_is_made_in_a_closing_namespace() -> None:
    world = World([namespace(closing=True), replicaset()])
    outcome = replicasets.reconcile(world, RS, 5.0, random.Random(7))
    assert not [c for c in outcome.changes if isinstance(c, Create)]


def test_ended_and_lost_pods_are_replaced_and_kept() -> None:
    rs = replicaset(replicas=2)
    s = steps(
        rs,
        pod("a", owner=rs, node="n0", phase="Failed", app="web"),
        pod("b", owner=rs, node="n0", phase="Running", app="web"),
    )
    s.settle()
    assert sorted(p.status.phase for p in s.world.pods()) == ["Failed", "Running", "Running"]


def test_orphans_are_adopted_and_strangers_released() -> None:
    rs = replicaset(replicas=1)
    s = steps(rs, pod("orphan", app="web"), pod("stray", owner=rs, app="other"))
    s.settle()
    owners = {p.metadata.name: [r.uid for r in p.metadata.ownerReferences] for p in s.world.pods()}
    assert owners == {"orphan": [rs.metadata.uid], "stray": []}
    assert "replicaset web: adopted 1 pod, released 1 pod" in s.sentences


def test_a_pod_of_another_owner_is_left_alone() -> None:
    other = replicaset("other", replicas=1, app="web")
    other.spec.selector.matchLabels["tier"] = "x"
    theirs = pod("theirs", owner=other, app="web", tier="x")
    world = World([replicaset(replicas=0), other, theirs])
    outcome = replicasets.reconcile(world, RS, 1.0, random.Random(1))
    assert [c.key for c in outcome.changes if isinstance(c, Modify)] == [RS]  # its status only


def test_an_empty_selector_claims_nobody() -> None:
    rs = replicaset(replicas=0)
    rs.spec.selector.Clear()
    world = World([rs, pod("alone", app="web")])
    replicasets.reconcile(world, RS, 1.0, random.Random(1))
    assert world.pods()[0].metadata.ownerReferences == []


def test_an_orphan_that_appears_later_wakes_its_adopter() -> None:
    s = steps(replicaset(replicas=1))
    s.settle()
    s.world.commit(Create(pod("late", app="web", at=2000.0)))
    s.settle()
    assert len(s.world.pods()) == 1


def order(*pods: o.Pod) -> list[str]:
    crowd = crowding(pods)
    return [p.metadata.name for p in sorted(pods, key=lambda p: deletion_order(p, crowd))]


def test_deletion_order() -> None:
    assert order(
        pod("ready-old-alone", node="b", phase="Running", is_ready=True, at=1),
        pod("ready-young-alone", node="d", phase="Running", is_ready=True, at=9),
        pod("crowded-1", node="a", phase="Running", is_ready=True, at=1),
        pod("crowded-2", node="a", phase="Running", is_ready=True, at=1),
        pod("not-ready", node="c", phase="Running"),
        pod("pending", node="e"),
        pod("unscheduled"),
    ) == ["unscheduled", "pending", "not-ready", "crowded-1", "crowded-2", "ready-young-alone", "ready-old-alone"]


def test_surplus_unscheduled_pods_end_first() -> None:
    rs = replicaset(replicas=1)
    s = steps(
        rs, pod("run", owner=rs, node="n0", phase="Running", is_ready=True, app="web"), pod("wait", owner=rs, app="web")
    )
    s.call("replicaset", RS)
    doomed = [p.metadata.name for p in s.world.pods() if p.metadata.HasField("deletionTimestamp")]
    assert doomed == ["wait"]


def test_status_counts_ready_pods_and_generation() -> None:
    s = steps(replicaset(replicas=2))
    s.settle()
    rs = s.world.get(*RS)
    assert isinstance(rs, o.ReplicaSet)
    status = rs.status
    assert (status.replicas, status.readyReplicas, status.availableReplicas, status.fullyLabeledReplicas) == (
        2,
        2,
        2,
        2,
    )
    assert status.observedGeneration == 1


@pytest.mark.parametrize(
    ("requests", "limits", "qos"),
    [
        ({}, {}, "BestEffort"),
        ({"cpu": "1"}, {}, "Burstable"),
        ({}, {"cpu": "1", "memory": "1Gi"}, "Guaranteed"),
        ({"cpu": "1000m", "memory": "1Gi"}, {"cpu": "1", "memory": "1024Mi"}, "Guaranteed"),
        ({"cpu": "1", "memory": "1Gi"}, {"cpu": "2", "memory": "1Gi"}, "Burstable"),
    ],
)
def test_qos(requests: dict[str, str], limits: dict[str, str], qos: str) -> None:
    spec = o.PodSpec(containers=[o.Container(name="c")])
    for amounts, target in (
        (requests, spec.containers[0].resources.requests),
        (limits, spec.containers[0].resources.limits),
    ):
        for name, text in amounts.items():
            target[name].text = text
    assert qos_class(spec) == qos


def test_pods_that_fail_by_themselves_are_replaced_ever_more_slowly() -> None:
    rs = replicaset(replicas=1)
    s = steps(rs)
    made = 0
    for _ in range(200):
        s.settle(agents=False)
        for one in s.world.pods():
            if one.status.phase == "Pending":
                made += 1
                s.world.commit(Modify(Key("Pod", "default", one.metadata.name), fail))
        s.now += 1
        s.dirty["replicaset", RS] = None
    assert 5 <= made <= 9
    outcome = s.call("replicaset", RS)
    assert outcome.again is not None and 0 < outcome.again <= 300


def fail(found: Object) -> bool:
    assert isinstance(found, o.Pod)
    found.status.phase = "Failed"
    return True


def test_ten_ended_pods_of_an_owner_are_kept() -> None:
    rs = replicaset(replicas=0)
    ended = [pod(f"p{i:02}", owner=rs, node="n0", phase="Failed", at=float(i), app="web") for i in range(13)]
    s = steps(rs, *ended)
    s.settle()
    assert sorted(p.metadata.name for p in s.world.pods()) == [f"p{i:02}" for i in range(3, 13)]


# ---- Deployment ----
def test_a_deployment_makes_one_replicaset_and_reports() -> None:
    s = steps(deployment())
    s.settle()
    (rs,) = s.world.all("ReplicaSet")
    suffix = rs.metadata.labels["pod-template-hash"]
    assert rs.metadata.name == f"web-{suffix}"
    assert rs.metadata.annotations[deployments.REVISION] == "1"
    status = get_deployment(s).status
    assert (status.replicas, status.updatedReplicas, status.readyReplicas, status.unavailableReplicas) == (3, 3, 3, 0)
    conditions = {c.type: (c.status, c.reason) for c in status.conditions}
    assert conditions == {
        "Available": ("True", "MinimumReplicasAvailable"),
        "Progressing": ("True", "NewReplicaSetAvailable"),
    }
    assert get_deployment(s).metadata.annotations[deployments.REVISION] == "1"


def test_a_changed_template_goes_one_up_then_one_down() -> None:
    s = steps(deployment())
    s.settle()
    edit_deployment(s, image="web:2")
    s.settle(agents=False)
    assert sets(s) == {"web:1": 3, "web:2": 1}
    assert len(s.world.pods()) == 4
    s.run_agents()
    s.settle(agents=False)
    assert sets(s) == {"web:1": 2, "web:2": 2}
    s.settle()
    assert sets(s) == {"web:1": 0, "web:2": 3}
    assert len(s.world.pods()) == 3


def test_a_broken_new_version_stops_the_rollout() -> None:
    s = steps(deployment())
    s.settle()
    edit_deployment(s, image="broken")
    s.settle(agents=False)
    assert sum(map(ready, s.world.pods())) == 3
    s.now += deployments.PROGRESS_DEADLINE_SECONDS + 1
    outcome = s.call("deployment", DEPLOYMENT)
    assert outcome.again is None
    progressing = next(c for c in get_deployment(s).status.conditions if c.type == "Progressing")
    assert (progressing.status, progressing.reason) == ("False", "ProgressDeadlineExceeded")


def test_a_rollover_ends_the_unready_middle_version_first() -> None:
    s = steps(deployment())
    s.settle()
    edit_deployment(s, image="middle")
    s.settle(agents=False)
    edit_deployment(s, image="last")
    s.settle(agents=False)
    assert sets(s) == {"web:1": 3, "middle": 0, "last": 1}
    s.settle()
    assert sets(s) == {"web:1": 0, "middle": 0, "last": 3}


def test_going_back_uses_the_old_replicaset_with_a_new_revision() -> None:
    s = steps(deployment())
    s.settle()
    edit_deployment(s, image="web:2")
    s.settle()
    edit_deployment(s, image="web:1")
    s.settle()
    assert sets(s) == {"web:1": 3, "web:2": 0}
    assert get_deployment(s).metadata.annotations[deployments.REVISION] == "3"


@pytest.mark.parametrize("to", [0, 1, 7])
def test_scaling_in_mid_rollout(to: int) -> None:
    s = steps(deployment())
    s.settle()
    edit_deployment(s, image="web:2")
    s.settle(agents=False)
    edit_deployment(s, replicas=to)
    s.settle()
    assert sets(s) == {"web:1": 0, "web:2": to}
    assert len(s.world.pods()) == to


def test_a_name_that_another_has_counts_a_collision() -> None:
    made = deployment()
    name = f"web-{deployments.template_hash(made.spec.template, 0)}"
    s = steps(made, replicaset(name, replicas=0, app="foreign"))
    s.settle()
    assert get_deployment(s).status.collisionCount == 1
    assert len(s.world.all("ReplicaSet")) == 2
    assert len(s.world.pods()) == 3


def test_ten_old_replicasets_are_kept() -> None:
    s = steps(deployment(replicas=1))
    for number in range(14):
        edit_deployment(s, image=f"web:{number}")
        s.settle()
    found = sorted(int(rs.metadata.annotations[deployments.REVISION]) for rs in s.world.all("ReplicaSet"))
    assert found == list(range(4, 15))


def test_a_pod_that_fails_later_is_no_rollout() -> None:
    s = steps(deployment())
    s.settle()
    victim = s.world.pods()[0]

    def edit(found: Object) -> bool:
        assert isinstance(found, o.Pod)
        return set_condition(found.status.conditions, o.Condition(type="Ready", status="False"), 2000.0)

    s.world.commit(Modify(Key("Pod", "default", victim.metadata.name), edit))
    s.settle(agents=False)
    conditions = {c.type: c.status for c in get_deployment(s).status.conditions}
    assert conditions == {"Available": "False", "Progressing": "True"}
    assert get_deployment(s).status.unavailableReplicas == 1


def test_an_evicted_pod_is_replaced_and_its_record_stays() -> None:
    rs = replicaset(replicas=1)
    evicted = pod("old", owner=rs, node="n1", phase="Failed", app="web")
    evicted.status.reason = "Evicted"
    world = World([rs, evicted])
    outcome = replicasets.reconcile(world, RS, 100.0, random.Random(1))
    world.apply(outcome.changes)
    assert sorted(p.status.phase for p in world.pods()) == ["Failed", "Pending"]
