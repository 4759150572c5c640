"""What nobody can place, on a real cluster: refused with its path, or pending with its true reason (B82)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from tests.behaviours.world import Object, World, container, pod

HOST = "kubernetes.io/hostname"
SLEEP = "sleep 3600"


def asking(**amounts: Any) -> Object:
    return pod("p", container(SLEEP, resources={"requests": amounts}))


REFUSED: dict[str, tuple[Object, str]] = {
    "negative": (asking(cpu=-1), "resources.requests.cpu: must not be negative, but it is -1"),
    "absurd": (asking(memory="2Ei"), "resources.requests.memory: must be at most 1Pi, but it is 2Ei"),
    "class": (
        pod("p", container(SLEEP), priorityClassName="system-node-critcal"),
        'there is no PriorityClass "system-node-critcal": did you mean "system-node-critical"?',
    ),
    "profile": (
        pod("p", container(SLEEP), schedulerName="bin-paking"),
        'spec.schedulerName: there is no scheduling profile "bin-paking": did you mean "bin-packing"?',
    ),
    "labels": (
        pod("p", container(SLEEP), labels={f"l{n}": "x" for n in range(10_000)}),
        "metadata.labels: has 10000 entries: at most 500 are allowed",
    ),
    "share": (
        pod("p", container(SLEEP, resources={"limits": {"shoal.dev/gpu-milli": 1500}})),
        "must be from 1 to 1000, or a multiple of it, but it is 1500",
    ),
    "operator": (
        pod("p", container(SLEEP), topologySpreadConstraints=[{"maxSkew": 0, "topologyKey": HOST}]),
        "spec.topologySpreadConstraints[0].maxSkew: must be from 1 to",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(world: World, name: str) -> None:
    manifest, words = REFUSED[name]
    assert words in " ".join(world.refused(manifest).split())
    assert world.shoal("get", "pods", "-o", "name") == ""


def near(key: str) -> Object:
    term = {"topologyKey": key, "labelSelector": {"matchLabels": {"app": "nobody"}}}
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def nodes(*rules: Object) -> Object:
    terms = {"nodeSelectorTerms": [{"matchExpressions": list(rules)}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def spread(key: str, **more: Any) -> list[Object]:
    chosen = {"labelSelector": {"matchLabels": {"app": "web"}}}
    return [{"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule", **chosen, **more}]


PENDING: dict[str, tuple[Object, str]] = {
    "more cpu than any node": (asking(cpu=900), "2 Insufficient cpu"),
    "devices that no node has": (
        pod("p", container(SLEEP, resources={"limits": {"example.com/fpga": 1}})),
        "2 Insufficient example.com/fpga",
    ),
    "affinity by an unknown key": (
        pod("p", container(SLEEP), affinity=near("nowhere")),
        "2 node(s) didn't match pod affinity rules",
    ),
    "spread over an unknown key": (
        pod("p", container(SLEEP), topologySpreadConstraints=spread("nowhere"), labels={"app": "web"}),
        "2 node(s) didn't match pod topology spread constraints (missing required label)",
    ),
    "an affinity that contradicts itself": (
        pod(
            "p",
            container(SLEEP),
            affinity=nodes(
                {"key": HOST, "operator": "Exists"},
                {"key": HOST, "operator": "DoesNotExist"},
            ),
        ),
        "2 node(s) didn't match Pod's node affinity/selector",
    ),
}


def told(world: World, name: str, words: str) -> None:
    found = world.until(
        name, f"told: {words}", lambda p: words in str([c["message"] for c in p["status"]["conditions"]])
    )
    assert (found["status"]["phase"], found["spec"].get("nodeName", "")) == ("Pending", "")


@pytest.mark.parametrize("name", PENDING)
def test_what_no_node_takes_waits_and_says_why(world: World, name: str) -> None:
    manifest, words = PENDING[name]
    world.apply(manifest)
    told(world, "p", words)
    assert words in " ".join(world.shoal("why", "pod/p").split())


def test_a_gang_that_is_larger_than_the_cluster_waits_as_a_whole(world: World) -> None:
    group = {"apiVersion": "scheduling.x-k8s.io/v1alpha1", "kind": "PodGroup", "metadata": {"name": "g"}}
    cpu = world.cluster.objects("nodes")[0]["status"]["allocatable"]["cpu"]
    members = []
    for name in ("a", "b", "c"):
        member = asking(cpu=cpu)
        member["metadata"] = {"name": name, "labels": {"scheduling.x-k8s.io/pod-group": "g"}}
        members.append(member)
    world.apply({**group, "spec": {"minMember": 3}}, *members)
    for name in ("a", "b", "c"):
        told(world, name, "Insufficient cpu")
    assert world.get("podgroup", "g")["status"]["phase"] == "Scheduling"


def test_spread_over_one_domain_is_even_but_not_over_two(world: World) -> None:
    """With one node to choose from there is one domain, in which nothing is uneven, unless two are asked for."""
    node = world.cluster.plan.nodes[0].name
    wide = pod("a1", container(SLEEP), labels={"app": "web"}, nodeSelector={HOST: node})
    wide["spec"]["topologySpreadConstraints"] = spread(HOST)
    for name in ("a1", "a2"):
        wide["metadata"]["name"] = name
        world.apply(deepcopy(wide))
        world.phase(name, "Running")
    wide["metadata"]["name"] = "a3"
    wide["spec"]["topologySpreadConstraints"] = spread(HOST, minDomains=2)
    world.apply(wide)
    told(world, "a3", "1 node(s) didn't match pod topology spread constraints")


def test_a_gated_pod_waits_is_narrowed_down_and_goes_when_the_gate_is_gone(world: World) -> None:
    gated = pod("p", container(SLEEP), schedulingGates=[{"name": "example.com/quota"}])
    world.apply(gated)
    told(world, "p", "Waits for its scheduling gates to be removed: example.com/quota")
    assert "SchedulingGated" in world.shoal("get", "pod", "p")
    node = world.cluster.plan.nodes[1].name
    gated["spec"]["nodeSelector"] = {HOST: node}
    world.apply(gated)
    gated["spec"]["schedulingGates"] = []
    world.apply(gated)
    assert world.phase("p", "Running")["spec"]["nodeName"] == node
    gated["spec"]["schedulingGates"] = [{"name": "example.com/late"}]
    assert "spec.schedulingGates: can only be removed" in world.refused(gated)


def test_a_cordoned_node_gets_no_new_pods_and_keeps_those_it_has(world: World) -> None:
    node = world.cluster.plan.nodes[0].name
    here = {"nodeSelector": {HOST: node}}
    world.apply(pod("before", container(SLEEP), **here))
    world.phase("before", "Running")
    labels = {HOST: node}  # said again: who applied them before would have them taken away
    manifest: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}}
    world.cluster.shoal("apply", "-f", world.write({**manifest, "spec": {"unschedulable": True}}))
    try:
        assert f"{node}   Ready,SchedulingDisabled" in world.cluster.shoal("get", "nodes")
        world.apply(pod("after", container(SLEEP), **here))
        told(world, "after", "untolerated taint {node.kubernetes.io/unschedulable:NoSchedule}")
        assert world.pod("before")["status"]["phase"] == "Running"
    finally:
        world.cluster.shoal("apply", "-f", world.write(manifest))
    assert world.phase("after", "Running")["spec"]["nodeName"] == node
