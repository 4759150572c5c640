"""Garbage collection by owner, the end of namespaces, and events."""

from __future__ import annotations

import random

import pytest

from shoal.master.controllers import deployment as deployments
from shoal.master.controllers import events, gc, podgc, replicaset
from shoal.master.controllers.base import Said, instant, mark_terminating
from shoal.master.model import Create, Delete, Key, Modify, Object, key_of
from shoal.proto.v1 import objects_pb2 as o
from tests.control_steps import Steps
from tests.control_world import World, deployment, namespace, node, pod, reference
from tests.control_world import replicaset as rs_of


def config(name: str, *owners: o.OwnerReference) -> o.ConfigMap:
    made = o.ConfigMap(apiVersion="v1", kind="ConfigMap")
    made.metadata.name, made.metadata.namespace, made.metadata.uid = name, "default", f"uid-ConfigMap-{name}"
    made.metadata.ownerReferences.extend(owners)
    return made


def steps(*objects: Object) -> Steps:
    rng = random.Random(1)
    controllers = [
        deployments.controller(rng),
        replicaset.controller(rng),
        gc.controller(),
        gc.namespace_controller(),
        podgc.controller(),
    ]
    return Steps(World([namespace(), node("n0"), *objects]), controllers)


def begin_end(s: Steps, key: Key, finalizer: str = "") -> None:
    """What the API does for a deletion that cannot be done at once."""

    def edit(found: Object) -> bool:
        if finalizer:
            found.metadata.finalizers.append(finalizer)
        return mark_terminating(found, s.now)

    s.world.commit(Modify(key, edit))


def names(s: Steps, kind: str) -> list[str]:
    return sorted(obj.metadata.name for obj in s.world.all(kind))


DEPLOYMENT = Key("Deployment", "default", "web")


def test_background_takes_the_whole_family() -> None:
    s = steps(deployment())
    s.settle()
    assert len(names(s, "Pod")) == 3
    s.world.commit(Delete(DEPLOYMENT))
    s.settle(agents=False)
    assert names(s, "ReplicaSet") == []
    assert all(p.metadata.HasField("deletionTimestamp") for p in s.world.pods())  # gracefully
    s.settle()
    assert names(s, "Pod") == []


def test_foreground_waits_for_the_pods() -> None:
    s = steps(deployment())
    s.settle()
    begin_end(s, DEPLOYMENT, gc.FOREGROUND)
    s.settle(agents=False)
    assert names(s, "Deployment") == ["web"]
    assert len(names(s, "ReplicaSet")) == 1
    s.settle()
    assert [names(s, kind) for kind in ("Deployment", "ReplicaSet", "Pod")] == [[], [], []]


def test_orphan_leaves_the_dependents() -> None:
    s = steps(deployment())
    s.settle()
    begin_end(s, DEPLOYMENT, gc.ORPHAN)
    s.settle()
    assert names(s, "Deployment") == []
    (rs,) = s.world.all("ReplicaSet")
    assert rs.metadata.ownerReferences == []
    assert len(names(s, "Pod")) == 3


def test_an_owner_of_the_same_name_with_another_uid_does_not_count() -> None:
    owner = rs_of(replicas=0, app="x")
    stale = reference(owner, controller=False)
    stale.uid = "uid-of-its-predecessor"
    s = steps(owner, config("c", stale))
    s.settle()
    assert names(s, "ConfigMap") == []


def test_a_second_owner_keeps_the_object() -> None:
    first, second = rs_of("first", replicas=0, app="1"), rs_of("second", replicas=0, app="2")
    s = steps(first, second, config("c", reference(first), reference(second, controller=False)))
    s.settle()
    s.world.commit(Delete(key_of(first)))
    s.settle()
    (kept,) = s.world.all("ConfigMap")
    assert [ref.name for ref in kept.metadata.ownerReferences] == ["second"]


def test_foreground_lets_shared_dependents_go_on() -> None:
    first, second = rs_of("first", replicas=0, app="1"), rs_of("second", replicas=0, app="2")
    s = steps(first, second, config("c", reference(first), reference(second, controller=False)))
    s.settle()
    begin_end(s, key_of(first), gc.FOREGROUND)
    s.settle()
    assert names(s, "ReplicaSet") == ["second"]
    (kept,) = s.world.all("ConfigMap")
    assert [ref.name for ref in kept.metadata.ownerReferences] == ["second"]


def test_an_owner_in_another_namespace_is_none() -> None:
    owner = rs_of(replicas=0, app="x")
    owner.metadata.namespace = "elsewhere"
    s = steps(namespace("elsewhere"), owner, config("c", reference(owner)))
    s.settle()
    assert names(s, "ConfigMap") == []


