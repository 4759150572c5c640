"""The real runtime keeps the runtime's contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.agent.runtime.port import ContainerID, ContainerSpec, Runtime
from tests.node.runtime_contract import Contract
from tests.node.supervision_world import World

SCRIPTS = {
    "exit": "exit {0}",
    "sleep": "sleep {0}",
    "say": "echo {1} > /dev/termination-log; exit {0}",
    "cat": "exec cat",
    "run": "while true; do sleep 1; done",
    "stubborn": "trap '' TERM; while true; do sleep 1; done",
}


class RealNode:
    def __init__(self, world: World, runtime: Runtime) -> None:
        self.world, self.runtime = world, runtime

    def spec(self, id: ContainerID, *words: str) -> ContainerSpec:
        if words[0] == "fail":
            return replace(self.spec(id, "run"), argv=["/no/such/command"])
        script = SCRIPTS[words[0]].format(*words[1:])
        return self.world.spec(id.pod_uid, script, name=id.name, attempt=id.attempt)


class TestReal(Contract):
    @pytest.fixture
    async def node(self, tmp_path: Path) -> AsyncIterator[RealNode]:
        world = World(tmp_path)
        try:
            async with world.client() as client:
                yield RealNode(world, client)
        finally:
            await world.close()
