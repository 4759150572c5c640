"""What a development cluster's plan keeps, and what `up` refuses to change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shoal.deploy.devcluster import disks, lifecycle
from shoal.deploy.devcluster.leftovers import without_clusters
from shoal.deploy.devcluster.plan import (
    MIB,
    ClusterPlan,
    Host,
    Refusal,
    Wishes,
    link_hash,
    load,
    new_plan,
    registry_settings,
)
from shoal.deploy.devcluster.settings import agent, registry

HOST = Host(cpus=2, memory_bytes=8 << 30, storage_bytes=90 << 30, routes=(), free_port=lambda wanted=1: wanted)


def plan(folder: Path, disk: int = 0) -> ClusterPlan:
    return new_plan("c", folder, Wishes(heartbeat_ms=500, node_disk_bytes=disk), HOST, "/etcd")


def test_nodes_share_the_hosts_disk_or_have_their_own(tmp_path: Path) -> None:
    assert {node.storage_bytes for node in plan(tmp_path).nodes} == {30 << 30}
    assert {node.storage_bytes for node in plan(tmp_path, 64 * MIB).nodes} == {64 * MIB}


def test_a_plan_is_read_as_it_was_saved(tmp_path: Path) -> None:
    saved = plan(tmp_path, 64 * MIB)
    saved.save()
    assert load(tmp_path) == saved


@pytest.mark.parametrize(("heartbeat", "disk", "flag"), [(700, 0, "--heartbeat-ms"), (0, 32 * MIB, "--node-disk")])
def test_up_does_not_ignore_what_a_cluster_cannot_become(tmp_path: Path, heartbeat: int, disk: int, flag: str) -> None:
    plan(tmp_path, 64 * MIB).save()
    with pytest.raises(Refusal, match=f"already with {flag}"):
        lifecycle.prepare("c", tmp_path, Wishes(3, heartbeat_ms=heartbeat, node_disk_bytes=disk))
    assert lifecycle.prepare("c", tmp_path, Wishes(heartbeat_ms=500, node_disk_bytes=64 * MIB))[1] is False


def test_a_disk_that_is_too_small_is_refused() -> None:
    with pytest.raises(Refusal, match="at least 32Mi"):
        disks.check(MIB)


def test_other_clusters_that_came_meanwhile_are_not_left_over(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    extra = {
        "links": [f"shoal{link_hash('other')}", f"shoal{link_hash('dev')}"],
        "processes": ["7 python -m shoal.master.main --config /var/lib/shoal/other/master-0.yaml"],
    }
    assert without_clusters(extra, tmp_path) == {"links": [f"shoal{link_hash('dev')}"]}
    assert without_clusters(extra, tmp_path / "none") == extra


def test_registries_reach_every_node(tmp_path: Path) -> None:
    mirrors, insecure = ["docker.io=http://gateway:5000", "docker.io=https://gateway.b"], ["gateway:5000"]
    table = registry_settings(mirrors, insecure)
    made = new_plan("c", tmp_path, Wishes(2, registries=table), HOST, "/etcd")
    made.save()
    kept = load(tmp_path)
    assert kept == made
    for node in kept.nodes:
        told = agent(kept, node)["registries"]
        assert told == {
            "docker.io": {"mirrors": ["http://10.89.0.1:5000", "https://gateway.b"]},
            "10.89.0.1:5000": {"insecure": True},
        }
    assert "registries" not in agent(plan(tmp_path), made.nodes[0])
    for bad in (["docker.io"], ["=http://a"], ["docker.io=10.89.0.1:5000"]):
        with pytest.raises(Refusal, match="REGISTRY=URL"):
            registry_settings(bad, [])
    with pytest.raises(Refusal, match="HOST:PORT"):
        registry_settings([], ["http://a:1"])


def test_its_own_registry_is_asked_first_for_docker_io(tmp_path: Path) -> None:
    registries = registry_settings(["docker.io=https://mirror.example", "quay.io=http://gateway:1"], ["gateway:2"])
    made = new_plan("dev", tmp_path, Wishes(1, registries=registries), HOST, "/etcd", "/usr/bin/docker-registry")
    assert made.registry_address == f"{made.gateway}:5000"
    assert made.agent_registries() == {
        "docker.io": {"mirrors": [f"http://{made.gateway}:5000", "https://mirror.example"]},
        "quay.io": {"mirrors": [f"http://{made.gateway}:1"]},
        f"{made.gateway}:2": {"insecure": True},
        f"{made.gateway}:5000": {"insecure": True},
    }
    assert agent(made, made.nodes[0])["registries"] == made.agent_registries()
    assert registry(made)["http"]["addr"] == f"{made.gateway}:5000"  # nothing wider
    made.save()
    assert load(tmp_path) == made
    assert replace(made, registry="").agent_registries()["docker.io"] == {"mirrors": ["https://mirror.example"]}
