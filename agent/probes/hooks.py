"""Lifecycle handlers, run to their end: postStart and preStop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from shoal.agent.probes import checks
from shoal.agent.probes.checks import Runner, Where
from shoal.agent.runtime.port import ContainerID
from shoal.proto.v1 import objects_pb2 as o


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
        outcome = await checks.asked(check, timeout_s)
        return "" if outcome.passed else outcome.message or "it failed"


async def _sleep(seconds: float, timeout_s: float) -> str:
    await asyncio.sleep(min(seconds, timeout_s))
    return "" if seconds <= timeout_s else f"sleep of {seconds:g} s was ended after {timeout_s:g} s"
