"""Who waits is tried again exactly when an event could help: after every event no pod waits that a fresh look at all of
them would place, and events that help nobody wake nobody. Random small clusters with all that placement looks at."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from shoal.master.controllers.base import mark_terminating
from shoal.master.model import Create, Delete, Object, key_of
from shoal.master.scheduler.core import Scheduler
from shoal.master.scheduler.queue import order
from shoal.master.scheduling import SchedulingLoop
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import World, claim, made_class, namespace, node, pod
from tests.scheduling_world import edit, end, idle, scheduling
from tests.virtual_loop import virtual

SEEDS = int(os.environ.get("SHOAL_PROPERTY_SEEDS", "60"))
EVENTS = 60
ZONE, GROUP = "zone", "scheduling.x-k8s.io/pod-group"


def ungate(found: Object) -> None:
    assert isinstance(found, o.Pod)
    found.spec.ClearField("schedulingGates")


def press(found: Object) -> None:
    assert isinstance(found, o.Node)
    found.status.conditions.add(type="MemoryPressure", status="False")


class Chance:
    """Random objects of few values, so that things collide and fill up."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.rng = world, random.Random(seed)
        self.made = 0

    def labels(self) -> dict[str, str]:
        return {"app": self.rng.choice("abc")}

    def node(self) -> o.Node:
        self.made += 1
        labels = {"disk": self.rng.choice(("ssd", "hdd"))}
        if self.rng.random() < 0.8:
            labels[ZONE] = self.rng.choice(("z1", "z2", "z3"))
        name = f"n{self.made}"
        labels["kubernetes.io/hostname"] = name
        taints = [("dedicated", "x", "NoSchedule")] if self.rng.random() < 0.2 else []
        is_ready, cpu = self.rng.random() < 0.9, self.rng.choice(("1", "2", "3"))
        return node(name, is_ready=is_ready, cpu=cpu, pods=self.rng.choice(("2", "5")), taints=taints, **labels)

    def pod(self) -> o.Pod:
        self.made += 1
        rng = self.rng
        made = pod(f"p{self.made}", cpu=rng.choice(("100m", "500m", "1", "1", "2")), app=self.labels()["app"])
        spec = made.spec
        spec.priority = rng.choice((0, 0, 0, 5, 5, -3))
        spec.terminationGracePeriodSeconds = 0
        if rng.random() < 0.2:
            spec.preemptionPolicy = "Never"
        if rng.random() < 0.2:
            spec.nodeSelector["disk"] = rng.choice(("ssd", "hdd"))
        if rng.random() < 0.3:
            spec.tolerations.add(key="dedicated", operator="Exists")
        if rng.random() < 0.15:
            spec.containers[0].ports.add(containerPort=80, hostPort=rng.choice((80, 81)))
        if rng.random() < 0.1:
            made.metadata.labels[GROUP] = rng.choice(("g1", "g2"))
        if rng.random() < 0.1:
            spec.volumes.add(name="v").persistentVolumeClaim.claimName = rng.choice(("c1", "c2"))
        if rng.random() < 0.1:
            spec.schedulingGates.add(name="wait")
        self.terms(made)
        return made

    def terms(self, made: o.Pod) -> None:
        rng, spec = self.rng, made.spec
        key = rng.choice((ZONE, "kubernetes.io/hostname"))
        kind = rng.choice(("", "", "", "near", "apart", "spread"))
        if kind == "spread":
            spread = spec.topologySpreadConstraints.add(maxSkew=1, topologyKey=ZONE, whenUnsatisfiable="DoNotSchedule")
            spread.labelSelector.matchLabels["app"] = made.metadata.labels["app"]
            if rng.random() < 0.3:
                spread.minDomains = 3
        elif kind:
            owner = spec.affinity.podAffinity if kind == "near" else spec.affinity.podAntiAffinity
            term = owner.requiredDuringSchedulingIgnoredDuringExecution.add(topologyKey=key)
            term.labelSelector.matchLabels["app"] = rng.choice("abc")
            if rng.random() < 0.3:
                term.namespaceSelector.matchLabels["team"] = "x"

    # ---- events ----
    def event(self) -> str:
        events = (
            self.create, self.create, self.create, self.create, self.finish, self.finish, self.delete, self.relabel,
            self.leave, self.add_node, self.remove_node, self.relabel_node, self.taint, self.turn, self.resize,
            self.relabel_space, self.group, self.open_gate, self.claim, self.bind_by_hand,
        )  # fmt: skip
        what = self.rng.choice(events)
        what()
        return what.__name__

    def some(self, kind: str, which: Callable[[Object], bool] = lambda _: True) -> Object | None:
        found = [one for one in self.world.all(kind) if which(one)]
        return self.rng.choice(found) if found else None

    def bound(self) -> o.Pod | None:
        found = self.some("Pod", lambda one: isinstance(one, o.Pod) and bool(one.spec.nodeName))
        return found if isinstance(found, o.Pod) else None

    def create(self) -> None:
        self.world.commit(Create(self.pod()))

    def finish(self) -> None:
        if one := self.bound():
            edit(self.world, one, end)

    def delete(self) -> None:
        if one := self.some("Pod"):
            self.world.commit(Delete(key_of(one)))

    def leave(self) -> None:
        if one := self.bound():
            edit(self.world, one, lambda found: mark_terminating(found, 1.0))

    def relabel(self) -> None:
        if one := self.some("Pod"):
            edit(self.world, one, lambda found: found.metadata.labels.update(self.labels()))

    def add_node(self) -> None:
        self.world.commit(Create(self.node()))

    def remove_node(self) -> None:
        if one := self.some("Node"):
            self.world.commit(Delete(key_of(one)))

    def relabel_node(self) -> None:
        if one := self.some("Node"):
            labels = {ZONE: self.rng.choice(("z1", "z2", "z3")), "disk": self.rng.choice(("ssd", "hdd"))}
            edit(self.world, one, lambda found: found.metadata.labels.update(labels))

    def _node_edit(self, change: Callable[[o.Node], object]) -> None:
        if one := self.some("Node"):
            edit(self.world, one, lambda found: change(found) if isinstance(found, o.Node) else None)

    def taint(self) -> None:
        def change(found: o.Node) -> None:
            if found.spec.taints:
                del found.spec.taints[:]
            else:
                found.spec.taints.add(key="dedicated", value="x", effect="NoSchedule")

        self._node_edit(change)

    def turn(self) -> None:
        def change(found: o.Node) -> None:
            ready = found.status.conditions[0]
            ready.status = "False" if ready.status == "True" else "True"

        self._node_edit(change)

    def resize(self) -> None:
        cpu = self.rng.choice(("1", "2", "3"))

        def change(found: o.Node) -> None:
            found.status.allocatable["cpu"].text = cpu

        self._node_edit(change)

    def relabel_space(self) -> None:
        if one := self.some("Namespace"):
            team = self.rng.choice("xy")
            edit(self.world, one, lambda found: found.metadata.labels.update({"team": team}))

    def group(self) -> None:
        made = o.PodGroup(apiVersion="scheduling.x-k8s.io/v1alpha1", kind="PodGroup")
        made.metadata.name, made.metadata.namespace = self.rng.choice(("g1", "g2")), "default"
        made.metadata.uid = f"uid-{made.metadata.name}"
        made.spec.minMember = 2
        self.world.commit(Create(made))

    def open_gate(self) -> None:
        one = self.some("Pod", lambda found: isinstance(found, o.Pod) and bool(found.spec.schedulingGates))
        if isinstance(one, o.Pod):
            edit(self.world, one, ungate)

    def claim(self) -> None:
        name = self.rng.choice(("c1", "c2"))
        self.world.commit(Create(claim(name)))

    def bind_by_hand(self) -> None:
        one, there = self.pod(), self.some("Node")
        if there is not None:
            one.spec.ClearField("schedulingGates")
            one.spec.nodeName = there.metadata.name
            self.world.commit(Create(one))


