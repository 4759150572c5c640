"""The device list as a BPF program, on a real v2 cgroup (also the controller-less one of a hybrid system)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.agent.runtime import devices
from shoal.agent.runtime.cgroups import CgroupsV2, open_cgroups
from tests.node.launching import needs_root

pytestmark = [pytest.mark.root, needs_root]
ALLOWED = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)]
REFUSED = [(1, 1), (1, 4), (1, 11), (5, 1), (10, 200), (10, 229), (10, 232), (3, 1)]


@pytest.fixture
def cgroup() -> Iterator[tuple[CgroupsV2, str]]:
    root = open_cgroups("x").events_root()
    if root is None:
        pytest.skip("no v2 tree is mounted here")
    groups = CgroupsV2(root, f"shoal-test-{os.getpid()}")
    path = f"{groups.base}/devices"
    os.makedirs(f"{root}/{path}")
    try:
        yield groups, path
    finally:
        assert groups.remove(groups.base)


def outcomes(folder: str, nodes: list[Path]) -> dict[str, bool]:
    """Which of the nodes a process in the cgroup may open; one that is not there at all counts as allowed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b""
        try:
            Path(folder, "cgroup.procs").write_text("0")
            answer = b"".join(b"1" if may_open(node) else b"0" for node in nodes)
        finally:
            os.write(writer, answer)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    assert len(answer) == len(nodes)
    return {node.name: letter == ord("1") for node, letter in zip(nodes, answer, strict=True)}


def may_open(node: Path) -> bool:
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))
    except PermissionError:
        return False
    except OSError:
        return True  # ENXIO, EBUSY: past the list
    return True


@pytest.mark.parametrize("times", [1, 2])
def test_only_listed_devices_open(cgroup: tuple[CgroupsV2, str], tmp_path: Path, times: int) -> None:
    groups, path = cgroup
    nodes = []
    for major, minor in (*ALLOWED, *REFUSED):
        node = tmp_path / f"{major}-{minor}"
        os.mknod(node, 0o20600, os.makedev(major, minor))
        nodes.append(node)
    block = tmp_path / "block"
    os.mknod(block, 0o60600, os.makedev(1, 3))
    for _ in range(times):
        devices.attach(f"{groups.root}/{path}")
    found = outcomes(f"{groups.root}/{path}", [*nodes, block])
    assert {name for name, allowed in found.items() if allowed} == {f"{major}-{minor}" for major, minor in ALLOWED}


def test_without_the_program_all_open(cgroup: tuple[CgroupsV2, str], tmp_path: Path) -> None:
    """The counter-check: it is the program that refuses."""
    groups, path = cgroup
    node = tmp_path / "kmsg"
    os.mknod(node, 0o20600, os.makedev(1, 11))
    assert outcomes(f"{groups.root}/{path}", [node]) == {"kmsg": True}
    groups.allow_devices(path)
    assert outcomes(f"{groups.root}/{path}", [node]) == {"kmsg": False}
