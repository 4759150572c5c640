"""Whose room is taken, and when not: preemption on the plain scheduler and on the fast one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.core import Scheduler
from shoal.master.scheduler.filters import Frame
from shoal.master.scheduler.groups import Budget as Counted
from shoal.master.scheduler.queue import Run
from shoal.master.scheduler.snapshot import Hold, Snapshot
from shoal.master.scheduler.terms import Selector
from tests.reference import bridge
from tests.reference.cluster import Budget, Cluster, Group, Pod
from tests.reference.generate import joined
from tests.reference.scheduler import Outcome
from tests.scheduler_cases import (
    ZONE,
    Decide,
    app_is,
    both,
    cluster,
    even,
    near,
    node,
    on,
    pods,
    what,
)


def low(app: str = "", cpu: int = 1000, priority: int = 0, **fields: object) -> PodClass:
    return what(app, cpu=cpu, priority=priority, **fields)  # type: ignore[arg-type]


def high(cpu: int = 1000, **fields: object) -> PodClass:
    return what(cpu=cpu, **({"priority": 100} | fields))  # type: ignore[arg-type]


def one(decide: Decide, where: Cluster, asked: PodClass) -> Outcome:
    return decide(where, [Pod("asked", asked, 99)])[0]


@both
def test_a_pod_of_lower_priority_makes_room(decide: Decide) -> None:
    where = cluster([node("a", cpu=1000)], [on("a", low(), "x")])
    found = one(decide, where, high())
    assert (found.node, found.nominated, found.victims, found.breaks) == ("", "a", ("x",), 0)
    assert found.reasons == {"Insufficient cpu": 1}


@both
def test_nobody_is_evicted_for_an_equal_or_by_a_pod_that_must_not(decide: Decide) -> None:
    where = cluster([node("a", cpu=1000)], [on("a", low(priority=100), "x")])
    assert not one(decide, where, high()).nominated
    assert not one(decide, where, high(priority=101, preempts=False)).nominated
    assert one(decide, where, high(priority=101)).nominated == "a"


@both
def test_nobody_is_evicted_where_that_does_not_help(decide: Decide) -> None:
    where = cluster([node("a", "A", cpu=1000), node("b", cpu=500)], [on("a", low(), "x"), on("b", low(cpu=500), "y")])
    assert not one(decide, where, high(selector=((ZONE, "B"),))).nominated
    assert not one(decide, where, high(cpu=1001)).nominated
    assert not one(decide, where, high(affinity=(near("db"),))).nominated


@both
def test_no_more_are_evicted_than_needed_and_the_more_important_stay(decide: Decide) -> None:
    held = [
        on("a", low(cpu=500, priority=5), "five"),
        on("a", low(cpu=500, priority=1), "one"),
        on("a", low(cpu=500, priority=3), "three-old", arrival=1),
        on("a", low(cpu=500, priority=3), "three-new", arrival=2),
    ]
    where = cluster([node("a", cpu=2000)], held)
    assert one(decide, where, high(cpu=500)).victims == ("one",)
    assert set(one(decide, where, high(cpu=1000)).victims) == {"one", "three-new"}
    assert set(one(decide, where, high(cpu=1500)).victims) == {"one", "three-new", "three-old"}


@both
def test_a_small_pod_that_is_enough_goes_instead_of_all(decide: Decide) -> None:
    """Both are needed away to judge; the big one is given back first, by priority."""
    held = [on("a", low(cpu=1500, priority=2), "big"), on("a", low(cpu=500, priority=1), "small")]
    assert one(decide, cluster([node("a", cpu=2000)], held), high(cpu=400)).victims == ("small",)


@both
def test_the_node_with_the_least_important_victim_is_taken(decide: Decide) -> None:
    held = [
        on("a", low(priority=5), "x"),
        on("b", low(cpu=500, priority=1), "y"),
        on("b", low(cpu=500, priority=1), "z"),
    ]
    where = cluster([node("a", cpu=1000), node("b", cpu=1000)], held)
    found = one(decide, where, high())
    assert (found.nominated, set(found.victims)) == ("b", {"y", "z"}), "two of 1 rather than one of 5"


@both
def test_then_fewest_victims_then_lowest_sum_then_first_name(decide: Decide) -> None:
    nodes = [node("a", cpu=1000), node("b", cpu=1000)]
    two = [on("a", low(cpu=500, priority=3), "x"), on("a", low(cpu=500, priority=-9), "y")]
    assert one(decide, cluster(nodes, [*two, on("b", low(priority=3), "z")]), high()).nominated == "b"
    mixed = [on("b", low(cpu=500, priority=3), "z"), on("b", low(cpu=500, priority=-10), "w")]
    assert one(decide, cluster(nodes, [*two, *mixed]), high()).nominated == "b"
    same = [on("b", low(cpu=500, priority=3), "z"), on("b", low(cpu=500, priority=-9), "w")]
    assert one(decide, cluster(nodes, [*two, *same]), high()).nominated == "a"


# ---- disruption budgets ----
@both
def test_a_budget_is_kept_when_another_node_will_do(decide: Decide) -> None:
    held = [on("a", low("db", priority=0), "x"), on("b", low("web", priority=50), "y")]
    where = cluster([node("a", cpu=1000), node("b", cpu=1000)], held)
    assert one(decide, where, high()).nominated == "a"
    where.budgets = [Budget("default", app_is("db"), 0)]
    assert one(decide, where, high()).nominated == "b", "even for a victim of higher priority"
    where.budgets = [Budget("default", app_is("db"), 1)]
    assert one(decide, where, high()).nominated == "a"


@both
def test_a_budget_gives_way_when_nothing_else_helps(decide: Decide) -> None:
    where = cluster([node("a", cpu=1000)], [on("a", low("db"), "x")])
    where.budgets = [Budget("default", app_is("db"), 0)]
    found = one(decide, where, high())
    assert (found.nominated, found.victims, found.breaks) == ("a", ("x",), 1)


@both
def test_pods_whose_budget_would_break_are_given_back_first(decide: Decide) -> None:
    held = [on("a", low("db", priority=1), "kept"), on("a", low("web", priority=50), "gone")]
    where = cluster([node("a", cpu=2000)], held)
    assert one(decide, where, high()).victims == ("kept",)
    where.budgets = [Budget("default", app_is("db"), 0)]
    assert one(decide, where, high()).victims == ("gone",)


@both
def test_budgets_of_other_namespaces_and_without_selector_cover_nobody(decide: Decide) -> None:
    held = [on("a", low("db"), "x"), on("b", low("web", priority=50), "y")]
    where = cluster([node("a", cpu=1000), node("b", cpu=1000)], held)
    where.budgets = [Budget("other", Selector(), 0), Budget("default", None, 0)]
    assert one(decide, where, high()).nominated == "a"
    where.budgets = [Budget("default", Selector(), 0)]
    assert one(decide, where, high()).breaks == 1, "an empty selector covers all pods of its namespace"


@both
def test_two_preemptions_of_one_plan_share_a_budget(decide: Decide) -> None:
    held = [on(name, low("db"), name) for name in ("x1", "x2")] + [on("y", low("web", priority=50), "y")]
    where = cluster([node(name, cpu=1000) for name in ("x1", "x2", "y")], held)
    where.budgets = [Budget("default", app_is("db"), 1)]
    assert [found.nominated for found in decide(where, pods(high(), 3))] == ["x1", "y", "x2"]


def test_a_budget_that_has_counted_the_eviction_does_not_count_it_again() -> None:
    """As the eviction API leaves it before the pod is seen to go."""
    held = [on("a", low("db"), "x"), on("b", low("web", priority=50), "y")]
    snapshot = bridge.snapshot_of(cluster([node("a", cpu=1000), node("b", cpu=1000)], held))
    queue = [bridge.waiting(pod) for pod in pods(high())]
    for disrupted, where, breaks in ((frozenset(), "b", 0), (frozenset({"x"}), "a", 0)):
        snapshot.budgets["default", "db"] = Counted("default", "db", app_is("db"), 0, disrupted)
        plan = Scheduler().schedule(copy := snapshot.clone(), queue)
        assert [(one.node, one.breaks) for one in plan.preemptions] == [(where, breaks)]
        assert copy.budgets["default", "db"].allowed == 0, "nothing was taken from it"


def all_held(snapshot: Snapshot) -> dict[str, Hold]:
    return {uid: hold for name in snapshot.names for uid, hold in snapshot.pods_on(name).items()}


def test_a_plan_that_fails_evicts_and_overtakes_nobody() -> None:
    held = [on("a", low("db"), "x"), on("b", low(priority=10), "p9", nominated=True)]
    where = cluster([node("a", cpu=1000), node("b", cpu=1000)], held)
    where.budgets = [Budget("default", app_is("db"), 1)]
    snapshot, scheduler = bridge.snapshot_of(where), Scheduler()
    before, budgets, asked = all_held(snapshot), dict(snapshot.budgets), pods(high(), 2)
    assert len(Scheduler().schedule(copy := snapshot.clone(), [bridge.waiting(pod) for pod in asked]).preemptions) == 2
    assert all_held(copy) != before and copy.budgets != budgets

    def fail(_: Snapshot, known: Frame, run: Run) -> None:
        if run.waiting[0].uid == "odd":
            raise ValueError("odd")

    scheduler.before_run = fail
    with pytest.raises(ValueError, match="odd"):
        scheduler.schedule(snapshot, [bridge.waiting(pod) for pod in [*asked, Pod("odd", high(cpu=1), 9)]])
    for pod in asked:
        snapshot.undo(pod.uid)
    assert all_held(snapshot) == before and snapshot.budgets == budgets


# ---- who is leaving, who is nominated ----
@both
def test_a_pod_waits_for_who_is_leaving_already(decide: Decide) -> None:
    held = [on("a", low(priority=-5), "x"), on("b", low(priority=50), "y", leaving=True)]
    found = one(decide, cluster([node("a", cpu=1000), node("b", cpu=1000)], held), high())
    assert (found.nominated, found.victims) == ("b", ())


@both
def test_each_preemptor_has_victims_of_its_own(decide: Decide) -> None:
    held = [on(name, low(), f"v-{name}") for name in "abc"]
    where = cluster([node(name, cpu=1000) for name in "abc"], held)
    found = decide(where, pods(high(), 4))
    assert [(one.nominated, one.victims) for one in found] == [
        ("a", ("v-a",)),
        ("b", ("v-b",)),
        ("c", ("v-c",)),
        ("", ()),
    ]


@both
def test_a_nomination_holds_its_room(decide: Decide) -> None:
    where = cluster([node("a", cpu=1000)], [on("a", high(), "first", nominated=True)])
    assert not one(decide, where, high()).nominated
    assert decide(where, pods(low()))[0].reasons == {"Insufficient cpu": 1}


@both
def test_a_nominated_pod_is_bound_when_its_room_is_free(decide: Decide) -> None:
    where = cluster([node("a", cpu=1000)], [on("a", high(), "p0", nominated=True)])
    assert decide(where, pods(high()))[0].node == "a"


@both
def test_a_nominated_pod_waits_on_for_its_victims(decide: Decide) -> None:
    held = [on("a", high(), "p0", nominated=True), on("a", low(), "x", leaving=True)]
    found = decide(cluster([node("a", cpu=1000)], held), pods(high()))[0]
    assert (found.nominated, found.victims) == ("a", ())


@both
def test_a_nominated_pod_goes_where_room_comes_up_first(decide: Decide) -> None:
    held = [on("a", high(), "p0", nominated=True), on("a", low(), "x", leaving=True)]
    found = decide(cluster([node("a", cpu=1000), node("b", cpu=1000)], held), pods(high()))[0]
    assert found.node == "b"


@both
def test_a_higher_one_pushes_a_nomination_out_at_no_cost(decide: Decide) -> None:
    held = [on("a", low(priority=10), "p0", nominated=True), on("b", low(), "y")]
    where = cluster([node("a", cpu=1000), node("b", cpu=1000)], held)
    found = decide(where, [Pod("first", high(), 0), *pods(low(priority=10))])
    assert (found[0].nominated, found[0].victims) == ("a", ())
    assert (found[1].nominated, found[1].victims) == ("b", ("y",)), "which makes room for itself elsewhere"


@both
def test_real_pods_stay_rather_than_nominated_ones(decide: Decide) -> None:
    held = [on("a", low(priority=1), "x"), on("a", low(priority=10), "p9", nominated=True)]
    found = one(decide, cluster([node("a", cpu=2000)], held), high())
    assert (found.nominated, found.victims) == ("a", ())


# ---- other filters than resources ----
@both
def test_preemption_frees_ports_and_domains(decide: Decide) -> None:
    port = ("TCP", "0.0.0.0", 80)
    where = cluster([node("a")], [on("a", low(ports=(port,)), "x"), on("a", low(), "y")])
    assert one(decide, where, high(ports=(port,))).victims == ("x",)
    where = cluster([node("a")], [on("a", low("db"), "x"), on("a", low("web"), "y")])
    assert one(decide, where, high(anti_affinity=(near("db"),))).victims == ("x",)
    hostile = low("db", anti_affinity=(near("web"),))
    where = cluster([node("a")], [on("a", hostile, "x")])
    assert one(decide, where, replace(high(), labels=(("app", "web"),))).victims == ("x",)


@both
def test_evictions_count_for_spread(decide: Decide) -> None:
    held = [on("a", low("web"), "x"), on("a", low("web", priority=1), "y")]
    where = cluster([node("a", "A"), node("b", "B", cpu=10)], held)
    asked = replace(high(), labels=(("app", "web"),), spread=(even(ZONE, "web", 2),))
    assert one(decide, where, asked).victims == ("x",)


@both
def test_a_pod_that_others_need_nearby_is_not_evicted_by_them(decide: Decide) -> None:
    """The victim is the very pod whose company is asked for."""
    where = cluster([node("a", cpu=1000)], [on("a", low("db"), "x")])
    assert not one(decide, where, high(affinity=(near("db"),))).nominated


@both
def test_gangs_evict_nobody(decide: Decide) -> None:
    where = cluster([node("a", cpu=1000)], [on("a", low(), "x")])
    where.groups["default", "g"] = Group(1)
    found = one(decide, where, joined(high(), "default", "g"))
    assert not found.nominated and found.reasons == {"Insufficient cpu": 1}