def overlooked(loop: SchedulingLoop) -> list[str]:
    """Pods that wait, though a fresh look at all of them places one or finds somebody to evict for it; and nominated
    ones that could go somewhere as things are."""
    assert not loop.queue.active and not loop.queue.later
    waiting = [loop.queue.pods[uid] for uid in loop.queue.lot.where]
    plan = Scheduler().schedule(loop.snapshot.clone(), order([one.waiting for one in waiting if not one.node]))
    wrong = [f"{one.waiting.uid} fits {one.node}: {one.waiting.pods}" for one in plan.bindings]
    wrong += [f"{one.waiting.uid} may push on {one.node}: {one.waiting.pods}" for one in plan.preemptions]
    for pending in waiting:
        if pending.node:
            alone = Scheduler().schedule(loop.snapshot.clone(), [pending.waiting])
            wrong += [f"{one.waiting.uid}, nominated, fits {one.node}: {one.waiting.pods}" for one in alone.bindings]
    return wrong


@pytest.mark.parametrize("seed", range(SEEDS))
def test_nobody_is_overlooked(seed: int) -> None:
    async def main() -> None:
        world = World([namespace(), made_class()])
        chance = Chance(world, seed)
        for _ in range(4):
            chance.add_node()
        async with scheduling(world) as loop:
            done: list[str] = []
            for _ in range(EVENTS):
                done.append(chance.event())
                await idle()
                assert (wrong := overlooked(loop)) == [], f"after {done[-3:]}: {wrong}"
            assert world.unchanged()

    virtual(main())


