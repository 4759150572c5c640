"""What is fast decides what is plain also at its limits: few nodes of a large cluster listed, caches that are full."""

from __future__ import annotations

import pytest

from shoal.master.model import Event, Key, Record, key_of
from shoal.master.scheduler import core, counts, nodes, owners, place, snapshot
from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.core import Scheduler, Waiting
from shoal.master.scheduler.terms import PodMatch, Rule, Selector, Spread
from tests.control_world import node
from tests.property.test_scheduler_exact import SEEDS, check
from tests.reference import bridge
from tests.reference.generate import FEATURES, case
from tests.reference.large import large_case

BOUND = ("selector", "anti_affinity", "spread", "soft_spread", "siblings", "profiles", "preferred_pods", "taints")


@pytest.mark.parametrize("shard", range(4))
def test_the_best_nodes_of_each_domain_are_enough(shard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "FEW", 1)
    monkeypatch.setattr(place, "SORTED_AT_ONCE", 0)
    for seed in range(shard, SEEDS // 2, 4):
        check(case(seed + 5_000_000, BOUND))


def test_long_runs_take_the_best_nodes_of_each_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "FEW", 1)
    monkeypatch.setattr(place, "SORTED_AT_ONCE", 0)
    for seed in range(0, SEEDS, 200):
        check(large_case(6_000_000 + seed))


@pytest.mark.parametrize("shard", range(2))
def test_full_caches_change_nothing(shard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one of each, everything is dropped and made again."""
    for module in (counts, owners):
        monkeypatch.setattr(module, "KEEP_AT_LEAST", 1)
        monkeypatch.setattr(module, "BUDGET_BYTES", 0)
    monkeypatch.setattr(counts, "IDLE_LIMIT", 1)
    monkeypatch.setattr(snapshot, "JOURNAL_LIMIT", 2)
    monkeypatch.setattr(core, "FRAMES_LIMIT", 1)
    monkeypatch.setattr(nodes, "MASKS_LIMIT", 1)
    for seed in range(shard, SEEDS // 5, 2):
        check(case(seed + 7_000_000, FEATURES))


def test_a_clone_is_decided_on_alone() -> None:
    """A plan on a copy is the plan on the original, and leaves that as it was."""
    for seed in range(0, SEEDS, 10):
        made = case(seed + 8_000_000, FEATURES)
        original = bridge.snapshot_of(made.cluster)
        waiting = [bridge.waiting(pod) for pod in made.queue]
        copy = original.clone()
        first = bridge.outcomes(Scheduler().schedule(copy, waiting), copy, made.queue)
        assert not bridge.differences(made.cluster, original), f"seed {seed}"
        second = bridge.outcomes(Scheduler().schedule(original, waiting), original, made.queue)
        assert first == second, f"seed {seed}"
        assert copy.revision == original.revision


def zone_of_seven() -> snapshot.Snapshot:
    """Seven nodes with room in zone a; b and c have none."""
    made = snapshot.Snapshot()
    for number in range(9):
        one = node(f"n{number}", cpu="8" if number < 7 else "0")
        one.metadata.labels["zone"] = "abc"[max(0, number - 6)]
        record = Record(key_of(one), one, b"", 1, 1)
        made.apply([Event(record.key, 1, None, record)])
    return made


def test_a_domain_that_takes_more_than_its_share_is_looked_at_wholly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out of a domain comes before the second pod on a node that is listed."""
    monkeypatch.setattr(place, "FEW", 1)
    monkeypatch.setattr(place, "SORTED_AT_ONCE", 0)
    match = PodMatch(("default",), None, Selector((Rule("app", "In", ("web",)),)))
    like = PodClass(
        (("cpu", 1000), ("pods", 1)),
        (),
        (),
        (1000, 0),
        "",
        namespace="default",
        labels=(("app", "web"),),
        spread=(Spread("zone", 10, True, match),),
    )
    queue = [Waiting(f"p{n}", Key("Pod", "default", f"p{n}"), like) for n in range(6)]
    together = [b.node for b in Scheduler().schedule(zone_of_seven(), queue).bindings]
    one_by_one, single = [], zone_of_seven()
    for waiting in queue:
        one_by_one += [b.node for b in Scheduler().schedule(single, [waiting]).bindings]
    assert together == one_by_one == [f"n{n}" for n in range(6)]
