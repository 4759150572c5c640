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
