"""Gangs: all or nothing, in one domain if asked; on the plain scheduler and on the fast one."""

from __future__ import annotations

from shoal.master.scheduler.classes import PodClass
from tests.reference.cluster import Cluster, Group, Pod
from tests.reference.generate import joined
from tests.scheduler_cases import ZONE, Decide, both, cluster, near, node, on, place, pods, what


def member(cpu: int = 1000, **fields: object) -> PodClass:
    return joined(what(cpu=cpu, **fields), "default", "g")  # type: ignore[arg-type]


def racks() -> Cluster:
    """Zone A has room for three, B for four pods of one CPU; a node without zone for many."""
    nodes = [node("a1", "A", cpu=2000), node("a2", "A", cpu=1000), node("b1", "B"), node("c", cpu=64_000)]
    return cluster(nodes)


@both
def test_all_or_nothing(decide: Decide) -> None:
    where = cluster([node("a", cpu=2000), node("b", cpu=1000)])
    where.groups["default", "g"] = Group(3)
    assert sorted(place(decide, where, *pods(member(), 3))) == ["a", "a", "b"]
    where.groups["default", "g"] = Group(4)
    found = decide(where, [*pods(member(), 4), Pod("after", what(cpu=2000), 9)])
    assert [one.node for one in found] == ["", "", "", "", "a"], "and their room is free again"
    assert all(one.reasons == {"Insufficient cpu": 2} for one in found[:4])


@both
def test_more_than_the_minimum_wait_alone(decide: Decide) -> None:
    where = cluster([node("a", cpu=2000)])
    where.groups["default", "g"] = Group(2)
    found = decide(where, pods(member(), 3))
    assert [one.node for one in found] == ["a", "a", ""]
    assert found[2].reasons == {"Insufficient cpu": 1}


@both
def test_a_gang_waits_for_its_members_and_its_group(decide: Decide) -> None:
    where = cluster([node("a"), node("b")])
    found = decide(where, pods(member(), 1))
    assert found[0].reasons == {"pod group g does not exist": 2}
    where.groups["default", "g"] = Group(3)
    found = decide(where, pods(member(), 2))
    assert [one.reasons for one in found] == [{"pod group g has 2 of 3 members": 2}] * 2


@both
def test_members_that_hold_a_node_count(decide: Decide) -> None:
    where = cluster([node("a")], [on("a", member(), "x"), on("a", member(), "y")])
    where.groups["default", "g"] = Group(3)
    assert place(decide, where, *pods(member())) == ["a"]
    where.pods["y"] = on("a", member(), "y", leaving=True)
    assert place(decide, where, *pods(member())) == [""], "one that is leaving does not"


@both
def test_members_of_several_classes_are_one_gang(decide: Decide) -> None:
    where = cluster([node("a", cpu=1000), node("b", cpu=1000)])
    where.groups["default", "g"] = Group(3)
    big, small = member(), member(cpu=100)
    assert place(decide, where, Pod("p0", big, 0), Pod("p1", big, 1), Pod("p2", small, 2)) == ["", "", ""]
    where.groups["default", "g"] = Group(2)
    assert place(decide, where, Pod("p0", big, 0), Pod("p1", big, 1), Pod("p2", small, 2)) == ["a", "b", ""]


@both
def test_a_domain_in_which_all_fit_is_found(decide: Decide) -> None:
    where = racks()
    where.groups["default", "g"] = Group(4, ZONE)
    assert place(decide, where, *pods(member(), 4)) == ["b1"] * 4
    where.groups["default", "g"] = Group(5, ZONE)
    found = decide(where, pods(member(), 5))
    assert {one.node for one in found} == {""}
    assert found[0].reasons == {"Insufficient cpu": 1, "node(s) were outside the pod group's domain": 3}


@both
def test_between_domains_that_take_all_the_scores_decide(decide: Decide) -> None:
    where = racks()
    where.groups["default", "g"] = Group(3, ZONE)
    assert place(decide, where, *pods(member(), 3)) == ["b1"] * 3, "more stays free there"
    where.hold(on("b1", what(cpu=1001), "x"))
    assert sorted(place(decide, where, *pods(member(), 3))) == ["a1", "a1", "a2"]


@both
def test_the_domain_of_those_that_are_there_is_kept(decide: Decide) -> None:
    where = racks()
    where.hold(on("a2", member(cpu=100), "x"))
    where.groups["default", "g"] = Group(2, ZONE)
    assert place(decide, where, *pods(member(), 3)) == ["a1", "a1", ""]


@both
def test_a_key_that_no_node_has_is_no_domain(decide: Decide) -> None:
    where = racks()
    where.groups["default", "g"] = Group(1, "nowhere")
    found = decide(where, pods(member()))[0]
    assert found.reasons == {"node(s) were outside the pod group's domain": 4}


@both
def test_members_see_each_other(decide: Decide) -> None:
    """The second needs the first nearby; a gang that keeps apart takes a node each."""
    where = cluster([node("a"), node("b")])
    where.groups["default", "g"] = Group(2)
    leader, follower = member(labels=(("app", "db"),)), member(affinity=(near("db"),))
    assert place(decide, where, Pod("p0", leader, 0), Pod("p1", follower, 1)) == ["a", "a"]
    apart = joined(what("web", anti_affinity=(near("web"),)), "default", "g")
    assert place(decide, where, *pods(apart, 2)) == ["a", "b"]
    where.groups["default", "g"] = Group(3)
    assert place(decide, where, *pods(apart, 3)) == ["", "", ""]


@both
def test_a_gang_larger_than_the_cluster_waits_with_its_reason(decide: Decide) -> None:
    where = cluster([node("a", pods=3)])
    where.groups["default", "g"] = Group(50)
    found = decide(where, pods(member(cpu=1), 50))
    assert {one.node for one in found} == {""}
    assert found[49].reasons == {"Too many pods": 1}
