"""What planning costs a master of 5,000 nodes and 10,000 pods, and for how long its other work waits meanwhile.

`python -m bench.planning` prints a line per question, and the figures last. CPU seconds; `turn_ms` is the longest step.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Generator, Iterator
from typing import Any

from tests import control_world as w
from tests.masterkit import memory_master
from tests.planning_world import put, sent, wished

from shoal.master.api import copying, planning
from shoal.master.core import Master
from shoal.proto.v1 import cluster_pb2 as c

NODES, PODS, REPLICAS = 5000, 10_000, 1000
BATCH = 100


class Turns:
    """Steps through questions as the master does, and keeps the CPU time of the longest step."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def breathe(self, steps: Iterator[None] | Generator[None, None, Any]) -> Any:
        while True:
            started = time.process_time()
            try:
                next(steps)
            except StopIteration as ended:
                return ended.value
            finally:
                self.longest = max(self.longest, time.process_time() - started)
            await asyncio.sleep(0)


async def fill(master: Master) -> None:
    nodes = [w.node(f"n{number:05}", cpu="32", memory="64Gi") for number in range(NODES)]
    pods = [
        w.pod(f"p{number:06}", node=f"n{number % NODES:05}", cpu="1", phase="Running", is_ready=True)
        for number in range(PODS)
    ]
    for objects in (nodes, pods):
        for start in range(0, len(objects), BATCH):
            await put(master, *objects[start : start + BATCH])


async def measured(name: str, question: Awaitable[Any], turns: Turns) -> float:
    turns.longest = 0.0
    started = time.process_time()
    await question
    spent = time.process_time() - started
    print(f"{name}: {spent:.2f} s of CPU, the longest step {turns.longest * 1000:.0f} ms", flush=True)
    return spent


async def main() -> int:
    turns = Turns()
    for module in (copying, planning):
        vars(module)["breathe"] = turns.breathe
    longest = 0.0
    spent = {}
    async with memory_master(loops=False) as master:
        await fill(master)
        service, objects = master.service, sent(wished(replicas=REPLICAS))
        questions: dict[str, Awaitable[Any]] = {
            "plan": service.plan(c.PlanRequest(objects=objects)),
            "whatif": service.what_if(c.WhatIfRequest(drain=["n00001"])),
            "fit": service.fit(c.FitRequest(objects=objects)),
            "rebalance": service.rebalance(c.RebalanceRequest()),
        }
        for name, question in questions.items():
            spent[name] = await measured(name, question, turns)
            longest = max(longest, turns.longest)
    print(" ".join(f"{name}_s={value:.2f}" for name, value in spent.items()), f"turn_ms={longest * 1000:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
