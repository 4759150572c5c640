"""One event each, and whom it must wake: what random clusters seldom show."""

from __future__ import annotations

import asyncio

import pytest

from shoal.master.model import Create, Delete, Object, key_of
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import World, namespace, node, pod
from tests.scheduling_world import edit, idle, scheduling
from tests.virtual_loop import virtual

ZONE, HOST, GROUP = "zone", "host", "scheduling.x-k8s.io/pod-group"


def zones() -> World:
    """Two zones of two nodes, with room for many."""
    nodes = [node(f"{zone}{i}", cpu="8", zone=zone, host=f"{zone}{i}") for zone in "ab" for i in (1, 2)]
    return World([namespace(), *nodes])


def shuns(one: o.Pod, app: str, key: str = ZONE) -> o.Pod:
    terms = one.spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution
    terms.add(topologyKey=key).labelSelector.matchLabels["app"] = app
    return one


def at(one: o.Pod, **labels: str) -> o.Pod:
    one.spec.nodeSelector.update(labels)
    return one


def spread(one: o.Pod, app: str) -> o.Pod:
    rule = one.spec.topologySpreadConstraints.add(maxSkew=1, topologyKey=ZONE, whenUnsatisfiable="DoNotSchedule")
    rule.nodeAffinityPolicy = "Ignore"
    rule.labelSelector.matchLabels["app"] = app
    return one


def with_port(one: o.Pod) -> o.Pod:
    one.spec.containers[0].ports.add(containerPort=80, hostPort=80)
    return one


def group(least: int) -> o.PodGroup:
    made = o.PodGroup(apiVersion="scheduling.x-k8s.io/v1alpha1", kind="PodGroup")
    made.metadata.name, made.metadata.namespace, made.metadata.uid = "g", "default", "uid-g"
    made.spec.minMember = least
    return made


def member(name: str, cpu: str = "1") -> o.Pod:
    made = pod(name, cpu=cpu)
    made.metadata.labels[GROUP] = "g"
    return made


def home(world: World, name: str) -> str:
    found = world.get("Pod", "default", name)
    assert isinstance(found, o.Pod)
    return found.spec.nodeName


async def then(world: World, *changes: Create | Delete) -> None:
    world.apply(changes)
    await idle()


def test_a_shunned_pod_leaves_another_node_of_the_zone() -> None:
    async def main() -> None:
        world = zones()
        async with scheduling(world):
            shunned = at(pod("shunned", app="x"), host="a1")
            await then(world, Create(shunned))
            await then(world, Create(at(shuns(pod("shy"), "x"), host="a2")))
            assert not home(world, "shy")
            await then(world, Delete(key_of(shunned)))
            assert home(world, "shy") == "a2"

    virtual(main())


def test_a_pod_that_shuns_leaves_another_node_of_the_zone() -> None:
    async def main() -> None:
        world = zones()
        async with scheduling(world):
            shy = at(shuns(pod("shy"), "x"), host="a1")
            await then(world, Create(shy))
            await then(world, Create(at(pod("x", app="x"), host="a2")))
            assert not home(world, "x")
            await then(world, Delete(key_of(shy)))
            assert home(world, "x") == "a2"

    virtual(main())


def test_a_pod_in_the_emptier_zone_lets_the_fuller_take_one() -> None:
    async def main() -> None:
        world = zones()
        async with scheduling(world):
            await then(world, Create(at(pod("first", app="x"), zone="a")))
            await then(world, Create(spread(at(pod("waits", app="x"), host="a2"), "x")))
            assert not home(world, "waits")
            await then(world, Create(at(pod("other", app="x"), zone="b")))
            assert home(world, "waits") == "a2"

    virtual(main())


def test_pods_of_the_fuller_zone_that_leave_let_it_take_one() -> None:
    async def main() -> None:
        world = zones()
        async with scheduling(world):
            first = at(pod("first", app="x"), host="a1")
            await then(world, Create(first))
            await then(world, Create(spread(at(pod("waits", app="x"), host="a2"), "x")))
            assert not home(world, "waits")
            edit(world, first, leave)
            await idle()
            assert home(world, "waits") == "a2"

    virtual(main())


def leave(found: Object) -> None:
    found.metadata.deletionTimestamp.seconds = 5


def test_a_host_port_becomes_free() -> None:
    async def main() -> None:
        world = World([namespace(), node("a", cpu="8")])
        async with scheduling(world):
            first = with_port(pod("first"))
            await then(world, Create(first), Create(pod("plain", cpu="1")))
            await then(world, Create(with_port(pod("second"))))
            assert not home(world, "second")
            await then(world, Delete(key_of(first)))
            assert home(world, "second") == "a"

    virtual(main())


@pytest.mark.parametrize("last", ["group", "member", "room"])
def test_what_a_gang_waits_for(last: str) -> None:
    async def main() -> None:
        world = World([namespace(), node("a", cpu="2")])
        big = pod("big", cpu="2")
        steps: dict[str, Create | Delete] = {
            "group": Create(group(2)), "member": Create(member("m2")), "room": Delete(key_of(big)),
        }  # fmt: skip
        async with scheduling(world) as loop:
            await then(world, Create(big))
            await then(world, Create(member("m1")))
            for step in [step for name, step in steps.items() if name != last]:
                await then(world, step)
                assert not home(world, "m1")
            assert len(loop.queue.lot.gangs) == 1
            await then(world, steps[last])
            assert [home(world, name) for name in ("m1", "m2")] == ["a", "a"]

    virtual(main())


def test_who_is_like_one_that_was_placed_comes_next() -> None:
    """A pod that they need company of comes, and there is room for all of them."""

    async def main() -> None:
        world = zones()
        async with scheduling(world) as loop:
            fans = []
            for number in range(50):
                one = pod(f"fan{number:02}", cpu="100m", app="fan")
                terms = one.spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution
                terms.add(topologyKey=ZONE).labelSelector.matchLabels["app"] = "star"
                fans.append(one)
            await then(world, *map(Create, fans))
            assert len(loop.queue.lot) == 50
            windows = loop.windows
            await then(world, Create(pod("star", app="star")))
            assert len(loop.queue.lot) == 0
            assert loop.windows - windows < 9, "twice as many each time"

    virtual(main())


def test_a_gang_of_which_the_store_refuses_one_goes_on() -> None:
    """One member is deleted and made anew while the gang is being bound."""

    class Meddling(World):
        armed = True

        async def write(self, changes, *, low_priority=False):  # type: ignore[no-untyped-def]
            if self.armed and any(change.key.name == "m2" for change in changes if not isinstance(change, Create)):
                self.armed = False
                self.commit(Delete(key_of(member("m2"))))
                again = member("m2")
                again.metadata.uid = "uid-again"
                again.spec.nodeSelector["disk"] = "none"
                self.commit(Create(again))
            return await super().write(changes, low_priority=low_priority)

    async def main() -> None:
        world = Meddling([namespace(), node("a", cpu="8"), group(3)])
        async with scheduling(world):
            await then(world, *(Create(member(f"m{i}")) for i in (1, 2, 3)))
            await asyncio.sleep(2)
            assert [home(world, f"m{i}") for i in (1, 2, 3)] == ["a", "", "a"]
            events = [one for one in world.all("Event") if isinstance(one, o.Event) and one.reason == "PartlyScheduled"]
            assert [one.message[:35] for one in events] == ["2 of at least 3 members have a node"]
            await then(world, Create(node("b", disk="none")))
            assert home(world, "m2") == "b", "those that have a node count"

    virtual(main())
