"""The scheduling loop on a small cluster state and virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from shoal.master.model import Fault, Modify, Object, key_of
from shoal.master.recorder import Recorder
from shoal.master.scheduler.core import Scheduler
from shoal.master.scheduling import Observer, SchedulingLoop
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import World
from tests.unit.store_support import Clock


@asynccontextmanager
async def scheduling(
    world: World, *, refresh: bool = False, observer: Observer | None = None, core: Scheduler | None = None
) -> AsyncGenerator[SchedulingLoop]:
    """Its loop and its recorder run; by default on events alone."""
    now, rng = Clock(), random.Random(1)
    recorder = Recorder(world, now, rng)
    loop = SchedulingLoop(world, recorder, now, rng, observer=observer, refresh=refresh, core=core)
    tasks = [asyncio.create_task(loop.run()), asyncio.create_task(recorder.run())]
    try:
        await idle()
        yield loop
        for task in tasks:
            assert not task.done(), task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def idle() -> None:
    """Virtual time goes on only when nothing can run."""
    await asyncio.sleep(0.01)


def edit(world: World, obj: Object, change: Callable[[Object], object]) -> None:
    def apply(found: Object) -> bool:
        before = found.SerializeToString(deterministic=True)
        change(found)
        return found.SerializeToString(deterministic=True) != before

    assert not isinstance(world.commit(Modify(key_of(obj), apply)), Fault)


def end(found: Object) -> None:
    assert isinstance(found, o.Pod)
    found.status.phase = "Succeeded"
