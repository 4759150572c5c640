"""Every test here must leave the machine as it found it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.agent.runtime.client import Client
from tests import leaks
from tests.node.supervision_world import World

clean_machine = pytest.fixture(autouse=True)(leaks.clean_machine)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A node's runtime, for the tests of the supervisors."""
    made = World(tmp_path)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def client(world: World) -> AsyncIterator[Client]:
    async with world.client() as made:
        yield made
