"""Going through folders whose shape a container chose."""

from __future__ import annotations

import os
from pathlib import Path

from shoal.agent.runtime.trees import delete_tree
from shoal.agent.volumes import walk as walking
from shoal.agent.volumes.walk import walk

LONG = "n" * 250
WIDE = 200  # folders beside each other


def test_folders_beyond_one_paths_length_share_descriptors(tmp_path: Path) -> None:
    """Each with its own would take all that the agent may open."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(walking.MAX_PATH // len(LONG) + 1):
        os.mkdir(LONG, dir_fd=fd)
        below = os.open(LONG, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    for number in range(WIDE):
        os.mkdir(f"{number}", dir_fd=fd)
        os.mkdir(f"{number}/in", dir_fd=fd)
    os.close(fd)
    before, most, seen = _open_files(), 0, 0
    for _ in walk(str(tmp_path)):
        most, seen = max(most, _open_files()), seen + 1
    assert seen == walking.MAX_PATH // len(LONG) + 1 + 2 * WIDE
    assert most - before < 10
    assert _open_files() == before
    assert delete_tree(str(tmp_path / LONG))


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
