"""One cluster of two nodes for all behaviours, and a namespace of its own for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shoal.deploy.devcluster.plan import DATA_ROOT
from tests import images
from tests.behaviours.world import World, busybox_image
from tests.devcluster import Cluster
from tests.etcd import binary, free_port
from tests.leaks import nothing_left


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a test may start registries on the cluster's gateway: `mirror` for registry.test, `private`."""

    mirror: int
    private: int


@pytest.fixture(scope="session")
def ports() -> Ports:
    return Ports(free_port(), free_port())


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, ports: Ports) -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces, cgroups and links")
    folder = tmp_path_factory.mktemp("behaviours")
    name = f"behave{os.getpid()}"
    made = Cluster(name, DATA_ROOT / name, {"SHOAL_CONFIG": str(folder / "config")})
    with nothing_left():
        try:
            mirror = f"registry.test=http://gateway:{ports.mirror}"
            insecure = f"gateway:{ports.private}"
            made.up("--nodes", "2", "--etcd", binary(), "--registry-mirror", mirror, "--insecure-registry", insecure)
            made.shoal("image", "load", str(images.write(folder, busybox_image(), "busy.tar")))
            yield made
        finally:
            made.down()


@pytest.fixture
def world(cluster: Cluster, tmp_path: Path) -> Iterator[World]:
    made = World(cluster, tmp_path)
    try:
        yield made
    finally:
        made.close()
