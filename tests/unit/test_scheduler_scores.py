"""What each part of a score prefers, on the plain scheduler and on the fast one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal.master.scheduler.profiles import BUILT_IN, DEFAULT_PROFILE, Profile
from tests.reference.filters import Look
from tests.reference.scores import part
from tests.scheduler_cases import (
    GIB,
    HOST,
    IMAGE,
    ZONE,
    Decide,
    both,
    cluster,
    even,
    near,
    node,
    on,
    place,
    pods,
    rule,
    term,
    tolerance,
    what,
)

MB = 10**6


@both
def test_ties_go_to_the_first_name(decide: Decide) -> None:
    assert place(decide, cluster([node("n10"), node("n2"), node("n1")]), *pods(what())) == ["n1"]


@both
def test_the_default_prefers_what_is_free(decide: Decide) -> None:
    where = cluster([node("a", cpu=2000), node("b", cpu=4000)])
    assert place(decide, where, *pods(what(cpu=1000), 3)) == ["b", "a", "b"]


@both
def test_bin_packing_fills_a_node_before_the_next(decide: Decide) -> None:
    where = cluster([node("a"), node("b"), node("c")], [on("b", what(cpu=1000, memory=2 * GIB), "there")])
    packed = what(cpu=1000, memory=2 * GIB, profile="bin-packing")
    assert place(decide, where, *pods(packed, 5)) == ["b", "b", "b", "a", "a"]


@both
def test_balanced_prefers_even_use_of_cpu_and_memory(decide: Decide) -> None:
    lopsided = [on("a", what(cpu=2000, memory=1), "x"), on("b", what(cpu=1, memory=4 * GIB), "y")]
    where = cluster([node("a"), node("b")], lopsided)
    assert place(decide, where, *pods(what(cpu=100, memory=4 * GIB, profile="balanced"))) == ["a"]
    assert place(decide, where, *pods(what(cpu=2000, memory=1, profile="balanced"))) == ["b"]


def test_parts_of_the_load_by_hand() -> None:
    """1 of 4 CPU and 2 of 8 GiB there, 1 CPU and 1 GiB more: 2/4 and 5/8 stay free."""
    where = cluster([node("n")], [on("n", what(cpu=1000, memory=2 * GIB), "there")])
    look = Look(where, what(cpu=1000, memory=1 * GIB))
    found = {name: part(look, where.nodes["n"], name) for name in ("least", "most", "balanced")}
    assert found == {"least": 0.5625, "most": 0.4375, "balanced": 0.875}


@both
def test_images_that_lie_there_decide_between_equals(decide: Decide) -> None:
    where = cluster([node("a"), node("b", images={IMAGE: 300 * MB}), node("c", images={IMAGE: 400 * MB})])
    assert place(decide, where, *pods(what())) == ["c"]
    big = cluster([node("a"), node("b", images={IMAGE: 1000 * MB}), node("c", images={IMAGE: 4000 * MB})])
    assert place(decide, big, *pods(what())) == ["b"], "more than the cap is worth no more"


@both
def test_replicas_of_one_owner_go_apart(decide: Decide) -> None:
    where = cluster([node("a", cpu=64_000, memory=512 * GIB), node("b"), node("c")])
    one = what(cpu=100, owner="rs")
    assert sorted(place(decide, where, *pods(one, 6))) == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize(("weights", "expected"), [((100, 1), "a"), ((1, 100), "b"), ((50, 50), "a")])
@both
def test_the_heavier_preference_wins(decide: Decide, weights: tuple[int, int], expected: str) -> None:
    where = cluster([node("a", "A"), node("b", "B"), node("c", cpu=64_000)])
    one = what(preferred_nodes=tuple((w, term(rule(ZONE, "In", z))) for w, z in zip(weights, "AB", strict=True)))
    assert place(decide, where, *pods(one)) == [expected]


@both
def test_preferences_that_hold_together_add_up(decide: Decide) -> None:
    where = cluster([node("a", "A"), node("b", "B", labels={"disk": "ssd"})])
    terms = ((60, term(rule(ZONE, "In", "A"))), (40, term(rule(ZONE, "In", "B"))), (30, term(rule("disk", "Exists"))))
    assert place(decide, where, *pods(what(preferred_nodes=terms))) == ["b"]


@both
def test_preferred_pods_attract_and_repel(decide: Decide) -> None:
    where = cluster([node("a1", "A"), node("b1", "B"), node("b2", "B")], [on("b1", what("db", cpu=3000), "db")])
    assert place(decide, where, *pods(what(preferred_pods=((10, near("db", ZONE)),)))) == ["b2"]
    assert place(decide, where, *pods(what(preferred_pods=((10, near("db")),)))) == ["b1"]
    assert place(decide, where, *pods(what(cpu=100, preferred_pods=((-10, near("db", ZONE)),)))) == ["a1"]


@both
def test_pods_that_are_there_have_their_wishes_too(decide: Decide) -> None:
    """Their preferred terms, and their required affinity with weight 1."""
    nodes = [node("a"), node("b"), node("c")]
    wishful = what("db", preferred_pods=((100, near("web")),))
    assert place(decide, cluster(nodes, [on("c", wishful, "x")]), *pods(what("web"))) == ["c"]
    averse = what("db", preferred_pods=((-100, near("web")),))
    assert place(decide, cluster(nodes, [on("a", averse, "x")]), *pods(what("web"))) == ["b"]
    tied = what("db", affinity=(near("web"),))
    held = [on("c", tied, f"x{i}") for i in range(10)]
    assert place(decide, cluster([node(n, cpu=10**6, memory=2**50) for n in "abc"], held), *pods(what("web"))) == ["c"]


@both
def test_soft_spread_prefers_the_emptier_domain(decide: Decide) -> None:
    held = [on("a", what("web"), "x"), on("a", what("web"), "y"), on("b", what("web"), "z")]
    where = cluster([node("a", "A", cpu=64_000), node("b", "B"), node("bare", cpu=64_000)], held)
    one = what("web", spread=(even(ZONE, "web", hard=False),))
    assert place(decide, where, *pods(one, 4)) == ["b", "a", "b", "a"], "the node without the key is the last choice"


@both
def test_soft_constraints_are_summed(decide: Decide) -> None:
    held = [on("a1", what("web"), "x"), on("b1", what("web"), "y"), on("b2", what("web"), "z")]
    where = cluster([node("a1", "A"), node("a2", "A"), node("b1", "B"), node("b2", "B")], held)
    one = what("web", spread=(even(ZONE, "web", hard=False), even(HOST, "web", hard=False)))
    assert place(decide, where, *pods(one, 2)) == ["a2", "a1"]


@both
def test_a_soft_taint_outweighs_everything_else(decide: Decide) -> None:
    a = node("a", "A", taints=[("k", "", "PreferNoSchedule")])
    where = cluster([a, node("b")], [on("b", what(owner="rs"), f"x{i}") for i in range(20)])
    one = what(owner="rs", preferred_nodes=((100, term(rule(ZONE, "In", "A"))),))
    assert place(decide, where, *pods(one)) == ["b"]
    assert place(decide, where, *pods(replace(one, tolerances=(tolerance("k", exists=True),)))) == ["a"]


@both
def test_an_unknown_profile_fits_nowhere(decide: Decide) -> None:
    found = decide(cluster([node("a")]), pods(what(profile="mine")))
    assert found[0].reasons == {"scheduling profile mine is not configured": 1}


def test_the_weights_that_the_page_names() -> None:
    assert BUILT_IN[DEFAULT_PROFILE] == Profile(0.5, 0.0, 0.25, 0.2, 1.0, 16.0, 16.0, 2.0, 64.0, 65536.0)
    assert BUILT_IN["bin-packing"] == replace(Profile(), least=0.0, most=0.5, balanced=0.0, siblings=0.0)
    assert BUILT_IN["balanced"] == replace(Profile(), least=0.0, balanced=0.75)
