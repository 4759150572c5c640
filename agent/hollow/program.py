"""`shoal agent --hollow N` as a program: wiring only. One event loop, no task per pod, nothing on the disk."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import resource
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from shoal.agent.hollow.node import HollowConfig, HollowNode, node_report
from shoal.proto import logs

log = logging.getLogger("shoal.agent.hollow")
FILES_PER_NODE, OTHER_FILES = 2, 200
JOINS_PER_SECOND = 200  # below what a master admits
GC_THRESHOLDS = (10_000, 20, 100)
JOINS_AT_ONCE = 100  # a busy master would otherwise time them out, to be tried again with all that it costs
WAIT_S = 0.1
TELL_S = 1.0
QUIET_KEEPALIVE: Sequence[tuple[str, Any]] = (
    ("grpc.keepalive_time_ms", 30_000),  # thousands of connections to one place: heartbeats find out sooner
    ("grpc.use_local_subchannel_pool", 1),
)


IdentityOf = Callable[[str], tuple[bytes, bytes, bytes]]


class CannotRun(Exception):
    """The process cannot hold so many nodes; the message says why and what to do."""


def run(config: HollowConfig, count: int, identity: IdentityOf, say: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT. `identity` gives a node's authority, certificate and key as PEM. Raises CannotRun."""
    _allow_files(count)
    logs.set_up("logfmt", logging.WARNING)
    asyncio.run(_serve(config, count, identity, say))


def _allow_files(count: int) -> None:
    """One connection per node."""
    wanted = count * FILES_PER_NODE + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise CannotRun(
                f"{count} nodes need {wanted} open files, {hard} are allowed: raise `ulimit -n`, or run fewer"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(config: HollowConfig, count: int, identity: IdentityOf, say: Callable[[str], None]) -> None:
    from shoal.agent.grpc_link import GrpcConnector, Pems

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    rng, report = random.Random(), node_report(config)  # noqa: S311 - for jitter
    shapes: dict[bytes, bytes] = {}
    nodes: list[HollowNode] = []
    running: list[asyncio.Task[None]] = []
    teller = asyncio.create_task(_tell(nodes, count, say))
    try:
        for index in range(count):
            if stop.is_set():
                break
            connector = GrpcConnector(Pems(*identity(config.name(index))), plain=True, options=QUIET_KEEPALIVE)
            node = HollowNode(config, index, report, connector, rng, time.time, loop.call_later, shapes)
            nodes.append(node)
            running.append(loop.create_task(node.session.run()))
            await _pause(stop, 1 / JOINS_PER_SECOND)
            if index % JOINS_AT_ONCE == 0:
                await _caught_up(nodes, stop)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        await stop.wait()
    finally:
        teller.cancel()
        for task in running:
            task.cancel()
        await asyncio.gather(teller, *running, return_exceptions=True)


async def _caught_up(nodes: Sequence[HollowNode], stop: asyncio.Event) -> None:
    """Waits until few are still joining."""
    while len(nodes) - sum(node.session.connected for node in nodes) > JOINS_AT_ONCE and not stop.is_set():
        await _pause(stop, WAIT_S)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass


async def _tell(nodes: Iterable[HollowNode], count: int, say: Callable[[str], None]) -> None:
    """A line whenever the numbers are others."""
    told = ""
    while True:
        connected = sum(node.session.connected for node in nodes)
        pods = sum(len(node.pods.pods) for node in nodes)
        line = f"{connected} of {count} hollow nodes have a session, {pods} pods"
        if line != told:
            say(line)
            told = line
        await asyncio.sleep(TELL_S)
