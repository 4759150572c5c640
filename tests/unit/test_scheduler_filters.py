"""The filters' rules as Kubernetes documents them, on the plain scheduler and on the fast one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal.master.scheduler.classes import PodClass, Tolerance
from shoal.master.scheduler.terms import NAME_FIELD, NodeTerm, PodMatch, PodTerm, Rule, Selector
from tests.reference.cluster import Cluster
from tests.scheduler_cases import (
    HOST,
    ZONE,
    Decide,
    app_is,
    both,
    cluster,
    even,
    near,
    node,
    on,
    place,
    pods,
    reasons,
    rule,
    takers,
    term,
    tolerance,
    what,
)

NO_AFFINITY = "node(s) didn't match Pod's node affinity/selector"
NO_ROOM_NEAR = "node(s) didn't match pod affinity rules"
APART = "node(s) didn't match pod anti-affinity rules"
KEPT_AWAY = "node(s) didn't satisfy existing pods anti-affinity rules"
SKEW = "node(s) didn't match pod topology spread constraints"


# ---- node selector and affinity ----
@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (rule("disk", "In", "hdd", "ssd"), ["both", "fast"]),
        (rule("disk", "NotIn", "hdd"), ["bare", "both", "odd"]),  # also where the label is missing
        (rule("disk", "Exists"), ["both", "fast"]),
        (rule("disk", "DoesNotExist"), ["bare", "odd"]),
        (rule("cores", "Gt", "4"), ["both"]),
        (rule("cores", "Gt", "16"), []),  # more, not as much
        (rule("cores", "Lt", "16"), ["fast"]),
        (rule("disk", "In"), []),
    ],
)
@both
def test_operators_of_node_affinity(decide: Decide, one: Rule, expected: list[str]) -> None:
    """Gt and Lt compare whole numbers; a label that is none, or is missing, does not hold."""
    nodes = [
        node("bare"),
        node("both", labels={"disk": "ssd", "cores": "16"}),
        node("fast", labels={"disk": "hdd", "cores": "-2"}),
        node("odd", labels={"cores": "many"}),
    ]
    assert takers(decide, cluster(nodes), what(node_terms=(term(one),))) == expected


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ((term(rule("a", "Exists"), rule("b", "Exists")),), ["ab"]),  # rules of one term together
        ((term(rule("a", "Exists")), term(rule("b", "Exists"))), ["a", "ab", "b"]),  # one term is enough
        ((term(),), []),  # an empty term is for no node
        ((term(), term(rule("b", "Exists"))), ["ab", "b"]),
        ((), []),
        ((NodeTerm((), (Rule(NAME_FIELD, "In", ("a",)),)),), ["a"]),
        ((NodeTerm((rule("b", "Exists"),), (Rule(NAME_FIELD, "NotIn", ("b",)),)),), ["ab"]),
        (None, ["a", "ab", "b", "none"]),
    ],
)
@both
def test_terms_of_node_affinity(decide: Decide, terms: tuple[NodeTerm, ...] | None, expected: list[str]) -> None:
    nodes = [
        node("none"),
        node("a", labels={"a": ""}),
        node("b", labels={"b": ""}),
        node("ab", labels={"a": "", "b": ""}),
    ]
    assert takers(decide, cluster(nodes), what(node_terms=terms)) == expected


@both
def test_selector_and_affinity_must_both_hold(decide: Decide) -> None:
    nodes = [node("a", labels={"a": "1"}), node("b", labels={"b": "1"}), node("ab", labels={"a": "1", "b": "1"})]
    asked = what(selector=(("a", "1"),), node_terms=(term(rule("b", "Exists")),))
    assert takers(decide, cluster(nodes), asked) == ["ab"]
    assert reasons(decide, cluster(nodes[:2]), asked) == {NO_AFFINITY: 2}


# ---- taints ----
@pytest.mark.parametrize(
    ("tolerances", "tolerated"),
    [
        ([], False),
        ([tolerance("k", "v", "NoSchedule")], True),
        ([tolerance("k", "v")], True),  # no effect: all of them
        ([tolerance("k", "w")], False),
        ([tolerance("k")], False),  # Equal to the empty value
        ([tolerance("k", exists=True)], True),
        ([tolerance("", exists=True)], True),  # every taint
        ([tolerance("", effect="NoExecute", exists=True)], False),
        ([tolerance("other", exists=True)], False),
        ([tolerance("k", "v", "PreferNoSchedule")], False),
    ],
)
@both
def test_tolerations(decide: Decide, tolerances: list[Tolerance], tolerated: bool) -> None:
    where = cluster([node("n", taints=[("k", "v", "NoSchedule")])])
    assert takers(decide, where, what(tolerances=tuple(tolerances))) == (["n"] if tolerated else [])


@both
def test_the_first_taint_that_is_not_tolerated_is_the_reason(decide: Decide) -> None:
    taints = [("z", "", "NoSchedule"), ("b", "1", "NoExecute"), ("a", "", "PreferNoSchedule"), ("a", "", "NoExecute")]
    asked = what(tolerances=(tolerance("a", exists=True),))
    assert reasons(decide, cluster([node("n", taints=taints)]), asked) == {
        "node(s) had untolerated taint {b=1:NoExecute}": 1
    }


@both
def test_a_soft_taint_rejects_nobody(decide: Decide) -> None:
    where = cluster([node("n", taints=[("k", "", "PreferNoSchedule")])])
    assert takers(decide, where, what()) == ["n"]


# ---- ports ----
@pytest.mark.parametrize(
    ("taken", "asked", "free"),
    [
        (("TCP", "0.0.0.0", 80), ("TCP", "0.0.0.0", 80), False),
        (("TCP", "10.0.0.1", 80), ("TCP", "0.0.0.0", 80), False),
        (("TCP", "0.0.0.0", 80), ("TCP", "10.0.0.1", 80), False),
        (("TCP", "10.0.0.1", 80), ("TCP", "10.0.0.1", 80), False),
        (("TCP", "10.0.0.1", 80), ("TCP", "10.0.0.2", 80), True),
        (("TCP", "0.0.0.0", 80), ("UDP", "0.0.0.0", 80), True),
        (("TCP", "0.0.0.0", 80), ("TCP", "0.0.0.0", 81), True),
    ],
)
@both
def test_host_ports(decide: Decide, taken: tuple[str, str, int], asked: tuple[str, str, int], free: bool) -> None:
    where = cluster([node("n")], [on("n", what(ports=(taken,)), "there")])
    assert takers(decide, where, what(ports=(asked,))) == (["n"] if free else [])


@both
def test_one_pod_with_a_port_per_node(decide: Decide) -> None:
    one = what(ports=(("TCP", "0.0.0.0", 80),))
    assert place(decide, cluster([node("a"), node("b")]), *pods(one, 3)) == ["a", "b", ""]


# ---- resources ----
@both
def test_what_fits_exactly_fits(decide: Decide) -> None:
    where = cluster([node("n", cpu=1000, memory=1000)], [on("n", what(cpu=400, memory=1), "there")])
    assert takers(decide, where, what(cpu=600, memory=999)) == ["n"]
    assert reasons(decide, where, what(cpu=601)) == {"Insufficient cpu": 1}
    assert reasons(decide, where, what(cpu=601, memory=1000)) == {"Insufficient cpu": 1}
    assert reasons(decide, where, what(memory=1000)) == {"Insufficient memory": 1}


@both
def test_every_pod_takes_a_slot(decide: Decide) -> None:
    where = cluster([node("n", pods=2)])
    assert place(decide, where, *pods(what(), 3)) == ["n", "n", ""]
    assert reasons(decide, cluster([node("n", pods=0)]), what()) == {"Too many pods": 1}


@both
def test_extended_resources_are_there_or_not(decide: Decide) -> None:
    where = cluster([node("none"), node("two", fpga=2)])
    one = what(requests=(("example.com/fpga", 1), ("pods", 1)))
    assert place(decide, where, *pods(one, 3)) == ["two", "two", ""]
    assert reasons(decide, cluster([node("none")]), one) == {"Insufficient example.com/fpga": 1}


@both
def test_a_node_with_more_than_it_has_takes_what_asks_for_nothing(decide: Decide) -> None:
    where = cluster([node("n", cpu=100)], [on("n", what(cpu=500), "there")])
    assert takers(decide, where, what()) == ["n"]
    assert takers(decide, where, what(cpu=1)) == []


# ---- spread: the examples of Kubernetes' page on topology spread constraints ----
def two_zones() -> Cluster:
    """n1 and n2 in A, n3 and n4 in B; foo pods on n1, n2 and n3."""
    nodes = [node("n1", "A"), node("n2", "A"), node("n3", "B"), node("n4", "B")]
    return cluster(nodes, [on(f"n{i}", what("foo"), f"p{i}") for i in (1, 2, 3)])


@both
def test_one_constraint(decide: Decide) -> None:
    assert takers(decide, two_zones(), what("foo", spread=(even(ZONE, "foo"),))) == ["n3", "n4"]
    assert takers(decide, two_zones(), what("foo", spread=(even(ZONE, "foo", 2),))) == ["n1", "n2", "n3", "n4"]


@both
def test_two_constraints_must_both_hold(decide: Decide) -> None:
    assert takers(decide, two_zones(), what("foo", spread=(even(ZONE, "foo"), even(HOST, "foo")))) == ["n4"]


@both
def test_two_constraints_that_exclude_each_other(decide: Decide) -> None:
    nodes = [node("n1", "A"), node("n2", "A"), node("n3", "B")]
    held = [on(at, what("foo"), f"p{i}") for i, at in enumerate(["n1", "n1", "n2", "n3", "n3"])]
    asked = what("foo", spread=(even(ZONE, "foo"), even(HOST, "foo")))
    assert reasons(decide, cluster(nodes, held), asked) == {SKEW: 3}


@both
def test_a_pod_that_its_own_selector_does_not_match_adds_nothing(decide: Decide) -> None:
    assert takers(decide, two_zones(), what("bar", spread=(even(ZONE, "foo"),))) == ["n1", "n2", "n3", "n4"]


@both
def test_zones_that_the_pod_cannot_use_are_no_domains(decide: Decide) -> None:
    """Zone C is empty; whether that makes the minimum 0 is for nodeAffinityPolicy to say."""
    where = two_zones()
    where.nodes["n5"] = node("n5", "C")
    not_c = (term(rule(ZONE, "NotIn", "C")),)
    asked = what("foo", spread=(even(ZONE, "foo"),), node_terms=not_c)
    assert takers(decide, where, asked) == ["n3", "n4"]
    assert takers(decide, where, replace(asked, spread=(even(ZONE, "foo", honor_affinity=False),))) == []
    assert takers(decide, where, replace(asked, node_terms=None)) == ["n5"]


@both
def test_tainted_nodes_count_as_domains_unless_told_otherwise(decide: Decide) -> None:
    where = two_zones()
    where.nodes["n5"] = node("n5", "C", taints=[("k", "", "NoSchedule")])
    assert takers(decide, where, what("foo", spread=(even(ZONE, "foo"),))) == []
    assert takers(decide, where, what("foo", spread=(even(ZONE, "foo", honor_taints=True),))) == ["n3", "n4"]


@both
def test_fewer_domains_than_asked_make_the_minimum_nothing(decide: Decide) -> None:
    """Zones A: 2 and B: 2 of 3 that are asked for: nothing more fits with skew 2."""
    where = two_zones()
    where.hold(on("n4", what("foo"), "p4"))
    assert takers(decide, where, what("foo", spread=(even(ZONE, "foo", 2, min_domains=3),))) == []
    assert takers(decide, where, what("foo", spread=(even(ZONE, "foo", 2, min_domains=2),))) == ["n1", "n2", "n3", "n4"]


@both
def test_a_node_without_the_key_is_no_place(decide: Decide) -> None:
    where = cluster([node("a", "A"), node("bare")])
    asked = what("foo", spread=(even(ZONE, "foo"),))
    assert place(decide, where, *pods(asked, 2)) == ["a", "a"]
    missing = f"{SKEW} (missing required label)"
    assert reasons(decide, cluster([node("bare")]), asked) == {missing: 1}


@both
def test_only_pods_of_the_own_namespace_that_stay_count(decide: Decide) -> None:
    where = cluster([node("a", "A"), node("b", "B")])
    where.hold(on("a", what("foo", space="other"), "x"))
    where.hold(on("a", what("foo"), "y", leaving=True))
    assert takers(decide, where, what("foo", spread=(even(ZONE, "foo"),))) == ["a", "b"]


# ---- pod affinity ----
@both
def test_affinity_wants_the_domain_of_a_matching_pod(decide: Decide) -> None:
    where = cluster([node("a1", "A"), node("a2", "A"), node("b", "B"), node("bare")], [on("a1", what("db"), "db")])
    assert takers(decide, where, what("web", affinity=(near("db"),))) == ["a1"]
    assert takers(decide, where, what("web", affinity=(near("db", ZONE),))) == ["a1", "a2"]
    assert reasons(decide, where, what("web", affinity=(near("cache", ZONE),))) == {NO_ROOM_NEAR: 4}


@both
def test_the_first_of_a_group_that_likes_itself_finds_a_place(decide: Decide) -> None:
    where = cluster([node("a1", "A"), node("b", "B"), node("bare")])
    itself = what("web", affinity=(near("web", ZONE),))
    assert takers(decide, where, itself) == ["a1", "b"], "the key is asked for all the same"
    assert place(decide, where, *pods(itself, 3)) == ["a1", "a1", "a1"]
    where.hold(on("b", what("web"), "there"))
    assert takers(decide, where, itself) == ["b"]


@both
def test_one_pod_must_match_all_terms_at_once(decide: Decide) -> None:
    front = PodTerm(HOST, PodMatch(("default",), None, Selector((Rule("tier", "In", ("front",)),))))
    where = cluster([node("a")], [on("a", what("web"), "x"), on("a", what(labels=(("tier", "front"),)), "y")])
    asked = what(affinity=(near("web"), front))
    assert takers(decide, where, asked) == []
    where.hold(on("a", what(labels=(("app", "web"), ("tier", "front"))), "z"))
    assert takers(decide, where, asked) == ["a"]


def space_cases() -> list[tuple[PodMatch, list[str]]]:
    red, every = Selector((Rule("team", "In", ("red",)),)), Selector()
    return [
        (PodMatch(("default",), None, app_is("db")), ["own"]),
        (PodMatch(("default", "other"), None, app_is("db")), ["other", "own"]),
        (PodMatch((), red, app_is("db")), ["third"]),
        (PodMatch(("default",), red, app_is("db")), ["own", "third"]),
        (PodMatch((), every, app_is("db")), ["other", "own", "third"]),
        (PodMatch((), every, every), ["misc", "other", "own", "third"]),
        (PodMatch((), every, None), []),
    ]


@pytest.mark.parametrize(("match", "expected"), space_cases())
@both
def test_namespaces_of_a_term(decide: Decide, match: PodMatch, expected: list[str]) -> None:
    spaces = {"own": "default", "other": "other", "third": "third", "misc": "default"}
    where = cluster([node(name) for name in spaces])
    where.spaces = {"default": {}, "other": {"team": "blue"}, "third": {"team": "red"}}
    for name, space in spaces.items():
        where.hold(on(name, what("db" if name != "misc" else "misc", space=space), f"p-{name}"))
    assert takers(decide, where, what("web", affinity=(PodTerm(HOST, match),))) == expected


@both
def test_affinity_counts_pods_that_are_leaving(decide: Decide) -> None:
    where = cluster([node("a"), node("b")], [on("a", what("db"), "db", leaving=True)])
    assert takers(decide, where, what(affinity=(near("db"),))) == ["a"]
    assert takers(decide, where, what(anti_affinity=(near("db"),))) == ["b"]


# ---- pod anti-affinity ----
@both
def test_anti_affinity_keeps_to_other_domains(decide: Decide) -> None:
    where = cluster([node("a1", "A"), node("a2", "A"), node("b", "B"), node("bare")], [on("a1", what("db"), "db")])
    assert takers(decide, where, what(anti_affinity=(near("db"),))) == ["a2", "b", "bare"]
    assert takers(decide, where, what(anti_affinity=(near("db", ZONE),))) == ["b", "bare"], "without the key: no domain"
    assert reasons(decide, cluster([node("a")], [on("a", what("db"), "x")]), what(anti_affinity=(near("db"),))) == {
        APART: 1
    }


@both
def test_a_pod_keeps_away_whom_it_does_not_like(decide: Decide) -> None:
    lonely = what("db", anti_affinity=(near("web", ZONE),))
    where = cluster([node("a1", "A"), node("a2", "A"), node("b", "B")], [on("a1", lonely, "db")])
    assert takers(decide, where, what("web")) == ["b"]
    assert takers(decide, where, what("web", space="other")) == ["a1", "a2", "b"]
    assert reasons(decide, cluster([node("a1", "A")], [on("a1", lonely, "db")]), what("web")) == {KEPT_AWAY: 1}


@both
def test_replicas_that_keep_apart_take_one_node_each(decide: Decide) -> None:
    apart: PodClass = what("web", anti_affinity=(near("web"),))
    assert place(decide, cluster([node("a"), node("b")]), *pods(apart, 3)) == ["a", "b", ""]


# ---- the order of the filters ----
@both
def test_the_first_filter_that_fails_is_the_reason(decide: Decide) -> None:
    full = node("n", cpu=10, ready=False, taints=[("k", "", "NoSchedule")])
    asked = what("web", cpu=100, selector=(("x", "y"),), affinity=(near("db"),))
    steps = [
        (full, asked, "node(s) were not ready"),
        (replace(full, ready=True), asked, NO_AFFINITY),
        (replace(full, ready=True), replace(asked, selector=()), "node(s) had untolerated taint {k:NoSchedule}"),
        (node("n", cpu=10), replace(asked, selector=()), "Insufficient cpu"),
        (node("n"), replace(asked, selector=()), NO_ROOM_NEAR),
    ]
    for where, one, expected in steps:
        assert reasons(decide, cluster([where]), one) == {expected: 1}