def attempts(loop: SchedulingLoop) -> int:
    return sum(one.attempts for one in loop.queue.pods.values())


def test_events_that_help_nobody_wake_nobody() -> None:
    async def main() -> None:
        world = World([namespace(), node("a", cpu="2", zone="z1"), node("b", cpu="2", zone="z2")])
        async with scheduling(world) as loop:
            fill = [pod(f"fill{i}", cpu="500m", app="web") for i in range(8)]
            waiting = [pod(f"wait{i}", cpu="3") for i in range(300)]
            waiting += [pod(f"picky{i}", cpu="100m") for i in range(300)]
            for one in waiting[300:]:
                one.spec.nodeSelector["zone"] = "nowhere"
            for one in (*fill, *waiting):
                world.commit(Create(one))
            await idle()
            assert len(loop.queue.lot) == 600
            before = attempts(loop)

            def touch(kind: str, name: str, change: Callable[[Object], object]) -> None:
                found = world.get(kind, "" if kind in ("Node", "Namespace") else "default", name)
                assert found is not None
                edit(world, found, change)

            touch("Node", "a", lambda found: found.metadata.labels.update({"color": "red"}))
            touch("Node", "a", press)
            touch("Namespace", "default", lambda found: found.metadata.labels.update({"team": "x"}))
            touch("Pod", "fill0", lambda found: found.metadata.labels.update({"app": "db"}))
            touch("Pod", "fill1", end)
            world.commit(Create(claim()))
            await idle()
            assert attempts(loop) == before
            world.commit(Create(node("c", cpu="4")))
            await idle()
            assert len(loop.queue.lot) == 599
            assert attempts(loop) <= before + 4, "one fits; the next is looked at, and nobody else"

    virtual(main())


def test_room_wakes_as_many_as_fit() -> None:
    async def main() -> None:
        world = World([namespace(), node("a", cpu="4")])
        async with scheduling(world) as loop:
            for one in [pod("big", cpu="4"), *(pod(f"p{i:04}", cpu="1", app=f"{i}") for i in range(400))]:
                world.commit(Create(one))
            await idle()
            assert len(loop.queue.lot) == 400
            before = attempts(loop)
            world.commit(Delete(key_of(pod("big"))))
            await idle()
            placed = sorted(one.metadata.name for one in world.pods() if one.spec.nodeName)
            assert placed == ["p0000", "p0001", "p0002", "p0003"], "the oldest first"
            assert attempts(loop) <= before + 4 + 2

    virtual(main())
