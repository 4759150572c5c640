"""Batches decide what single pods would also when few nodes of a large cluster are listed first: with small limits."""

from __future__ import annotations

import pytest

from shoal.master.scheduler import place
from tests.property.test_scheduler_exact import SEEDS, check
from tests.reference.generate import case
from tests.reference.large import large_case

FEATURES = ("selector", "anti_affinity", "spread", "soft_spread", "siblings", "profiles", "preferred_pods", "taints")


@pytest.mark.parametrize("shard", range(4))
def test_the_best_nodes_of_each_domain_are_enough(shard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "FEW", 1)
    monkeypatch.setattr(place, "SORTED_AT_ONCE", 0)
    for seed in range(shard, SEEDS // 2, 4):
        check(case(seed + 5_000_000, FEATURES))


def test_long_runs_take_the_best_nodes_of_each_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "FEW", 1)
    monkeypatch.setattr(place, "SORTED_AT_ONCE", 0)
    for seed in range(0, SEEDS, 50):
        check(large_case(6_000_000 + seed))
