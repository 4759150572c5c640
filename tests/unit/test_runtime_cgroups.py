"""Cgroup detection from mountinfo texts, and the v2 kind against a fake folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.agent.runtime.cgroups import (
    CgroupError,
    CgroupsV1,
    CgroupsV2,
    detect,
    hierarchies,
    shares_to_weight,
)

HYBRID = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
NO_LIMITS: dict[str, int | None] = {"cpu_shares": 2, "cpu_quota_us": None, "memory_bytes": None, "pids": None}


def v2(tmp_path: Path, path: str = "shoal-x/n1/pods/u/c-0") -> tuple[CgroupsV2, Path]:
    """A fake v2 tree whose files exist, as the kernel would have made them."""
    groups = CgroupsV2(str(tmp_path), "shoal-x/n1")
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory")
    groups.create(path)
    folder = tmp_path / path
    for name in ("cpu.weight", "cpu.max", "memory.max", "memory.swap.max", "memory.oom.group", "pids.max"):
        (folder / name).write_text("")
    return groups, folder


def test_hybrid_is_v1_with_a_unified_tree() -> None:
    groups = detect(HYBRID, "shoal-x/n1")
    assert isinstance(groups, CgroupsV1)
    assert groups.events_root() == "/sys/fs/cgroup/unified"
    assert groups.folders("p") == [
        "/sys/fs/cgroup/cpu,cpuacct/p",
        "/sys/fs/cgroup/memory/p",
        "/sys/fs/cgroup/pids/p",
        "/sys/fs/cgroup/unified/p",
    ]
    assert ("memory", "/sys/fs/cgroup/memory/p") in groups.views("p")


def test_unified_is_v2() -> None:
    groups = detect(UNIFIED, "/shoal-x/n1/")
    assert isinstance(groups, CgroupsV2)
    assert groups.container_path("uid", "web", 3) == "shoal-x/n1/pods/uid/web-3"
    assert groups.views("p") == [("", "/sys/fs/cgroup/p")]


def test_no_cgroups_is_an_error() -> None:
    with pytest.raises(CgroupError, match="mount cgroup2"):
        detect("27 1 254:0 / / rw - ext4 /dev/vda rw\n", "x")


@pytest.mark.parametrize("line", ["", "garbage", "1 2 3 - cgroup", "31 23 0:28 / /x rw - cgroup cgroup", " - "])
def test_odd_mountinfo_lines_are_left_out(line: str) -> None:
    assert hierarchies(line) == {}


def test_the_mount_of_the_whole_tree_wins_and_names_are_decoded() -> None:
    part = "50 1 0:32 /some/part /mnt/part rw - cgroup cgroup rw,memory\n"
    whole = "51 1 0:32 / /mnt/with\\040space rw - cgroup cgroup rw,memory\n"
    assert hierarchies(part + whole) == hierarchies(whole + part) == {"memory": "/mnt/with space"}
    assert hierarchies(part) == {"memory": "/mnt/part"}


def test_v2_limits(tmp_path: Path) -> None:
    groups, folder = v2(tmp_path)
    limits: dict[str, int | None] = {"cpu_shares": 1024, "cpu_quota_us": 50_000, "memory_bytes": 1 << 26, "pids": 9}
    groups.limit("shoal-x/n1/pods/u/c-0", limits, group_oom=True)
    shown = {path.name: path.read_text() for path in folder.iterdir()}
    assert shown["cpu.weight"] == "39"
    assert shown["cpu.max"] == "50000 100000"
    assert shown["memory.max"] == str(1 << 26)
    assert shown["memory.swap.max"] == "0"
    assert shown["memory.oom.group"] == "1"
    assert shown["pids.max"] == "9"


def test_v2_no_limits_are_written_as_max(tmp_path: Path) -> None:
    groups, folder = v2(tmp_path)
    groups.limit("shoal-x/n1/pods/u/c-0", NO_LIMITS)
    shown = {path.name: path.read_text() for path in folder.iterdir()}
    assert shown["cpu.max"] == "max 100000"
    assert shown["memory.max"] == shown["memory.swap.max"] == shown["pids.max"] == "max"
    assert shown["cpu.weight"] == "1"


def test_v2_a_missing_controller_is_named_only_when_needed(tmp_path: Path) -> None:
    groups, folder = v2(tmp_path)
    (folder / "memory.max").unlink()
    (folder / "memory.swap.max").unlink()
    groups.limit("shoal-x/n1/pods/u/c-0", NO_LIMITS)
    with pytest.raises(CgroupError, match=r"memory\.max.*controller"):
        groups.limit("shoal-x/n1/pods/u/c-0", {**NO_LIMITS, "memory_bytes": 1 << 20})


def test_v2_controllers_are_enabled_on_the_way_down(tmp_path: Path) -> None:
    control = tmp_path / "cgroup.subtree_control"
    control.write_text("cpu memory")
    CgroupsV2(str(tmp_path), "s").create("s/leaf")
    assert "+pids" in control.read_text()  # the fake overwrites, the kernel adds: only what was missing is written
    assert "+cpu" not in control.read_text()


def test_v2_reads(tmp_path: Path) -> None:
    groups, folder = v2(tmp_path)
    path = "shoal-x/n1/pods/u/c-0"
    (folder / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (folder / "memory.current").write_text("1000\n")
    (folder / "memory.stat").write_text("anon 5\ninactive_file 300\n")
    (folder / "pids.current").write_text("4\n")
    (folder / "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    (folder / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert groups.usage(path) == (2.5, 700, 4)
    assert groups.oom_kills(path) == 1
    assert groups.populated(path)
    assert not groups.populated("gone")
    assert groups.oom_kills("gone") == 0


def test_v2_kill_and_processes(tmp_path: Path) -> None:
    groups, folder = v2(tmp_path)
    (folder / "cgroup.kill").write_text("")
    (folder / "cgroup.procs").write_text("12\n34\n0\n")
    (folder / "inner").mkdir()
    (folder / "inner/cgroup.procs").write_text("56\n")
    groups.kill("shoal-x/n1/pods/u/c-0")
    assert (folder / "cgroup.kill").read_text() == "1"
    assert groups.pids("shoal-x/n1/pods/u/c-0") == {12, 34, 56}


def test_a_branch_lies_where_its_processes_can_be_killed(tmp_path: Path) -> None:
    groups, folder = v2(tmp_path)
    path = "shoal-x/n1/pods/u/c-0"
    branch = groups.branch(path, "probe-1")
    assert branch == f"{path}/probe-1"
    assert groups.branches(path, "probe-") == [branch]
    entry = groups.entry(path, branch)
    assert os.readlink(f"/proc/self/fd/{entry.born_in}") == str(folder / "probe-1")
    entry.close()
    assert groups.remove(branch)
    assert groups.branches(path, "probe-") == []
    assert groups.branches("gone", "probe-") == []


def test_without_a_unified_tree_a_branch_lies_in_one_hierarchy_and_limits_stay(tmp_path: Path) -> None:
    for name in ("cpu", "memory"):
        (tmp_path / name / "pod").mkdir(parents=True)
        (tmp_path / name / "pod/tasks").touch()
    groups = CgroupsV1({"cpu": str(tmp_path / "cpu"), "memory": str(tmp_path / "memory")}, "")
    branch = groups.branch("pod", "probe-1")
    (tmp_path / "cpu" / branch / "tasks").touch()
    entry = groups.entry("pod", branch)
    doors = [os.readlink(f"/proc/self/fd/{fd}") for fd in entry.doors]
    entry.close()
    assert doors == [str(tmp_path / "cpu/pod/probe-1/tasks"), str(tmp_path / "memory/pod/tasks")]
    assert not (tmp_path / "memory/pod/probe-1").exists()


def test_remove_goes_deepest_first_and_reports_what_is_left(tmp_path: Path) -> None:
    groups = CgroupsV2(str(tmp_path), "s")
    groups.create("s/a/b/c")
    (tmp_path / "s/a/b/busy").write_text("")  # stands for a process
    assert not groups.remove("s/a")
    assert not (tmp_path / "s/a/b/c").exists()
    (tmp_path / "s/a/b/busy").unlink()
    assert groups.remove("s/a")
    assert not (tmp_path / "s/a").exists()
    assert (tmp_path / "s").exists()


def test_v1_limits_need_their_controller(tmp_path: Path) -> None:
    groups = CgroupsV1({}, "s")
    groups.limit("s/a", NO_LIMITS | {"cpu_shares": None})
    with pytest.raises(CgroupError, match="memory"):
        groups.limit("s/a", {**NO_LIMITS, "cpu_shares": None, "memory_bytes": 1})


@pytest.mark.parametrize(("raised", "order"), [(True, ["memsw", "limit"]), (False, ["limit", "memsw"])])
def test_v1_memory_and_swap_are_written_in_an_order_the_kernel_takes(
    tmp_path: Path, raised: bool, order: list[str]
) -> None:
    """memory <= memory+swap at every moment: raise the sum first, lower it last."""
    groups = CgroupsV1({"memory": str(tmp_path)}, "s")
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("1000")
    (folder / "memory.memsw.limit_in_bytes").write_text("1000")
    broken = folder / ("memory.limit_in_bytes" if order[1] == "limit" else "memory.memsw.limit_in_bytes")
    broken.unlink()
    broken.mkdir()  # the second write fails: what the first one was is left
    with pytest.raises(CgroupError):
        groups.limit("s", {"memory_bytes": 2000 if raised else 500})
    first = folder / ("memory.memsw.limit_in_bytes" if order[0] == "memsw" else "memory.limit_in_bytes")
    assert first.read_text().startswith("2000" if raised else "500")


@pytest.mark.parametrize(("shares", "weight"), [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (1 << 30, 10_000)])
def test_shares_become_weights(shares: int, weight: int) -> None:
    assert shares_to_weight(shares) == weight


def test_what_a_run_used_on_v2(tmp_path: Path) -> None:
    groups, folder = v2(tmp_path)
    stat = "usage_usec 2500000\nnr_periods 40\nnr_throttled 10\nthrottled_usec 750000\n"
    pressure = (
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=500000\n"
    )
    files = {
        "cpu.stat": stat,
        "memory.peak": "1048576\n",
        "memory.max": "max\n",
        "memory.events": "low 0\noom_kill 2\n",
        "pids.events": "max 3\n",
        "memory.pressure": pressure,
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    assert groups.resources("shoal-x/n1/pods/u/c-0") == {
        "peak_memory_bytes": 1 << 20,
        "memory_limit_bytes": 0,
        "cpu_seconds": 2.5,
        "periods": 40,
        "throttled_periods": 10,
        "throttled_seconds": 0.75,
        "oom_kills": 2,
        "refused_forks": 3,
        "pressure": {"memory": [1.5, 0.5]},
    }


def test_a_cgroup_that_is_gone_has_used_nothing(tmp_path: Path) -> None:
    found = CgroupsV2(str(tmp_path), "shoal-x/n1").resources("shoal-x/n1/pods/u/gone-0")
    assert not any(found.values())
