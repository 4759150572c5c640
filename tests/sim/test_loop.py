"""The simulated loop: deterministic, out of order, and fast."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.sim.loop import Deadlock, run


async def race(names: str) -> list[str]:
    order: list[str] = []

    async def one(name: str) -> None:
        await asyncio.sleep(0)
        order.append(name)

    await asyncio.gather(*(one(name) for name in names))
    return order


def test_the_same_seed_gives_the_same_order_and_others_differ() -> None:
    orders = [tuple(run(seed, race("abcdefgh"))) for seed in range(20)]
    assert orders == [tuple(run(seed, race("abcdefgh"))) for seed in range(20)]
    assert len(set(orders)) > 10


def test_waiting_takes_no_time() -> None:
    async def wait() -> float:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.sleep(86_400)
        return loop.time() - start

    began = time.monotonic()
    assert run(1, wait()) == pytest.approx(86_400)
    assert time.monotonic() - began < 5


def test_a_wait_for_ever_is_told() -> None:
    async def stuck() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run(1, stuck())


def test_threads_are_refused() -> None:
    async def thread() -> None:
        await asyncio.to_thread(time.time)

    with pytest.raises(AssertionError, match="no threads"):
        run(1, thread())
