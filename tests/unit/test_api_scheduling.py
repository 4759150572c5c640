"""What admission makes of priorities, profiles, gates and cordons, over the real store in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shoal.master.api.service import ClusterService
from shoal.master.api.writes import Writes
from shoal.master.controllers import disruption
from shoal.master.controllers.base import condition
from shoal.master.controllers.replicaset import reconcile
from shoal.master.core import Master
from shoal.master.model import KINDS, Key, Modify, Object
from shoal.master.scheduler.profiles import Profile
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from tests.masterkit import memory_master
from tests.unit.test_api_writes import deployment, pod


@pytest_asyncio.fixture
async def master() -> AsyncIterator[Master]:
    async with memory_master(loops=False) as made:
        yield made


@pytest.fixture
def api(master: Master) -> ClusterService:
    return master.service


def priority_class(name: str, value: int, *, default: bool = False, policy: str = "") -> o.PriorityClass:
    made = o.PriorityClass(apiVersion="scheduling.k8s.io/v1", kind="PriorityClass", value=value, globalDefault=default)
    made.metadata.name = name
    if policy:
        made.preemptionPolicy = policy
    return made


class Asker:
    """Sends each request with an id of its own."""

    def __init__(self, api: ClusterService) -> None:
        self.api, self.sent = api, 0

    async def apply(self, *objects: Object, verb: str = "apply") -> list[c.WriteResult]:
        self.sent += 1
        bodies = [c.Object(kind=obj.kind, body=obj.SerializeToString()) for obj in objects]
        request = c.WriteRequest(request_id=f"r{self.sent}", objects=bodies)
        return list((await getattr(self.api, verb)(request)).results)

    async def made(self, obj: Object, verb: str = "apply") -> Object:
        [result] = await self.apply(obj, verb=verb)
        assert not result.HasField("failure"), result.failure
        return KINDS[obj.kind].FromString(result.object.body)

    async def refused(self, obj: Object, verb: str = "apply") -> list[str]:
        [result] = await self.apply(obj, verb=verb)
        assert result.failure.reason == "Invalid", result
        return [f"{field.path}: {field.message}" for field in result.failure.fields]


def spec_of(obj: Object) -> o.PodSpec:
    assert isinstance(obj, o.Pod)
    return obj.spec


def prioritised(name: str, class_name: str) -> o.Pod:
    made = pod(name)
    made.spec.priorityClassName = class_name
    return made


# ---- priorities ----
async def test_a_pod_without_a_class_has_priority_zero(api: ClusterService) -> None:
    made = spec_of(await Asker(api).made(pod()))
    assert (made.priority, made.preemptionPolicy, made.priorityClassName) == (0, "PreemptLowerPriority", "")


async def test_a_class_gives_its_pods_priority_and_policy(api: ClusterService) -> None:
    ask = Asker(api)
    await ask.made(priority_class("high", 1000, policy="Never"))
    made = spec_of(await ask.made(prioritised("web", "high")))
    assert (made.priority, made.preemptionPolicy) == (1000, "Never")
    # What is read can be sent back, and applied again
    assert spec_of(await ask.made(prioritised("web", "high"))).priority == 1000
    wrong = prioritised("other", "high")
    wrong.spec.priority, wrong.spec.preemptionPolicy = 5, "PreemptLowerPriority"
    assert await ask.refused(wrong) == [
        'spec.priority: must be 1000, which comes from its class "high": leave it out',
        'spec.preemptionPolicy: must be "Never", which comes from its class "high"',
    ]
    assert (await ask.refused(prioritised("web", "")))[0].startswith("spec.priorityClassName: cannot be changed")


async def test_the_default_class_is_one_and_counts_for_new_pods(api: ClusterService) -> None:
    ask = Asker(api)
    await ask.made(pod("before"))
    await ask.made(priority_class("usual", 10, default=True))
    assert spec_of(await ask.made(pod("after"))).priority == 10
    assert spec_of(await ask.made(pod("before"))).priority == 0
    assert await ask.refused(priority_class("other", 20, default=True)) == [
        'globalDefault: the class "usual" is the default already: change that first'
    ]
    assert await ask.made(priority_class("usual", 10, default=False))
    assert await ask.made(priority_class("other", 20, default=True))


async def test_an_unknown_class_is_refused_with_the_nearest_and_what_there_is(api: ClusterService) -> None:
    ask = Asker(api)
    await ask.made(priority_class("high", 1000))
    there = "there are high, system-cluster-critical, system-node-critical"
    assert await ask.refused(prioritised("p", "hihg")) == [
        f'spec.priorityClassName: there is no PriorityClass "hihg": did you mean "high"? T{there[1:]}'
    ]
    assert await ask.refused(prioritised("p", "zzzzzzzz")) == [
        f'spec.priorityClassName: there is no PriorityClass "zzzzzzzz": {there}'
    ]
    workload = deployment()
    workload.spec.template.spec.priorityClassName = "hihg"
    assert (await ask.refused(workload))[0].startswith("spec.template.spec.priorityClassName: there is no")


async def test_a_class_and_its_pods_may_come_together(api: ClusterService) -> None:
    workload = deployment()
    workload.spec.template.spec.priorityClassName = "high"
    results = await Asker(api).apply(prioritised("p", "high"), workload, priority_class("high", 7))
    assert [result.action for result in results] == ["created"] * 3


async def test_a_dry_run_foresees_namespaces_and_classes(api: ClusterService) -> None:
    space, inside = o.Namespace(apiVersion="v1", kind="Namespace"), prioritised("p", "high")
    space.metadata.name = inside.metadata.namespace = "n"
    bodies = [
        c.Object(kind=obj.kind, body=obj.SerializeToString()) for obj in (inside, space, priority_class("high", 7))
    ]
    request = c.WriteRequest(request_id="dry", objects=bodies, dry_run=True)
    for _ in range(2):  # the second finds nothing of the first
        results = (await api.apply(request)).results
        assert [result.action for result in results] == ["created"] * 3
        assert spec_of(KINDS["Pod"].FromString(results[0].object.body)).priority == 7
    assert (await Asker(api).refused(prioritised("p", "high")))[0].startswith("spec.priorityClassName: there is no")


async def test_the_systems_classes_are_there_and_stay(master: Master) -> None:
    ask = Asker(master.service)
    assert spec_of(await ask.made(prioritised("p", "system-node-critical"))).priority == 2_000_001_000
    key = c.Key(kind="PriorityClass", name="system-node-critical")
    response = await master.service.delete(c.DeleteRequest(request_id="d", keys=[key]))
    assert response.results[0].failure.reason == "Forbidden"
    changed = priority_class("system-node-critical", 5)
    assert "value: cannot be changed: system-node-critical is the system's own, with 2000001000" in (
        await ask.refused(changed)
    )


async def test_a_replica_set_whose_class_has_gone_says_so(master: Master) -> None:
    ask = Asker(master.service)
    await ask.made(priority_class("high", 7))
    rs = o.ReplicaSet(apiVersion="apps/v1", kind="ReplicaSet")
    rs.metadata.name = "web"
    rs.spec.CopyFrom(o.ReplicaSetSpec.FromString(deployment().spec.SerializeToString()))
    rs.spec.template.spec.priorityClassName = "high"
    await ask.made(rs)
    key = Key("ReplicaSet", "default", "web")
    view, rng = master.store.view, random.Random(1)
    pods = [change.object for change in reconcile(view, key, 1e9, rng).changes if hasattr(change, "object")]
    assert [spec_of(made).priority for made in pods] == [7, 7]
    gone = c.DeleteRequest(request_id="d", keys=[c.Key(kind="PriorityClass", name="high")])
    assert not (await master.service.delete(gone)).results[0].HasField("failure")
    outcome = reconcile(view, key, 1e9, rng)
    assert [(said.reason, said.message.partition(": there are")[0]) for said in outcome.said] == [
        ("FailedCreate", 'spec.template.spec.priorityClassName: there is no PriorityClass "high"')
    ]
    scaled = c.ScaleRequest(request_id="s", key=c.Key(kind="ReplicaSet", name="web"), replicas=3)
    assert not (await master.service.scale(scaled)).results[0].HasField("failure")


# ---- profiles ----
async def test_a_profile_that_is_not_there_is_refused(api: ClusterService) -> None:
    ask, packed, wrong, workload = Asker(api), pod("a"), pod("b"), deployment()
    packed.spec.schedulerName = "bin-packing"
    assert spec_of(await ask.made(packed)).schedulerName == "bin-packing"
    wrong.spec.schedulerName = workload.spec.template.spec.schedulerName = "bin-paking"
    expected = 'there is no scheduling profile "bin-paking": did you mean "bin-packing"? There are '
    assert (await ask.refused(wrong))[0].startswith(f"spec.schedulerName: {expected}")
    assert (await ask.refused(workload))[0].startswith(f"spec.template.spec.schedulerName: {expected}")


async def test_a_profile_of_the_configuration_is_there(master: Master) -> None:
    own, mine = Writes(master.store, lambda: 1e9, profiles={"mine": Profile()}), pod()
    mine.spec.schedulerName = "mine"
    body = c.Object(kind="Pod", body=mine.SerializeToString())
    [result] = (await own.create(c.WriteRequest(request_id="r", objects=[body]))).results
    assert result.action == "created"
    mine.metadata.name = "other"
    assert (await Asker(master.service).refused(mine))[0].startswith("spec.schedulerName: there is no scheduling")


# ---- gates ----
async def test_a_gated_pod_says_so_from_its_first_moment(api: ClusterService) -> None:
    ask, gated = Asker(api), pod()
    gated.spec.schedulingGates.add(name="example.com/quota")
    made = await ask.made(gated)
    assert isinstance(made, o.Pod)
    held = condition(made.status.conditions, "PodScheduled")
    assert held is not None and (held.status, held.reason) == ("False", "SchedulingGated")
    assert held.message == "Waits for its scheduling gates to be removed: example.com/quota"
    assert spec_of(await ask.made(pod())).schedulingGates == []  # apply removes what the manifest had and has no more
    assert (await ask.refused(gated))[0].startswith("spec.schedulingGates: can only be removed")


# ---- nodes ----
async def test_a_cordoned_node_has_the_taint_for_as_long_as_it_is(api: ClusterService) -> None:
    ask = Asker(api)
    node = o.Node(apiVersion="v1", kind="Node")
    node.metadata.name = "n1"
    node.spec.taints.add(key="own", effect="NoSchedule")

    async def taints(unschedulable: bool) -> list[str]:
        node.spec.unschedulable = unschedulable
        made = await ask.made(node)
        assert isinstance(made, o.Node)
        return [f"{taint.key}:{taint.effect}" for taint in made.spec.taints]

    assert await taints(False) == ["own:NoSchedule"]
    cordoned = ["own:NoSchedule", "node.kubernetes.io/unschedulable:NoSchedule"]
    assert [await taints(True), await taints(True), await taints(False)] == [cordoned, cordoned, ["own:NoSchedule"]]


# ---- devices ----
async def test_only_the_scheduler_says_which_devices_a_pod_has(master: Master) -> None:
    ask, wishful = Asker(master.service), pod()
    wishful.metadata.annotations["shoal.dev/gpu-devices"] = "0,1,2,3"

    def devices(obj: Object) -> str | None:
        return obj.metadata.annotations.get("shoal.dev/gpu-devices")

    assert devices(await ask.made(wishful)) is None

    def give(found: Object) -> bool:
        found.metadata.annotations["shoal.dev/gpu-devices"] = "2"
        return True

    await master.store.write([Modify(Key("Pod", "default", "web"), give)])
    assert devices(await ask.made(wishful)) == "2"
    assert devices(await ask.made(pod(), verb="update")) == "2"


# ---- evictions ----
async def test_one_disruption_is_given_to_one_of_two_who_ask_at_once(master: Master) -> None:
    ask, budget = Asker(master.service), o.PodDisruptionBudget(apiVersion="policy/v1", kind="PodDisruptionBudget")
    budget.metadata.name = "b"
    budget.spec.minAvailable.number = 1
    budget.spec.selector.SetInParent()
    await ask.made(budget)
    for name in ("p0", "p1"):
        await ask.made(pod(name))

    def say(found: Object) -> bool:
        if isinstance(found, o.Pod):
            found.status.conditions.add(type="Ready", status="True")
        return True

    view = master.store.view
    await master.store.write([Modify(Key("Pod", "default", name), say) for name in ("p0", "p1")])
    key = Key("PodDisruptionBudget", "default", "b")
    await master.store.write(disruption.reconcile(view, key, 1e9).changes)

    async def evict(name: str) -> str:
        asked = c.EvictRequest(request_id=f"e-{name}", key=c.Key(kind="Pod", name=name))
        return (await master.service.evict(asked)).results[0].failure.message

    stale = disruption.reconcile(view, key, 1e9 + 1).changes
    failures = await asyncio.gather(evict("p0"), evict("p1"))
    assert sorted(map(bool, failures)) == [False, True], failures
    assert "PodDisruptionBudget b" in "".join(failures)
    await master.store.write(stale)  # what the controller had decided before changes nothing any more
    await master.store.write(disruption.reconcile(view, key, 1e9 + 2).changes)
    found = view.get(*key)
    assert isinstance(found, o.PodDisruptionBudget)
    assert (found.status.disruptionsAllowed, found.status.currentHealthy, found.status.expectedPods) == (0, 1, 2)
