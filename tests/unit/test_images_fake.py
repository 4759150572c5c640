"""The image store in memory keeps the contract."""

from __future__ import annotations

import pytest

from shoal.agent.images.fake import FakeImages
from shoal.agent.images.port import ImageConfig
from tests.images_contract import ImagesContract


class TestFakeImages(ImagesContract):
    @pytest.fixture
    def store(self) -> FakeImages:
        return FakeImages()


async def test_add_needs_no_archive() -> None:
    store = FakeImages()
    image = store.add("nginx", ImageConfig(cmd=("run",)))
    assert await store.find("nginx:latest") == image
    assert image.config.cmd == ("run",) and image.names == ("docker.io/library/nginx:latest",)
