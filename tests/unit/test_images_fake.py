"""The image store in memory keeps the contract."""

from __future__ import annotations

import pytest

from shoal.agent.images.fake import FakeImages
from shoal.agent.images.port import Credential, ImageConfig, ImageFault
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


async def test_the_registry_in_memory() -> None:
    store = FakeImages()
    store.publish("a.io/team/app:1", ImageConfig(cmd=("run",)))
    store.passwords["a.io"] = ("anna", "fish")
    with pytest.raises(ImageFault, match="refuses") as caught:
        await store.pull("a.io/team/app:1")
    assert caught.value.reason == "Unauthorized"
    right = Credential("a.io", "anna", "fish")
    image = await store.pull("a.io/team/app:1", [right])
    assert await store.find("a.io/team/app:1") == image and image.config.cmd == ("run",)
    await store.tag("a.io/team/app:1", "b.io/copy:1")
    assert await store.push("b.io/copy:1") == image.digest
    assert (await FakeImages.pull(store, "b.io/copy:1")).digest == image.digest
    with pytest.raises(ImageFault, match="manifest unknown"):
        await store.pull("b.io/none:1")
    store.faults["docker.io/library/x:1"] = ImageFault("RegistryUnavailable", "down", 3.0)
    with pytest.raises(ImageFault, match="down"):
        await store.pull("x:1")
    await store.login(right)
    with pytest.raises(ImageFault):
        await store.login(Credential("a.io", "anna", "wrong"))
    assert [name for name, _ in store.pulls][:2] == ["a.io/team/app:1"] * 2
