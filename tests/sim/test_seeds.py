"""Two hundred runs of the whole cluster; a failure names its seed."""

from __future__ import annotations

import logging

import pytest

from tests.sim.scenario import play

SEEDS = 200


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("shoal").setLevel(logging.CRITICAL)


@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_seed(seed: int) -> None:
    world = play(seed)
    assert world.watchdog.checks > 20, "hardly anything happened"
    assert world.acknowledged, "nobody got anything done"
    assert world.watched > 20, "the watching client saw hardly anything"


def test_a_seed_gives_the_same_run_whatever_lies_in_memory() -> None:
    logs = []
    for ballast in (0, 10_000):
        kept = [object() for _ in range(ballast)]
        world = play(54)
        logs.append((world.log, world.loop.steps, world.watchdog.committed))
        del kept
    assert logs[0] == logs[1]


def test_some_pods_are_evicted_and_replaced() -> None:
    evicted = [len(play(seed).watchdog.evicted) for seed in range(1, 5)]
    assert sum(evicted) > 0, "no node was ever short of memory while a pod ran there"


def test_some_pods_are_evicted_for_others() -> None:
    preempted = [len(play(seed).watchdog.preempted) for seed in range(1, 9)]
    assert sum(preempted) > 0, "nobody that matters more ever found the nodes full"
