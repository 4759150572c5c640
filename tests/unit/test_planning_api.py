"""Plan, CarryOut, WhatIf, Fit, Rebalance and Evict over the real store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shoal.master.api import copying
from shoal.master.api.faults import Invalid, Timeout
from shoal.master.core import Master
from shoal.master.model import Delete, Fault, Key, Object, Unavailable, key_of
from shoal.master.planning import budgets, rehearsal
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from tests import control_world as w
from tests.masterkit import memory_master
from tests.planning_world import budget, fates, put, run_on, running, sent, wished, write


@pytest_asyncio.fixture
async def master() -> AsyncIterator[Master]:
    """Nobody decides anything by himself."""
    async with memory_master(loops=False) as made:
        yield made


async def planned(master: Master, *objects: Object) -> c.PlanResponse:
    return await master.service.plan(c.PlanRequest(objects=sent(*objects)))


def everything(master: Master) -> dict[Key, int]:
    """What is stored, with its revisions."""
    kinds = ("Namespace", "Node", "Deployment", "ReplicaSet", "Pod", "ConfigMap", "PodDisruptionBudget")
    found = {}
    for kind in kinds:
        for obj in master.store.view.all(kind):
            record = master.store.view.record(key_of(obj))
            assert record is not None
            found[record.key] = record.revision
    return found


# ---- plan ----
async def test_a_plan_places_every_replica_and_writes_nothing(master: Master) -> None:
    await put(master, w.node("n1"), w.node("n2"), w.node("n3"))
    before = everything(master)
    plan = await planned(master, wished(replicas=4))
    assert fates(plan.pods) == {("created", "n1"): 2, ("created", "n2"): 1, ("created", "n3"): 1}
    assert [(one.key.name, one.action, one.revision) for one in plan.objects] == [("web", "created", 0)]
    assert {(pod.owner.kind, pod.owner.name, pod.key.name) for pod in plan.pods} == {("Deployment", "web", "")}
    assert plan.cluster_incarnation
    assert everything(master) == before


async def test_a_plan_says_what_stays_pending_and_why(master: Master) -> None:
    await put(master, w.node("n1", cpu="2"))
    plan = await planned(master, wished(replicas=3))
    assert fates(plan.pods) == {("created", "n1"): 2, ("pending", ""): 1}
    (waiting,) = [pod for pod in plan.pods if pod.fate == "pending"]
    assert "1 Insufficient cpu" in waiting.reason
    assert "short of 1000m" in waiting.reason


async def test_a_new_template_replaces_every_pod_and_says_what_changes(master: Master) -> None:
    await put(master, w.node("n1"), w.node("n2"))
    pods = await running(master, wished(replicas=2), ["n1", "n2"])
    plan = await planned(master, wished(replicas=2, image="web:2"))
    assert plan.objects[0].action == "configured"
    assert plan.objects[0].differences == ["spec.template.spec.containers[c].image changed (web:1 -> web:2)"]
    assert plan.objects[0].uid and plan.objects[0].revision > 0
    assert fates(plan.pods) == {("created", "n1"): 1, ("created", "n2"): 1, ("deleted", "n1"): 1, ("deleted", "n2"): 1}
    assert {pod.key.name for pod in plan.pods if pod.fate == "deleted"} == {pod.metadata.name for pod in pods}


async def test_what_becomes_free_goes_to_pods_that_wait(master: Master) -> None:
    await put(master, w.node("n1", cpu="2"))
    await running(master, wished(replicas=2), ["n1", "n1"])
    await put(master, w.pod("waits", cpu="1"))
    plan = await planned(master, wished(replicas=1))
    assert fates(plan.pods) == {("deleted", "n1"): 1, ("placed", "n1"): 1}
    assert [pod.key.name for pod in plan.pods if pod.fate == "placed"] == ["waits"]


async def test_a_plan_names_the_images_that_nodes_lack(master: Master) -> None:
    one, two = w.node("n1"), w.node("n2")
    one.status.images.add(names=["docker.io/library/web:1", "sha256:0"], sizeBytes=5_000_000)
    await put(master, one, two)
    plan = await planned(master, wished(replicas=2), wished("other", 1, "ghcr.io/x/other"))
    fetched = [(one.node, one.image, one.bytes) for one in plan.images]
    assert ("n2", "docker.io/library/web:1", 5_000_000) in fetched
    assert [image for _, image, _ in fetched if "other" in image] == ["ghcr.io/x/other:latest"]
    assert not any(node == "n1" and "web" in image for node, image, _ in fetched)


async def test_objects_that_need_each_other_are_planned_together(master: Master) -> None:
    await put(master, w.node("n1"))
    space = o.Namespace(apiVersion="v1", kind="Namespace")
    space.metadata.name = "new"
    wish = wished(replicas=1)
    wish.metadata.namespace = "new"
    plan = await planned(master, wish, space)
    assert [one.action for one in plan.objects] == ["created", "created"]
    assert fates(plan.pods) == {("created", "n1"): 1}


async def test_what_is_refused_is_told_and_nothing_is_planned(master: Master) -> None:
    wish = wished()
    wish.spec.template.spec.containers[0].image = ""
    plan = await planned(master, wish, wished("other"))
    assert "image" in plan.objects[0].failure.message
    assert plan.objects[1].action == "created"
    assert not plan.pods
    assert "put right" in plan.notes[0]


async def test_values_of_secrets_are_not_shown(master: Master) -> None:
    def secret(value: bytes) -> o.Secret:
        made = o.Secret(apiVersion="v1", kind="Secret")
        made.metadata.name, made.data["port"] = "s", value
        return made

    answer = await master.service.apply(c.WriteRequest(request_id="s", objects=sent(secret(b"old"))))
    assert answer.results[0].action == "created"
    plan = await planned(master, secret(b"hidden"))
    assert plan.objects[0].differences == ["data[port] changed"]


async def test_a_plan_of_nothing_or_of_too_much_is_refused(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "MOST_NEW_PODS", 10)
    with pytest.raises(Invalid, match="0 objects"):
        await planned(master)
    await put(master, w.node("n1"))
    await planned(master, wished(replicas=10))
    with pytest.raises(Fault, match="more than 10 pods"):
        await planned(master, wished(replicas=11))


# ---- carry out ----
def order(plan: c.PlanResponse, *objects: Object, request_id: str = "go") -> c.CarryOutRequest:
    return c.CarryOutRequest(request_id=request_id, objects=sent(*objects), expected=plan)


async def test_a_plan_is_carried_out_and_can_be_sent_again(master: Master) -> None:
    await put(master, w.node("n1"))
    wish = wished()
    plan = await planned(master, wish)
    done = await master.service.carry_out(order(plan, wish))
    assert not done.changed
    assert [one.action for one in done.results] == ["created"]
    again = await master.service.carry_out(order(plan, wish))
    assert not again.changed
    assert [one.action for one in again.results] == ["unchanged"]


async def test_news_that_do_not_matter_do_not_stop_a_plan(master: Master) -> None:
    await put(master, w.node("n1"), w.node("n2"), w.pod("other", node="n2"))
    wish = wished()
    plan = await planned(master, wish)
    await run_on(master, w.pod("other"), "n2")
    done = await master.service.carry_out(order(plan, wish))
    assert not done.changed
    assert done.results[0].action == "created"


async def test_another_placement_stops_a_plan_and_is_told(master: Master) -> None:
    await put(master, w.node("n1"), w.node("n2"))
    wish = wished(replicas=2)
    plan = await planned(master, wish)
    await write(master, Delete(Key("Node", "", "n2")))
    before = everything(master)
    done = await master.service.carry_out(order(plan, wish))
    assert list(done.changed) == [
        "deployment/web in default: the plan had 1 on n1, 1 on n2 created; now it is 2 on n1 created"
    ]
    assert everything(master) == before


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("changed", "deployment/web has been changed since"),
        ("deleted", "deployment/web has been deleted since"),
        ("made anew", "deployment/web has been deleted and made anew since"),
    ],
)
async def test_an_object_that_is_another_now_stops_a_plan(master: Master, how: str, words: str) -> None:
    await put(master, w.node("n1"))
    await master.service.apply(c.WriteRequest(request_id="a", objects=sent(wished(replicas=1))))
    wish = wished(replicas=2)
    plan = await planned(master, wish)
    if how == "changed":
        await master.service.scale(c.ScaleRequest(request_id="s", key=plan.objects[0].key, replicas=5))
    else:
        await write(master, Delete(Key("Deployment", "default", "web")))
    if how == "made anew":
        await master.service.apply(c.WriteRequest(request_id="b", objects=sent(wished(replicas=1))))
    done = await master.service.carry_out(order(plan, wish))
    assert len(done.changed) == 1
    assert words in done.changed[0]
    assert not done.results


async def test_an_object_that_came_since_stops_a_plan(master: Master) -> None:
    wish = wished(replicas=2)
    plan = await planned(master, wish)
    await master.service.apply(c.WriteRequest(request_id="a", objects=sent(wished(replicas=1))))
    done = await master.service.carry_out(order(plan, wish))
    assert list(done.changed) == ["deployment/web has been made since"]


async def test_plans_of_others_are_refused(master: Master) -> None:
    wish = wished()
    plan = await planned(master, wish)
    with pytest.raises(Invalid, match="do not belong together"):
        await master.service.carry_out(order(plan, wished("other")))
    plan.cluster_incarnation = "elsewhere"
    with pytest.raises(Invalid, match="another cluster"):
        await master.service.carry_out(order(plan, wish))


# ---- what if ----
async def what_if(master: Master, **question: object) -> c.WhatIfResponse:
    return await master.service.what_if(c.WhatIfRequest(**question))  # type: ignore[arg-type]


async def test_a_failing_node_s_pods_go_elsewhere_or_wait(master: Master) -> None:
    await put(master, w.node("n1", cpu="2"), w.node("n2", cpu="3"), w.pod("bare", node="n1"))
    await running(master, wished(replicas=3), ["n1", "n1", "n2"])
    before = everything(master)
    found = await what_if(master, fail=["n1"])
    assert fates(found.pods) == {("lost", "n1"): 3, ("created", "n2"): 2}
    assert list(found.notes) == ["pod default/bare is lost with its node: nobody makes another"]
    cpu = next(one for one in found.headroom if one.resource == "cpu")
    assert (cpu.free_before, cpu.free_after) == (2000, 0)
    assert everything(master) == before
    both = await what_if(master, fail=["n1", "n2"])
    assert fates(both.pods)["pending", ""] == 3
    assert "2 node(s) were not ready" in next(pod.reason for pod in both.pods if pod.fate == "pending")


async def test_a_drain_that_a_budget_forbids_is_told(master: Master) -> None:
    await put(master, w.node("n1"), w.node("n2"))
    await running(master, wished("web", 1), ["n1"])
    (kept,) = await running(master, wished("db", 1), ["n1"])
    await put(master, budget("db", allowed=0, healthy=1, desired=1, app="db"))
    found = await what_if(master, drain=["n1"])
    assert fates(found.pods) == {("deleted", "n1"): 1, ("created", "n2"): 1}
    assert [(one.pod.name, one.budget.name, one.node) for one in found.blocked] == [(kept.metadata.name, "db", "n1")]
    assert "needs 1 healthy pods and has 1" in found.blocked[0].reason


async def test_a_drain_goes_on_when_replacements_are_ready(master: Master) -> None:
    """The budget allows one at a time; its controller counts anew on the copy."""
    await put(master, w.node("n1"), w.node("n2"))
    pods = await running(master, wished(replicas=3), ["n1", "n1", "n1"])
    await put(master, budget("web", allowed=1, healthy=3, desired=2, app="web"))
    found = await what_if(master, drain=["n1"])
    assert not found.blocked
    assert fates(found.pods) == {("deleted", "n1"): 3, ("created", "n2"): 3}
    assert {pod.uid for pod in found.pods if pod.fate == "deleted"} == {pod.metadata.uid for pod in pods}


async def test_more_nodes_take_what_waits(master: Master) -> None:
    await put(master, w.node("n1", cpu="2"), w.pod("p1", cpu="2"), w.pod("p2", cpu="2"), w.pod("p3", cpu="2"))
    found = await what_if(master, add=[c.WhatIfRequest.Added(count=2, like="n1")])
    assert fates(found.pods) == {("placed", "n1"): 1, ("placed", "n1-copy-1"): 1, ("placed", "n1-copy-2"): 1}


async def test_another_size_is_tried(master: Master) -> None:
    await put(master, w.node("n1"), w.node("n2"))
    await running(master, wished(replicas=2), ["n1", "n2"])
    key = c.Key(kind="Deployment", name="web")
    up = await what_if(master, scale=[c.WhatIfRequest.Scaled(key=key, replicas=4)])
    assert fates(up.pods) == {("created", "n1"): 1, ("created", "n2"): 1}
    down = await what_if(master, scale=[c.WhatIfRequest.Scaled(key=key, replicas=0)], fail=["n1"])
    assert fates(down.pods) == {("lost", "n1"): 1, ("deleted", "n2"): 1}


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({}, "what if what"),
        ({"fail": ["node2"]}, "no node is called 'node2': did you mean 'node1'"),
        ({"fail": ["node1"], "drain": ["node1"]}, "cannot both fail and be drained"),
        ({"add": [c.WhatIfRequest.Added(count=0, like="node1")]}, "at least one"),
        ({"add": [c.WhatIfRequest.Added(count=10**6, like="node1")]}, "at most 5000"),
        ({"add": [c.WhatIfRequest.Added(count=1, like="zz")]}, "no node is called 'zz'"),
        (
            {"scale": [c.WhatIfRequest.Scaled(key=c.Key(kind="Deployment", name="ewb"), replicas=1)]},
            "not found: there are web",
        ),
        ({"scale": [c.WhatIfRequest.Scaled(key=c.Key(kind="Pod", name="web"), replicas=1)]}, "has no replicas"),
        ({"scale": [c.WhatIfRequest.Scaled(key=c.Key(kind="Deployment", name="web"), replicas=-1)]}, "0 to 10000"),
        ({"scale": [c.WhatIfRequest.Scaled(key=c.Key(kind="Deployment", name="web"))] * 2}, "scaled twice"),
    ],
)
async def test_questions_that_make_no_sense(master: Master, question: dict[str, object], words: str) -> None:
    await put(master, w.node("node1"))
    await running(master, wished(replicas=1), ["node1"])
    with pytest.raises(Fault, match=words):
        await what_if(master, **question)


# ---- fit ----
async def test_fit_counts_per_node_and_says_what_is_missing(master: Master) -> None:
    await put(master, w.node("n1", cpu="2"), w.node("n2", cpu="3"), w.node("n3", is_ready=False))
    answer = await master.service.fit(c.FitRequest(objects=sent(wished(cpu="1"), wished("big", cpu="5"))))
    first, second = answer.results
    assert (first.count, first.at_least, [(n.node, n.count) for n in first.nodes]) == (5, False, [("n1", 2), ("n2", 3)])
    assert "2 Insufficient cpu" in first.reason
    assert "1 node(s) were not ready" in first.reason
    assert (second.count, list(second.nodes)) == (0, [])
    assert "short of 2000m" in second.reason


async def test_more_of_a_pod_that_is_there_are_counted(master: Master) -> None:
    await put(master, w.node("n1", cpu="4"))
    there, wanted = w.pod("web", node="n1", cpu="1"), w.pod("web", cpu="1", memory="1Gi")
    await put(master, there)
    answer = await master.service.fit(c.FitRequest(objects=sent(wanted)))
    assert [(one.key.name, one.count) for one in answer.results] == [("web", 3)]


async def test_fit_stops_at_the_limit(master: Master) -> None:
    await put(master, w.node("n1"))
    answer = await master.service.fit(c.FitRequest(objects=sent(wished(cpu="1m")), limit=7))
    assert (answer.results[0].count, answer.results[0].at_least) == (7, True)


async def test_fit_wants_something_with_pods(master: Master) -> None:
    conf = o.ConfigMap(apiVersion="v1", kind="ConfigMap")
    conf.metadata.name = "c"
    with pytest.raises(Invalid, match="nothing in it has pods"):
        await master.service.fit(c.FitRequest(objects=sent(conf)))
    with pytest.raises(Invalid, match="the limit is -1"):
        await master.service.fit(c.FitRequest(objects=sent(conf), limit=-1))


# ---- rebalance ----
async def test_a_full_node_s_pods_move_and_bare_ones_stay(master: Master) -> None:
    await put(master, w.node("n1", cpu="4"), w.node("n2", cpu="4"), w.pod("bare", node="n1", cpu="1"))
    for name in ("a", "b", "d"):
        await running(master, wished(name, 1), ["n1"])
    before = everything(master)
    found = await master.service.rebalance(c.RebalanceRequest())
    assert [(getattr(one, "from"), one.to, one.owner.kind) for one in found.moves] == [("n1", "n2", "Deployment")] * 2
    assert all(one.pod.name != "bare" for one in found.moves)
    assert [one.after for one in found.nodes] == [0.5, 0.5]
    assert "no further move" in found.stopped
    assert everything(master) == before
    only = await master.service.rebalance(c.RebalanceRequest(max_moves=1))
    assert (len(only.moves), only.stopped) == (1, "that is the one move that was asked for")


async def test_what_a_budget_forbids_is_not_moved(master: Master) -> None:
    await put(master, w.node("n1"), w.node("n2"))
    for name in ("a", "b"):
        await running(master, wished(name, 1), ["n1"])
    await put(master, budget("a", allowed=0, app="a"), budget("b", allowed=0, app="b"))
    found = await master.service.rebalance(c.RebalanceRequest())
    assert (list(found.moves), found.stopped) == ([], "no pod may be moved: 2 held by disruption budgets")
    await put(master, w.pod("bare", node="n1", cpu="1"))
    found = await master.service.rebalance(c.RebalanceRequest())
    assert found.stopped == "no pod may be moved: 2 held by disruption budgets, 1 without a replicaset"


# ---- evict ----
async def test_evictions_ask_the_budgets(master: Master) -> None:
    await put(master, w.node("n1"))
    first, second = await running(master, wished(replicas=2), ["n1", "n1"])
    await put(master, budget("web", allowed=1, app="web"))

    async def evict(pod: o.Pod, uid: str = "", dry_run: bool = False) -> c.WriteResult:
        key = c.Key(kind="Pod", namespace="default", name=pod.metadata.name)
        request = c.EvictRequest(request_id="e", key=key, uid=uid, dry_run=dry_run)
        return (await master.service.evict(request)).results[0]

    def is_leaving(pod: o.Pod) -> bool:
        found = master.store.view.get(*key_of(pod))
        return found is not None and found.metadata.HasField("deletionTimestamp")

    assert "another pod" in (await evict(first, uid="x")).failure.message
    assert (await evict(first, dry_run=True)).action == "deleted"
    assert not is_leaving(first)
    assert (await evict(first, uid=first.metadata.uid)).action == "deleted"
    assert is_leaving(first)
    assert (await evict(first)).action == "unchanged"
    refused = (await evict(second)).failure
    assert refused.reason == "Conflict"
    assert "PodDisruptionBudget web: it needs 2 healthy pods" in refused.message
    assert not is_leaving(second)
    with pytest.raises(Invalid, match="only a Pod can"):
        await master.service.evict(c.EvictRequest(request_id="e", key=c.Key(kind="Node", name="n1")))


async def test_an_eviction_that_was_granted_goes_on_when_it_is_asked_for_again(master: Master) -> None:
    """The master died between the grant and the deletion: the budget has counted it."""
    await put(master, w.node("n1"))
    first, second = await running(master, wished(replicas=2), ["n1", "n1"])
    await put(master, budget("web", allowed=1, app="web"))
    made = master.store.view.get("PodDisruptionBudget", "default", "web")
    assert isinstance(made, o.PodDisruptionBudget)
    await master.store.write([budgets.grant(made, first, 0.0)])

    async def evict(pod: o.Pod) -> c.WriteResult:
        key = c.Key(kind="Pod", namespace="default", name=pod.metadata.name)
        return (await master.service.evict(c.EvictRequest(request_id="e", key=key))).results[0]

    assert (await evict(second)).failure.reason == "Conflict"
    assert (await evict(first)).action == "deleted"


# ---- what else decides ----
async def test_a_gang_that_does_not_fit_waits_whole(master: Master) -> None:
    await put(master, w.node("n1", cpu="2"))
    group = o.PodGroup(apiVersion="scheduling.x-k8s.io/v1alpha1", kind="PodGroup")
    group.metadata.name, group.spec.minMember = "gang", 3
    wish = wished(replicas=3)
    wish.spec.template.metadata.labels["scheduling.x-k8s.io/pod-group"] = "gang"
    plan = await planned(master, group, wish)
    assert fates(plan.pods) == {("pending", ""): 3}
    await put(master, w.node("n2", cpu="1"))
    plan = await planned(master, group, wish)
    assert fates(plan.pods) == {("created", "n1"): 2, ("created", "n2"): 1}


async def test_a_claim_ties_its_pods_to_one_node(master: Master) -> None:
    await put(master, w.node("n1"), w.node("n2"))
    claim = o.PersistentVolumeClaim(apiVersion="v1", kind="PersistentVolumeClaim")
    claim.metadata.name = "disk"
    claim.spec.accessModes.append("ReadWriteOnce")
    claim.spec.resources.requests["storage"].text = "1Gi"
    wish = wished(replicas=2)
    volume = wish.spec.template.spec.volumes.add(name="d")
    volume.persistentVolumeClaim.claimName = "disk"
    wish.spec.template.spec.containers[0].volumeMounts.add(name="d", mountPath="/d")
    plan = await planned(master, claim, wish)
    assert fates(plan.pods) == {("created", "n1"): 2}


async def test_gated_pods_wait_for_their_gates(master: Master) -> None:
    await put(master, w.node("n1"))
    pod = w.pod("gated")
    pod.spec.schedulingGates.add(name="example.com/later")
    plan = await planned(master, pod)
    assert [(one.fate, one.reason) for one in plan.pods] == [("pending", "its scheduling gates are closed")]


async def test_pods_go_by_priority_and_profile(master: Master) -> None:
    """bin-packing fills the fuller node; and what is more important comes first."""
    await put(master, w.node("n1", cpu="4"), w.node("n2", cpu="4"), w.pod("there", node="n2", cpu="1", phase="Running"))
    packed = wished("packed", 2)
    packed.spec.template.spec.schedulerName = "bin-packing"
    assert fates((await planned(master, packed)).pods) == {("created", "n2"): 2}
    top = o.PriorityClass(apiVersion="scheduling.k8s.io/v1", kind="PriorityClass", value=1000)
    top.metadata.name = "top"
    first, second = wished("a-first", 7), wished("z-second", 3)
    second.spec.template.spec.priorityClassName = "top"
    plan = await planned(master, top, first, second)
    waiting = [pod.owner.name for pod in plan.pods if pod.fate == "pending"]
    assert waiting == ["a-first"] * 3


async def test_too_many_questions_and_too_long_ones_are_refused(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(master, w.node("n1"))
    request = c.PlanRequest(objects=sent(wished()))
    crowd = copying.AT_ONCE + copying.WAITING
    answers = await asyncio.gather(*(master.service.plan(request) for _ in range(crowd + 2)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Unavailable)]
    assert len(refused) == 2
    assert f"{crowd} plans are being made" in str(refused[0])
    assert all(isinstance(answer, c.PlanResponse) for answer in answers if answer not in refused)
    monkeypatch.setattr(copying, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(Timeout, match="ask for less at once"):
        await master.service.plan(request)
    monkeypatch.undo()
    assert (await master.service.plan(request)).pods


async def test_who_is_evicted_for_a_higher_priority_is_told(master: Master) -> None:
    await put(master, w.node("n1", cpu="3"))
    pods = await running(master, wished("low", 3), ["n1", "n1", "n1"])
    top = o.PriorityClass(apiVersion="scheduling.k8s.io/v1", kind="PriorityClass", value=1000)
    top.metadata.name = "top"
    wish = wished("high", 1, cpu="2")
    wish.spec.template.spec.priorityClassName = "top"
    before = everything(master)
    plan = await planned(master, top, wish)
    assert everything(master) == before
    assert fates(plan.pods) == {("created", "n1"): 1, ("preempted", "n1"): 2, ("pending", ""): 2}
    gone = [pod for pod in plan.pods if pod.fate == "preempted"]
    assert {pod.uid for pod in gone} < {pod.metadata.uid for pod in pods}
    assert all(
        pod.owner.name == "low" and pod.reason == "makes room for a pod of deployment default/high" for pod in gone
    )
    assert {pod.owner.name for pod in plan.pods if pod.fate == "pending"} == {"low"}
    done = await master.service.carry_out(order(plan, top, wish))
    assert [one.action for one in done.results] == ["created", "created"]
