"""Deleting folders that a container filled."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

from shoal.agent.runtime.trees import BATCH, delete_tree

DEEP = 1200  # levels: beyond PATH_MAX and Python's recursion limit
NAME = "a-folder"


def test_everything_goes_and_nothing_outside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/file").write_text("x")
    (tree / "a/link").symlink_to(outside)
    (tree / "link").symlink_to(outside)
    (tree / ".gone-1-1-0").mkdir()
    os.mkfifo(tree / "fifo")
    (tree / "a").chmod(0)
    assert delete_tree(str(tree))
    assert not tree.exists()
    assert (outside / "kept").exists()
    assert delete_tree(str(tree))


def test_depth_does_not_matter(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir(NAME, dir_fd=fd)
        inner = os.open(NAME, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    assert delete_tree(str(top))
    assert not top.exists()


def test_a_link_in_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert not delete_tree(str(tmp_path / "link"))
    assert (tmp_path / "real").exists()


def test_a_folder_of_any_number_of_entries_costs_little_memory(tmp_path: Path) -> None:
    """At the top and below it; the agent deletes what containers made."""
    tree = tmp_path / "tree"
    count = 3 * BATCH + 7
    for folder in (tree, tree / "inner"):
        folder.mkdir()
        fd = os.open(folder, os.O_RDONLY)
        for number in range(count):
            os.close(os.open(f"{'n' * 240}{number}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            os.mkdir(f"{'d' * 240}{number}", dir_fd=fd)
        os.close(fd)
    (tree / "inner" / f"{'d' * 240}0" / "deep").mkdir()
    tracemalloc.start()
    try:
        assert delete_tree(str(tree))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not tree.exists()
    assert peak < BATCH * 1500, "all names at once are over four times as much"
