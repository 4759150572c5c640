"""Limits are in the kernel's files and are enforced; cgroups are counted, killed and removed."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.agent.runtime import launch
from shoal.agent.runtime.cgroups import CgroupsV1
from tests.node.launching import TIMEOUT_S, Host, needs_root

pytestmark = [pytest.mark.root, needs_root]
MIB = 1 << 20


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


def value(host: Host, v1: tuple[str, str], v2: str) -> str:
    """A limit as the kernel shows it, whichever kind of cgroup this machine has."""
    if isinstance(host.cgroups, CgroupsV1):
        return Path(f"{host.cgroups.roots[v1[0]]}/{host.path}/{v1[1]}").read_text().strip()
    return Path(f"{host.cgroups.roots['']}/{host.path}/{v2}").read_text().strip()


def test_limits_are_written(host: Host) -> None:
    limits = {"cpu_shares": 512, "cpu_quota_us": 25_000, "memory_bytes": 64 * MIB, "pids": 30}
    run = host.start("sh", "-c", "echo up; exec sleep 60", limits=limits)
    run.pump("up")
    assert value(host, ("memory", "memory.limit_in_bytes"), "memory.max") == str(64 * MIB)
    assert value(host, ("pids", "pids.max"), "pids.max") == "30"
    assert value(host, ("cpu", "cpu.cfs_quota_us"), "cpu.max").split()[0] == "25000"
    assert value(host, ("cpu", "cpu.shares"), "cpu.weight") in ("512", "20")
    assert host.cgroups.populated(host.path)
    assert host.cgroups.pids(host.path) == {run.pid}
    seconds, memory, pids = host.cgroups.usage(host.path)
    assert seconds > 0
    assert memory > 0
    assert pids == 1


def test_limits_can_be_changed_both_ways(host: Host) -> None:
    path = f"{host.cgroups.base}/pods/p"
    host.cgroups.create(path)
    host.path = path
    for size in (64 * MIB, 128 * MIB, 32 * MIB, None):
        host.cgroups.limit(path, {"memory_bytes": size, "cpu_shares": 2, "cpu_quota_us": None, "pids": None})
        shown = value(host, ("memory", "memory.limit_in_bytes"), "memory.max")
        assert shown == str(size) if size else int(shown.replace("max", "9" * 18)) > 1 << 60


def test_out_of_memory_is_counted(host: Host) -> None:
    hog = "a=x; while :; do a=$a$a; done"
    run = host.run("sh", "-c", hog, limits={"memory_bytes": 16 * MIB})
    assert run.code == -signal.SIGKILL
    assert host.cgroups.oom_kills(host.path) >= 1
    assert not host.cgroups.populated(host.path)


def test_a_limit_too_small_to_start_says_so(host: Host) -> None:
    error = host.refuse("true", limits={"memory_bytes": 128 * 1024})
    assert "memory" in error.message


def test_pids_limit_holds(host: Host) -> None:
    run = host.run("sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 60 & done", limits={"pids": 4})
    assert run.code != 0
    assert "can't fork" in run.err


def test_the_whole_cgroup_is_killed(host: Host) -> None:
    run = host.start("sh", "-c", "for i in 1 2 3 4 5; do sleep 60 & done; echo up; wait")
    run.pump("up")
    assert len(host.cgroups.pids(host.path)) == 6
    assert not host.cgroups.remove(host.path)  # it still lives
    host.cgroups.kill(host.path)
    assert run.wait() == -signal.SIGKILL
    assert host.cgroups.wait_empty(host.path, TIMEOUT_S)
    assert host.cgroups.remove(host.path)
    assert host.cgroups.remove(host.path)  # gone is fine
    assert host.cgroups.usage(host.path) == (0.0, 0, 0)
    host.cgroups.kill(host.path)


def test_kill_without_cgroup_kill(host: Host) -> None:
    """Kernels before 5.14, and v1 without a v2 tree: one by one, until none is left."""
    if not isinstance(host.cgroups, CgroupsV1):
        pytest.skip("this machine has v2 only")
    run = host.start("sh", "-c", "echo up; while :; do sleep 0.01 & done")
    run.pump("up")
    old = CgroupsV1({key: root for key, root in host.cgroups.roots.items() if key != "unified"}, host.cgroups.base)
    assert old.populated(host.path)
    old.kill(host.path)
    assert run.wait() == -signal.SIGKILL
    assert old.wait_empty(host.path, TIMEOUT_S)


def test_wait_empty_gives_up_in_time(host: Host) -> None:
    run = host.start("sh", "-c", "echo up; exec sleep 60")
    run.pump("up")
    assert not host.cgroups.wait_empty(host.path, 0.05)


def test_oom_score(host: Host) -> None:
    assert host.run("cat", "/proc/self/oom_score_adj", limits={"oom_score_adj": 321}).out == "321\n"
    lowest = host.run("cat", "/proc/self/oom_score_adj", limits={"oom_score_adj": -998}).out
    assert int(lowest) in (-998, int(Path("/proc/self/oom_score_adj").read_text()))


def test_resource_limits_stay_below_ours(host: Host) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft_inside, hard_inside = map(int, host.shell("ulimit -Sn; ulimit -Hn").split())
    assert hard_inside == min(hard, 1 << 20)
    assert soft_inside == min(65_536, hard_inside)
    assert host.shell("ulimit -Sc") == "0\n"


def test_devices_are_listed(host: Host) -> None:
    if not isinstance(host.cgroups, CgroupsV1) or "devices" not in host.cgroups.roots:
        pytest.skip("no v1 device list here")
    run = host.start("sh", "-c", "echo up; exec sleep 60")
    run.pump("up")
    rules = Path(f"{host.cgroups.roots['devices']}/{host.path}/devices.list").read_text().split("\n")
    assert "a *:* rwm" not in rules
    assert "c 1:3 rwm" in rules


def test_the_container_sees_its_own_limits(host: Host) -> None:
    files = "/sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max"
    out = host.shell(f"cat {files} 2>/dev/null || true; cat /proc/self/cgroup", limits={"memory_bytes": 64 * MIB})
    assert out.splitlines()[0] == str(64 * MIB)
    assert "shoal" not in out


def test_cleanup_is_tolerant(host: Host) -> None:
    assert host.shell("mkdir -p /a/b && chmod 0 /a && ln -s / /a/link && echo ok") == "ok\n"
    assert os.path.exists(f"{host.work}/upper/a")
    launch.cleanup(host.work)
    launch.cleanup(host.work)
    assert not os.path.exists(host.work)
    assert os.path.exists("/etc/passwd")
