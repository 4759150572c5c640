"""Every test here must leave the machine as it found it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shoal.agent.runtime.client import Client
from tests.leaks import nothing_left
from tests.node.supervision_world import World


@pytest.fixture(autouse=True)
def clean_machine() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces, cgroups and links")
    with nothing_left():
        yield


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
