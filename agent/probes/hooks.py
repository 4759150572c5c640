"""Lifecycle handlers, run to their end: postStart and preStop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from shoal.agent.probes import checks
from shoal.agent.probes.checks import Check, Runner, Where
from shoal.agent.probes.state import Outcome
from shoal.agent.runtime.port import ContainerID
from shoal.proto.v1 import objects_pb2 as o

log = logging.getLogger("shoal.agent.probes")
AGAIN_S = 0.2  # until a hook is tried again whose supervisor or spawner died


class LiveHooks:
    """pods.probing.Hooks. A handler fails as a probe does: exit code, no connection, or an HTTP status from 400 on."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def run(
        self, id: ContainerID, handler: o.LifecycleHandler, host: str, ports: Mapping[str, int], timeout_s: float
    ) -> str:
        if timeout_s <= 0:
            return "there was no time left for it"
        if handler.HasField("sleep"):
            return await _sleep(handler.sleep.seconds, timeout_s)
        check = checks.check_of(handler, Where(id, host, ports), self._runner)
        outcome = await _to_its_end(check, timeout_s)
        return "" if outcome.passed else outcome.message or "it failed"


async def _to_its_end(check: Check, timeout_s: float) -> Outcome:
    """A runtime that dies under a hook says nothing of the hook: it is run again, as by an agent that starts again."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while True:
        outcome = await checks.asked(check, end - loop.time())
        if not outcome.gone or end - loop.time() <= AGAIN_S:
            return outcome
        log.warning("a lifecycle hook is run again: %s", outcome.message)
        await asyncio.sleep(AGAIN_S)


async def _sleep(seconds: float, timeout_s: float) -> str:
    await asyncio.sleep(min(seconds, timeout_s))
    return "" if seconds <= timeout_s else f"sleep of {seconds:g} s was ended after {timeout_s:g} s"
