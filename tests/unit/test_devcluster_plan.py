"""What a development cluster's plan keeps, and what `up` refuses to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.deploy.devcluster import disks, lifecycle
from shoal.deploy.devcluster.plan import MIB, ClusterPlan, Host, Refusal, load, new_plan

HOST = Host(cpus=2, memory_bytes=8 << 30, storage_bytes=90 << 30, routes=(), free_port=lambda: 1)


def plan(folder: Path, disk: int = 0) -> ClusterPlan:
    return new_plan("c", folder, 3, 1, "/etcd", HOST, heartbeat_ms=500, node_disk_bytes=disk)


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
        lifecycle.prepare("c", tmp_path, 3, 1, None, heartbeat, disk)
    assert lifecycle.prepare("c", tmp_path, None, 1, None, 500, 64 * MIB)[1] is False


def test_a_disk_that_is_too_small_is_refused() -> None:
    with pytest.raises(Refusal, match="at least 32Mi"):
        disks.check(MIB)
