"""What a plan foretells is what the running master then decides: several random workloads at once, on full clusters."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from shoal.master.core import Master
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from tests import control_world as w
from tests.masterkit import memory_master
from tests.planning_world import put, sent, wished

PATIENCE_SECONDS = 20.0


def workloads(rng: random.Random) -> list[o.Deployment]:
    found = []
    for number in range(rng.randint(2, 4)):
        wish = wished(
            f"{rng.choice('abcdefgh')}{number}", rng.randint(1, 40), cpu=f"{rng.choice([100, 250, 600, 1500])}m"
        )
        spec = wish.spec.template.spec
        if rng.random() < 0.3:
            term = spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution.add()
            term.topologyKey = "kubernetes.io/hostname"
            term.labelSelector.matchLabels["app"] = wish.metadata.name
        if rng.random() < 0.3:
            spec.schedulerName = rng.choice(["bin-packing", "balanced"])
        if rng.random() < 0.3:
            spread = spec.topologySpreadConstraints.add(
                maxSkew=1, topologyKey="zone", whenUnsatisfiable="DoNotSchedule"
            )
            spread.labelSelector.matchLabels["app"] = wish.metadata.name
        if rng.random() < 0.3:
            spec.priorityClassName = "high"
        found.append(wish)
    return found


def high() -> o.PriorityClass:
    made = o.PriorityClass(apiVersion="scheduling.k8s.io/v1", kind="PriorityClass", value=1000)
    made.metadata.name = made.metadata.uid = "high"
    made.preemptionPolicy = "Never"  # nobody is here to end a victim
    return made


def nodes(rng: random.Random) -> list[o.Node]:
    made = []
    for number in range(rng.randint(2, 7)):
        labels = {"kubernetes.io/hostname": f"n{number}", "zone": rng.choice("xy")}
        node = w.node(f"n{number}", cpu=str(rng.choice([2, 4, 8])))
        node.metadata.labels.update(labels)
        made.append(node)
    return made


def now(master: Master) -> Counter[tuple[str, str]]:
    """How many pods of which workload are on which node; "" for those that wait and say why."""
    found: Counter[tuple[str, str]] = Counter()
    for pod in master.store.view.all("Pod"):
        assert isinstance(pod, o.Pod)
        told = any(one.type == "PodScheduled" for one in pod.status.conditions)
        found[pod.metadata.labels["app"], pod.spec.nodeName if told else "undecided"] += 1
    return found


@pytest.mark.parametrize("seed", range(12))
async def test_pods_go_where_the_plan_said(seed: int) -> None:
    rng = random.Random(seed)
    async with memory_master() as master:
        await put(master, *nodes(rng), high())
        wishes = workloads(rng)
        plan = await master.service.plan(c.PlanRequest(objects=sent(*wishes)))
        foretold = Counter((pod.owner.name, pod.node) for pod in plan.pods)
        assert foretold.total() == sum(wish.spec.replicas for wish in wishes)
        request = c.CarryOutRequest(request_id=f"seed-{seed}", objects=sent(*wishes), expected=plan)
        done = await master.service.carry_out(request)
        assert not done.changed
        async with asyncio.timeout(PATIENCE_SECONDS):
            while now(master) != foretold:
                await asyncio.sleep(0.01)
                found = now(master)
                decided = found.total() == foretold.total() and not any(node == "undecided" for _, node in found)
                assert not decided or found == foretold, found - foretold
