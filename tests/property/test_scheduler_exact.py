"""The fast scheduler decides what the plain one decides: nodes, devices, refusals with counts, preemptions, in order.

SHOAL_PROPERTY_SEEDS sets how many random clusters are looked at; a failure names its seed.
"""

from __future__ import annotations

import os
import random
from copy import deepcopy

import pytest

from shoal.master.scheduler.classes import compile_class
from shoal.master.scheduler.core import Scheduler, order
from tests.reference import bridge
from tests.reference.generate import FEATURES, TOGETHER, Case, case
from tests.reference.large import crowded_case, large_case
from tests.reference.objects import pod_object
from tests.reference.scheduler import order as plain_order
from tests.reference.scheduler import schedule

SEEDS = int(os.environ.get("SHOAL_PROPERTY_SEEDS", "2000"))
SHARDS = 20


def check(made: Case) -> None:
    """One random cluster and queue, decided by both."""
    seed = made.seed
    queue = plain_order(made.queue) if seed % 3 else made.queue
    snapshot = bridge.snapshot_of(made.cluster)
    assert not bridge.differences(made.cluster, snapshot), f"seed {seed}: the snapshot is not what it was fed with"
    plan = Scheduler().schedule(snapshot, [bridge.waiting(pod) for pod in queue])
    wanted = schedule(made.cluster, queue)
    for have, want in zip(bridge.outcomes(plan, snapshot, queue), wanted, strict=True):
        assert have == want, f"seed {seed} ({', '.join(made.on)}), pod {want.uid}"
    assert not bridge.differences(made.cluster, snapshot), f"seed {seed}: what is held after the plan"


@pytest.mark.parametrize("shard", range(SHARDS))
def test_both_decide_the_same(shard: int) -> None:
    for seed in range(shard, SEEDS, SHARDS):
        check(case(seed, FEATURES))


@pytest.mark.parametrize("features", [*((one,) for one in FEATURES), *TOGETHER], ids=" ".join)
def test_both_decide_the_same_with_few_features(features: tuple[str, ...]) -> None:
    """What others would hide: nearly every pod is decided by these."""
    for seed in range(0, SEEDS, 12):
        check(case(seed, features, all_of_them=True))


def test_both_place_long_runs_on_many_nodes_the_same() -> None:
    for seed in range(0, SEEDS, 80):
        check(large_case(seed))


def test_both_evict_the_same_where_many_nodes_are_full() -> None:
    for seed in range(0, SEEDS, 10):
        check(crowded_case(seed))


def test_both_order_the_queue_the_same() -> None:
    for seed in range(0, SEEDS, 4):
        pods = case(seed).queue
        random.Random(seed).shuffle(pods)
        have = [waiting.uid for waiting in order([bridge.waiting(pod) for pod in pods])]
        assert have == [pod.uid for pod in plain_order(pods)], f"seed {seed}"


def test_a_class_is_what_its_manifest_says() -> None:
    """Written as an object and compiled again."""
    for seed in range(0, SEEDS, 4):
        for pod in case(seed).queue:
            assert compile_class(pod_object(pod)) == pod.what, f"seed {seed}, {pod.uid}"


def test_a_plan_that_is_undone_leaves_nothing_behind() -> None:
    """The same queue gets the same plan again, save where preemption has told victims to go."""
    for seed in range(0, SEEDS, 4):
        made = case(seed, tuple(name for name in FEATURES if name not in ("priority", "nominated")))
        snapshot, scheduler = bridge.snapshot_of(made.cluster), Scheduler()
        waiting = [bridge.waiting(pod) for pod in made.queue]
        first = bridge.outcomes(scheduler.schedule(snapshot, waiting), snapshot, made.queue)
        for outcome in first:
            assert snapshot.undo(outcome.uid) == bool(outcome.node), f"seed {seed}, {outcome.uid}"
        assert not bridge.differences(made.cluster, snapshot), f"seed {seed}"
        again = bridge.outcomes(scheduler.schedule(snapshot, waiting), snapshot, made.queue)
        assert again == first, f"seed {seed}"


def test_a_plan_on_a_copy_leaves_the_snapshot_alone() -> None:
    for seed in range(1, SEEDS, 4):
        made = case(seed, FEATURES)
        snapshot = bridge.snapshot_of(made.cluster)
        waiting = [bridge.waiting(pod) for pod in made.queue]
        copy = snapshot.clone()
        on_copy = bridge.outcomes(Scheduler().schedule(copy, waiting), copy, made.queue)
        assert not bridge.differences(made.cluster, snapshot), f"seed {seed}"
        assert bridge.outcomes(Scheduler().schedule(snapshot, waiting), snapshot, made.queue) == on_copy
        assert schedule(deepcopy(made.cluster), made.queue) == on_copy, f"seed {seed}"