def test_somebody_elses_finalizer_holds_an_object() -> None:
    held = config("c")
    held.metadata.finalizers.append("example.com/wait")
    s = steps(held)
    begin_end(s, key_of(held))
    s.settle()
    assert names(s, "ConfigMap") == ["c"]

    def release(found: Object) -> bool:
        del found.metadata.finalizers[:]
        return True

    s.world.commit(Modify(key_of(held), release))
    s.settle()
    assert names(s, "ConfigMap") == []


def test_deleting_a_namespace_deletes_what_is_in_it_then_itself() -> None:
    s = steps(deployment(), config("c"), pod("alone", node="n0", phase="Running"))
    s.settle()
    begin_end(s, Key("Namespace", "", "default"))
    s.settle(agents=False)
    (closing,) = s.world.all("Namespace")
    assert isinstance(closing, o.Namespace) and closing.status.phase == "Terminating"
    assert names(s, "ConfigMap") == []
    assert len(names(s, "Pod")) == 4
    s.settle()
    assert [names(s, kind) for kind in ("Namespace", "Pod", "ReplicaSet", "Deployment")] == [[], [], [], []]


def test_what_was_made_in_a_namespaces_last_moment_goes_too() -> None:
    s = steps()
    s.settle()
    s.world.commit(Create(config("late")))
    s.world.commit(Delete(Key("Namespace", "", "default")))
    s.settle()
    assert names(s, "ConfigMap") == []


def test_a_new_leader_takes_away_what_a_namespace_left_behind() -> None:
    late = config("late")
    late.metadata.namespace = "gone"
    s = steps(late, config("kept"))
    s.settle()
    assert names(s, "ConfigMap") == ["kept"]


# ---- events ----
def note(about: Object, reason: str, at: float, count: int = 1) -> events.Note:
    return events.Note(Said(about, "Warning", reason, f"at {at}"), "test", count, at, at)


def test_a_repeated_event_counts() -> None:
    about = pod("p")
    world = World([about])
    world.apply(events.write(world, note(about, "BackOff", 10.0), "u1"))
    world.apply(events.write(world, note(about, "BackOff", 30.0, 4), "u2"))
    (event,) = world.all("Event")
    assert isinstance(event, o.Event)
    assert (event.count, event.message) == (5, "at 30.0")
    assert (event.firstTimestamp.seconds, event.lastTimestamp.seconds) == (10, 30)
    assert event.involvedObject.uid == about.metadata.uid


def test_events_of_one_object_are_bounded_and_the_oldest_goes() -> None:
    about = pod("p")
    world = World([about])
    for number in range(events.KEPT_PER_OBJECT + 5):
        world.apply(events.write(world, note(about, f"R{number}", float(number)), f"u{number}"))
    reasons = {e.reason for e in world.all("Event") if isinstance(e, o.Event)}
    assert len(reasons) == events.KEPT_PER_OBJECT
    assert "R4" not in reasons and "R5" in reasons


def test_events_expire_after_an_hour() -> None:
    about = pod("p")
    world = World([about])
    world.apply(events.write(world, note(about, "Old", 0.0), "u1"))
    world.apply(events.write(world, note(about, "New", 1800.0), "u2"))
    world.apply(events.expired(world, 3700.0))
    assert [e.reason for e in world.all("Event") if isinstance(e, o.Event)] == ["New"]


def test_a_repetition_waits_until_it_is_worth_a_write() -> None:
    about = pod("p")
    world = World([about])
    first = note(about, "R", 100.0)
    assert events.due(world, events.event_key(first.said), 100.0) == 0.0
    world.apply(events.write(world, first, "u"))
    assert events.due(world, events.event_key(first.said), 104.0) == pytest.approx(6.0)
    assert events.due(world, events.event_key(first.said), 111.0) == 0.0
    assert events.due(world, events.event_key(first.said), 0.0) <= events.REWRITE_SECONDS  # the clock went back


@pytest.mark.parametrize("home", [None, namespace("far", closing=True)])
def test_no_event_is_made_in_a_namespace_that_is_going_or_gone(home: o.Namespace | None) -> None:
    about = pod("p")
    about.metadata.namespace = "far"
    world = World([home] if home else [])
    assert events.write(world, note(about, "R", 1.0), "u") == []


def test_events_of_nodes_live_in_the_default_namespace() -> None:
    key = events.event_key(Said(node("n" * 250), "Normal", "R", ""))
    assert key.namespace == "default"
    assert len(key.name) <= 253


def test_instants_keep_fractions() -> None:
    assert (instant(12.25).seconds, instant(12.25).nanos) == (12, 250_000_000)
