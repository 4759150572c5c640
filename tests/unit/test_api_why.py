"""Why: decisions are kept and told, and advice that is followed to the letter sees the pod placed by the loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from shoal.master.api.faults import Invalid
from shoal.master.api.why import Why
from shoal.master.model import Create, Delete, Fault, NotFound, Object, Unavailable, key_of
from shoal.master.scheduler.profiles import BUILT_IN
from shoal.master.scheduling import SchedulingLoop
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from tests import control_world as w
from tests.control_world import World
from tests.scheduling_world import edit, idle, scheduling

ZONE = "topology.kubernetes.io/zone"
AVOID = ("team", "red", "NoSchedule")


def asking(world: World, loop: SchedulingLoop | None) -> Why:
    return Why(world, lambda: loop, BUILT_IN, lambda: 0.0)  # type: ignore[arg-type]


async def ask(world: World, loop: SchedulingLoop | None, name: str) -> c.WhyResponse:
    return await asking(world, loop).why(c.WhyRequest(pod=c.Key(kind="Pod", namespace="default", name=name)))


def create(world: World, *objects: Object) -> None:
    for obj in objects:
        assert not isinstance(world.commit(Create(obj)), Fault)


def get(world: World, name: str) -> o.Pod:
    found = world.get("Pod", "default", name)
    assert isinstance(found, o.Pod)
    return found


async def test_a_placed_pod_says_what_it_was_preferred_for() -> None:
    world = World([w.node("n1"), w.node("n2"), w.node("n3", is_ready=False), w.pod("old", node="n1", cpu="2")])
    async with scheduling(world) as loop:
        create(world, w.pod("new", cpu="1"))
        await idle()
        found = await ask(world, loop, "new")
    assert (found.kept, found.node, found.nodes, found.open, found.attempts) == (True, "n2", 3, 2, 1)
    assert found.revision > 0
    assert [(one.reason, one.nodes) for one in found.rejected] == [("node(s) were not ready", 1)]
    assert [one.node for one in found.best] == ["n2", "n1"]
    for one in found.best:
        assert sum(part.weight * part.value for part in one.parts) == pytest.approx(one.score)
    assert not found.advice


async def test_what_is_not_kept_is_worked_out_anew() -> None:
    world = World([w.node("n1"), w.node("n2"), w.pod("there", node="n1", cpu="1")])
    async with scheduling(world) as loop:
        found = await ask(world, loop, "there")
    assert (found.kept, found.node, found.open) == (False, "n1", 2)
    assert found.best


async def test_what_cannot_be_asked() -> None:
    world = World([w.pod("p")])
    with pytest.raises(Unavailable, match="no scheduler runs here"):
        await ask(world, None, "p")
    async with scheduling(world) as loop:
        with pytest.raises(NotFound, match="there is no Pod default/q"):
            await ask(world, loop, "q")
        with pytest.raises(Invalid, match="why is asked of pods"):
            await asking(world, loop).why(c.WhyRequest(pod=c.Key(kind="Node", name="n1")))


async def test_a_gated_pod_gets_no_advice() -> None:
    waiting = w.pod("p", cpu="100")
    waiting.spec.schedulingGates.add(name="later")
    world = World([w.node("n1"), waiting])
    async with scheduling(world) as loop:
        assert not (await ask(world, loop, "p")).advised


async def test_nothing_helps_and_that_is_said() -> None:
    waiting = w.pod("p", cpu="5")
    waiting.spec.nodeSelector["disk"] = "ssd"
    world = World([w.node("n1"), waiting])
    async with scheduling(world) as loop:
        found = await ask(world, loop, "p")
    assert (found.advised, list(found.advice)) == (True, [])
    assert "didn't match Pod's node affinity/selector" in found.message


# ---- advice, followed ----
def labelled(node: o.Node, key: str, value: str) -> o.Node:
    node.metadata.labels[key] = value
    return node


def in_zone(zone: str, name: str, cpu: str = "4") -> o.Node:
    return labelled(w.node(name, cpu=cpu), ZONE, zone)


def too_big() -> list[Object]:
    return [w.node("n1"), w.pod("old", node="n1", cpu="3"), w.pod("p", cpu="1500m")]


def short_of_both() -> list[Object]:
    return [w.node("n1", cpu="1", memory="1Gi"), w.pod("p", cpu="2", memory="2Gi")]


def choosy() -> list[Object]:
    waiting = w.pod("p", cpu="1")
    waiting.spec.nodeSelector["disk"] = "ssd"
    return [w.node("n1"), waiting]


def affine() -> list[Object]:
    waiting = w.pod("p", cpu="1")
    terms = waiting.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms
    rules = terms.add().matchExpressions
    rules.add(key=ZONE, operator="In", values=["a"])
    rules.add(key="gpu", operator="Exists")
    return [in_zone("a", "n1"), waiting]


def tainted() -> list[Object]:
    return [w.node("n1", taints=[AVOID]), w.pod("p", cpu="1")]


def cordoned() -> list[Object]:
    return [w.node("n1", taints=[("node.kubernetes.io/unschedulable", "", "NoSchedule")]), w.pod("p", cpu="1")]


def apart() -> list[Object]:
    waiting = w.pod("p", cpu="1", app="web")
    terms = waiting.spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution
    terms.add(topologyKey="kubernetes.io/hostname").labelSelector.matchLabels["app"] = "web"
    return [labelled(w.node("n1"), "kubernetes.io/hostname", "n1"), w.pod("old", node="n1", app="web"), waiting]


def skewed() -> list[Object]:
    """Zone b counts, but its node is full."""
    waiting = w.pod("p", cpu="1", app="web")
    rule = waiting.spec.topologySpreadConstraints.add(maxSkew=1, topologyKey=ZONE, whenUnsatisfiable="DoNotSchedule")
    rule.labelSelector.matchLabels["app"] = "web"
    nodes = [in_zone("a", "n1"), in_zone("b", "n2", cpu="100m")]
    return [*nodes, *(w.pod(f"old{i}", node="n1", app="web") for i in range(2)), waiting]


def crowded_port() -> list[Object]:
    pods = [w.pod("old", node="n1"), w.pod("p", cpu="1")]
    for one in pods:
        one.spec.containers[0].ports.add(containerPort=80, hostPort=8080)
    return [w.node("n1"), *pods]


def outranked() -> list[Object]:
    urgent = o.PriorityClass(apiVersion="scheduling.k8s.io/v1", kind="PriorityClass", value=1000)
    urgent.metadata.name = "urgent"
    busy = w.pod("busy", node="n1", cpu="3")
    busy.spec.priority = 10
    return [w.node("n1"), urgent, busy, w.pod("p", cpu="1500m")]


def in_the_way() -> list[Object]:
    """The big pod fits on n1 alone, where a small one of a ReplicaSet is, which could be on n2."""
    owner = w.replicaset()
    small = w.pod("small", owner=owner, node="n1", cpu="1")
    return [w.node("n1", cpu="4"), w.node("n2", cpu="2"), owner, small, w.pod("p", cpu="4")]


def change_of(advice: c.Advice) -> dict[str, Any]:
    change: dict[str, Any] = json.loads(advice.change)
    return change


def follow(world: World, advice: c.Advice) -> None:
    """What a person would do who takes the advice at its word."""
    change = change_of(advice)
    if advice.kind == "label":
        label_node(world, change)
    elif advice.kind == "uncordon":
        edit(world, of_node(world, change["node"]), untaint)
    elif advice.kind == "move":
        old = get(world, change["pod"].partition("/")[2])
        world.commit(Delete(key_of(old)))
        create(world, w.pod("anew", owner=world.get("ReplicaSet", "default", "web"), cpu="1"))
    else:
        pod = get(world, "p")
        world.commit(Delete(key_of(pod)))
        create(world, changed(pod, advice.kind, change))


def untaint(found: Object) -> None:
    assert isinstance(found, o.Node)
    del found.spec.taints[:]


def of_node(world: World, name: str) -> Object:
    found = world.get("Node", "", name)
    assert found is not None
    return found


def label_node(world: World, change: dict[str, Any]) -> None:
    def label(found: Object) -> None:
        found.metadata.labels.update(change["label"])

    edit(world, of_node(world, change["node"]), label)


def changed(pod: o.Pod, kind: str, change: dict[str, Any]) -> o.Pod:
    """The pod as the advice wants it, made anew."""
    made = o.Pod.FromString(pod.SerializeToString())
    made.metadata.uid += "-again"
    made.status.ClearField("conditions")
    spec = made.spec
    if kind == "request":
        for name, text in change["requests"].items():
            spec.containers[0].resources.requests[name].text = text
    elif kind == "priority":
        spec.priority = change["priority"]
    elif kind == "toleration":
        spec.tolerations.add(**change["toleration"])
    elif kind == "port":
        del spec.containers[0].ports[:]
    elif kind == "spread" and change["set"].endswith(".maxSkew"):
        spec.topologySpreadConstraints[0].maxSkew = change["value"]
    elif kind == "spread":
        spec.topologySpreadConstraints[0].whenUnsatisfiable = change["value"]
    elif kind == "selector":
        del spec.nodeSelector["disk"]
    elif kind == "affinity":
        terms = spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms
        rules = [rule for rule in terms[0].matchExpressions if rule.key != change["key"]]
        del terms[0].matchExpressions[:]
        terms[0].matchExpressions.extend(rules)
    elif kind == "anti-affinity":
        spec.affinity.ClearField("podAntiAffinity")
    return made


CASES: list[tuple[Callable[[], list[Object]], list[str]]] = [
    (too_big, ["ask for 1000m cpu instead of 1500m, in all containers together"]),
    (short_of_both, ["ask for 1000m cpu instead of 2000m and 1Gi memory instead of 2Gi, in all containers together"]),
    (choosy, ["take disk: ssd out of its nodeSelector", "give node n1 the label disk=ssd"]),
    (affine, ["take the rule gpu Exists out of its required node affinity"]),
    (tainted, ["give it the toleration {key: team, operator: Equal, value: red, effect: NoSchedule}"]),
    (cordoned, ["let node n1 take pods again (spec.unschedulable)"]),
    (
        apart,
        [
            "take its required pod anti-affinity over kubernetes.io/hostname (app In [web]) away, or make it preferred",
        ],
    ),
    (
        skewed,
        [
            f"raise maxSkew over {ZONE} from 1 to 3",
            f'make the spread over {ZONE} soft (whenUnsatisfiable: "ScheduleAnyway")',
        ],
    ),
    (crowded_port, ["take another host port than 8080/TCP, or none"]),
    (outranked, ["give it priority 11 or more (PriorityClass urgent: 1000), evicting default/busy on node n1"]),
    (in_the_way, ["move pod default/small from node n1 to node n2 (its controller makes it anew there)"]),
]


@pytest.mark.parametrize(("make", "told"), CASES, ids=[make.__name__ for make, _ in CASES])
async def test_advice_that_is_followed_places_the_pod(make: Callable[[], list[Object]], told: list[str]) -> None:
    world = World(make())
    async with scheduling(world) as loop:
        found = await ask(world, loop, "p")
    texts = [one.text for one in found.advice]
    assert [text for text in texts if text in told] == told, texts
    for advice in found.advice:
        world = World(make())
        async with scheduling(world) as loop:
            assert not get(world, "p").spec.nodeName
            follow(world, advice)
            await idle()
            if advice.kind == "priority":
                for name in change_of(advice)["victims"]:
                    world.commit(Delete(key_of(get(world, name.partition("/")[2]))))
                await idle()
            assert get(world, "p").spec.nodeName == advice.node, advice.text


async def test_too_many_questions_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.master.api.why.WAITING", 0)
    world = World([w.node("n1"), w.pod("p", cpu="100")])
    async with scheduling(world) as loop:
        why, request = asking(world, loop), c.WhyRequest(pod=c.Key(kind="Pod", namespace="default", name="p"))
        results = await asyncio.gather(*(why.why(request) for _ in range(3)), return_exceptions=True)
        assert [isinstance(one, Unavailable) for one in results] == [False, False, True]
        assert (await why.why(request)).advised


async def test_others_have_their_turns_while_advice_is_looked_for() -> None:
    lost = w.pod("lost", cpu="1")
    lost.spec.nodeSelector.update({f"key{n}": "x" for n in range(40)})
    world, turns = World([w.node("n1"), lost]), 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with scheduling(world) as loop:
        beside = asyncio.create_task(other())
        found = await ask(world, loop, "lost")
        beside.cancel()
    assert found.advised and not found.advice
    assert turns >= 40


async def test_a_gang_that_is_too_large_says_how_much_of_it_fits() -> None:
    group = o.PodGroup(apiVersion="scheduling.x-k8s.io/v1alpha1", kind="PodGroup")
    group.metadata.name, group.metadata.namespace, group.metadata.uid = "g", "default", "uid-g"
    group.spec.minMember = 5
    members = [w.pod(f"m{i}", cpu="1") for i in range(5)]
    for one in members:
        one.metadata.labels["scheduling.x-k8s.io/pod-group"] = "g"
    world = World([w.node("n1", cpu="2"), w.node("n2", cpu="1"), group, *members])
    async with scheduling(world) as loop:
        found = await ask(world, loop, "m4")
    assert found.message == (
        "pod group g needs 5 members placed together, but 3 fit; for the next "
        "0/2 nodes are available: 2 Insufficient cpu (short of 1000m at best)."
    )
    assert not found.advised and not found.advice
