"""Windows among random events: the snapshot that was fed one change at a time decides as the plain scheduler does, and
says the same of every node as one that is made anew."""

from __future__ import annotations

import os

import pytest

from shoal.master.scheduler.core import Scheduler
from shoal.master.scheduler.filters import filter_reasons
from shoal.master.scheduler.profiles import BUILT_IN
from shoal.master.scheduler.scores import score_parts
from shoal.master.scheduler.snapshot import Snapshot
from tests.reference import bridge
from tests.reference.generate import FEATURES, TOGETHER, Case, case
from tests.reference.history import History
from tests.reference.scheduler import schedule

SEEDS = int(os.environ.get("SHOAL_PROPERTY_SEEDS", "2000")) // 10
SHARDS = 10
STEPS = 25


def live(made: Case) -> None:
    seed = made.seed
    life, snapshot, scheduler = History.of(made), bridge.snapshot_of(made.cluster), Scheduler()
    for number in range(STEPS):
        what = f"seed {seed}, step {number}"
        snapshot.apply(life.step())
        if number % 2:
            queue = life.queue()
            plan = scheduler.schedule(snapshot, [bridge.waiting(pod) for pod in queue])
            wanted = schedule(made.cluster, queue)
            for have, want in zip(bridge.outcomes(plan, snapshot, queue), wanted, strict=True):
                assert have == want, what
            told = life.settle()
            for uid in life.undone:
                assert snapshot.undo(uid), what
            life.undone.clear()
            snapshot.apply(told)
        assert not bridge.differences(made.cluster, snapshot), what
    same_as_new(life, snapshot, f"seed {seed}")


def same_as_new(life: History, snapshot: Snapshot, what: str) -> None:
    """For some classes: the same reasons, and the same parts of the scores, save for devices: what is typical of them
    depends on when it was counted."""
    new = bridge.snapshot_of(life.cluster)
    classes = [life.maker.what() for _ in range(5)] + [pod.what for pod in life.waiting.values()][:5]
    for pods in classes:
        if pods.profile not in BUILT_IN:
            continue
        mine, other = Scheduler().frame(snapshot, pods), Scheduler().frame(new, pods)
        have, want = filter_reasons(snapshot, mine), filter_reasons(new, other)
        assert (have[0].tolist(), have[1]) == (want[0].tolist(), want[1]), what
        parts = score_parts(snapshot, mine, BUILT_IN[pods.profile])
        for name, values in score_parts(new, other, BUILT_IN[pods.profile]).items():
            if name != "devices":
                assert parts[name].tolist() == values.tolist(), f"{what}: {name}"


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_life_fed_in_steps(shard: int) -> None:
    for seed in range(shard, SEEDS, SHARDS):
        live(case(seed, FEATURES))


@pytest.mark.parametrize("features", TOGETHER, ids=" ".join)
def test_a_life_of_few_features(features: tuple[str, ...]) -> None:
    for seed in range(SEEDS // 10):
        live(case(seed, features, all_of_them=True))
