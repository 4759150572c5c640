"""Death certificates: taken from the right node, once, bounded, and expired."""

from __future__ import annotations

import pytest

from shoal.master.api.admission import Stamp, prepare_create
from shoal.master.api.faults import Forbidden
from shoal.master.controllers import deaths as bounds
from shoal.master.controllers.base import instant
from shoal.master.dispatcher import deaths
from shoal.master.model import Create, Delete, Key
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import World, carry_out, namespace, pod

NOW = 1_000_000.0


def told(name: str = "web.app.0.uid", uid: str = "uid-Pod-web") -> o.Death:
    death = o.Death(container="app", reason="Error", exitCode=3, cause="it exited with 3")
    death.metadata.name, death.pod.uid = name, uid
    death.metadata.ownerReferences.add(uid="somebody", kind="Pod", name="x")
    return death


def test_a_certificate_gets_the_masters_head_and_is_taken_once() -> None:
    world = World([pod("web", node="a")])
    verdict = deaths.judge(world, "a", told(), NOW)
    assert isinstance(verdict.change, Create)
    kept = verdict.change.object
    assert isinstance(kept, o.Death)
    assert (kept.metadata.namespace, kept.node, kept.pod.name, kept.pod.kind) == ("default", "a", "web", "Pod")
    assert not kept.metadata.ownerReferences, "it outlives its pod"
    assert kept.metadata.labels[deaths.POD_LABEL] == "uid-Pod-web"
    world.apply([verdict.change])
    assert deaths.judge(world, "a", told(), NOW) == deaths.Verdict()
    again = deaths.judge(World([pod("web", node="a")]), "a", told(), NOW + 5)
    assert isinstance(again.change, Create)
    assert again.change.object.metadata.uid == kept.metadata.uid, "sent again before the first write was heard of"


@pytest.mark.parametrize(
    ("node", "name", "why"),
    [
        ("b", "web.app.0.uid", "belongs to node a"),
        ("a", "web.app.0.other", "its name must be"),
        ("a", "web.app.x.uid", "its name must be"),
        ("a", "WEB", "its name must be"),
        ("a", "web", "its name must be"),
        ("a", "", "its name must be"),
        ("a", "x" * 300, "its name must be"),
    ],
)
def test_a_node_speaks_for_its_own_pods_only(node: str, name: str, why: str) -> None:
    verdict = deaths.judge(World([pod("web", node="a")]), node, told(name), NOW)
    assert verdict.change is None
    assert why in verdict.refused or (name == "WEB" and verdict.refused)


def test_a_pod_that_is_gone_and_a_namespace_that_goes_have_no_certificates() -> None:
    assert deaths.judge(World(), "a", told(), NOW) == deaths.Verdict()
    closing = World([namespace(closing=True), pod("web", node="a")])
    assert deaths.judge(closing, "a", told(), NOW) == deaths.Verdict()


def test_a_large_certificate_loses_its_last_lines_or_is_refused() -> None:
    world = World([pod("web", node="a")])
    large = told()
    large.logTail.extend(["x" * 1000] * 100)
    verdict = deaths.judge(world, "a", large, NOW)
    assert isinstance(verdict.change, Create)
    assert isinstance(verdict.change.object, o.Death)
    assert not verdict.change.object.logTail
    assert verdict.change.object.cause
    large.message = "y" * 70_000
    assert "at most 65536" in deaths.judge(world, "a", large, NOW).refused


def kept(number: int, at: float, uid: str = "p", container: str = "app") -> o.Death:
    death = o.Death(apiVersion="shoal.dev/v1", kind="Death", container=container)
    death.metadata.name, death.metadata.namespace = f"{uid}.{container}.{number}.u", "default"
    death.metadata.uid, death.pod.uid = death.metadata.name, uid
    death.metadata.creationTimestamp.CopyFrom(instant(at))
    return death


def test_the_newest_of_each_container_stay_and_old_ones_go() -> None:
    other = [kept(0, NOW - 10, container="side"), kept(0, NOW - bounds.KEPT_SECONDS, uid="q")]
    world = World([*(kept(number, NOW - 100 + number) for number in range(8)), *other])
    outcome = bounds.reconcile(world, Key("Death", "default", "*"), NOW)
    carry_out(world, outcome)
    left = sorted(death.metadata.name for death in world.all("Death"))
    assert left == ["p.app.3.u", "p.app.4.u", "p.app.5.u", "p.app.6.u", "p.app.7.u", "p.side.0.u"]
    assert outcome.again == NOW - 97 + bounds.KEPT_SECONDS - NOW
    calm = bounds.reconcile(world, Key("Death", "default", "*"), NOW)
    assert not calm.changes


def test_a_namespace_holds_a_bounded_number() -> None:
    world = World(kept(0, NOW - number, uid=f"p{number}") for number in range(bounds.KEPT_PER_NAMESPACE + 3))
    gone = bounds.reconcile(world, Key("Death", "default", "*"), NOW).changes
    names = {change.key.name for change in gone if isinstance(change, Delete)}
    assert names == {f"p{bounds.KEPT_PER_NAMESPACE + number}.app.0.u" for number in range(3)}


def test_people_cannot_write_one() -> None:
    with pytest.raises(Forbidden, match="read and deleted only"):
        prepare_create(World(), kept(0, NOW), Stamp("r", 0, NOW))
