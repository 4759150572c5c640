"""Images from registries, on the real cluster: mirrors, passwords, and what is said of what is not there."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import images, registries
from tests.behaviours.conftest import Ports
from tests.behaviours.world import POD_SECONDS, World, busybox_layer, container, pod
from tests.devcluster import Cluster, until
from tests.registries import PASSWORD, USER, Running


def app(folder: Path, said: str) -> str:
    """An archive of an image that nothing else here is made of; its ENTRYPOINT says `said`."""
    layer = images.layer(*busybox_layer(), images.member("said", said.encode()))
    config = {"Entrypoint": ["cat", "/said"]}
    return str(images.write(folder, images.oci_archive(images.image(layer, names=["1"], config=config)), "app.tar"))


@pytest.fixture(scope="module")
def mirror(cluster: Cluster, ports: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("mirror")
    with registries.registry(folder, host=cluster.plan.gateway, port=ports.mirror) as running:
        yield running


@pytest.fixture(scope="module")
def private(cluster: Cluster, ports: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("private")
    with registries.registry(folder, host=cluster.plan.gateway, port=ports.private, password=True) as running:
        yield running


def pushed(folder: Path, name: str, said: str, *options: str) -> None:
    archive = f"oci-archive:{app(folder, said)}"
    registries.skopeo("copy", "-q", "--dest-tls-verify=false", *options, archive, f"docker://{name}")


def of(image: str, **fields: Any) -> dict[str, Any]:
    return {**container(**fields), "image": image}


def pull_secret(name: str, address: str, password: str = PASSWORD) -> dict[str, Any]:
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    config = json.dumps({"auths": {address: {"auth": auth}}})
    body = {"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config}}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, **body}


def test_an_image_is_pulled_from_its_registrys_mirror(world: World, mirror: Running, tmp_path: Path) -> None:
    pushed(tmp_path, mirror.name("team/app:1"), "from the mirror")
    assert world.output(pod("p", of("registry.test/team/app:1"))).strip() == "from the mirror"
    told = world.status("p")
    assert told["imageID"] and told["image"] == "registry.test/team/app:1"


def test_a_moved_tag_is_seen_under_always_and_not_under_if_not_present(
    world: World, mirror: Running, tmp_path: Path
) -> None:
    name, where = "registry.test/team/moving:1", {"nodeName": "node-1"}
    pushed(tmp_path, mirror.name("team/moving:1"), "old")
    assert world.output(pod("first", of(name), **where)).strip() == "old"
    pushed(tmp_path, mirror.name("team/moving:1"), "new")
    assert world.output(pod("same", of(name), **where)).strip() == "old"
    assert world.output(pod("fresh", of(name, imagePullPolicy="Always"), **where)).strip() == "new"


def test_a_private_image_needs_its_secret(world: World, private: Running, tmp_path: Path) -> None:
    name = private.name("team/secret:1")
    pushed(tmp_path, name, "for friends", f"--dest-creds={USER}:{PASSWORD}")
    world.apply(pod("nobody", of(name)))
    said = world.waiting("nobody", "ImagePullBackOff")
    assert "without a credential" in said and "401" in said
    world.apply(pull_secret("wrong", private.address, "hunter2"))
    world.apply(pod("stranger", of(name), imagePullSecrets=[{"name": "wrong"}]))
    said = world.waiting("stranger", "ImagePullBackOff")
    assert f"the user '{USER}'" in said and "hunter2" not in said
    world.apply(pull_secret("right", private.address))
    assert world.output(pod("friend", of(name), imagePullSecrets=[{"name": "right"}])).strip() == "for friends"


def test_a_missing_tag_is_said_with_those_that_there_are(world: World, mirror: Running, tmp_path: Path) -> None:
    pushed(tmp_path, mirror.name("team/tags:1.25"), "x")
    world.apply(pod("p", of("registry.test/team/tags:1.26")))
    said = world.waiting("p", "ImagePullBackOff")

    def untold() -> str:
        told = world.shoal("events", "--for", "pod/p")
        return "" if "Failed" in told and "manifest unknown" in told else told

    until(untold, POD_SECONDS)
    assert "registry.test/team/tags:1.26" in said and "manifest unknown" in said
