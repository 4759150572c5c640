"""The leak check itself: it must see what it is there to see."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.leaks import listing, wait_clean


def test_a_left_link_namespace_and_process_are_seen() -> None:
    before = listing()
    process = subprocess.Popen(["sleep", "60"])
    subprocess.run(["ip", "netns", "add", "shoal-leak"], check=True)
    subprocess.run(["ip", "link", "add", "shoalleak0", "type", "veth", "peer", "name", "shoalleak1"], check=True)
    folder = Path("/sys/fs/cgroup/pids/shoal-leak")
    folder.mkdir()
    try:
        extra = listing().beyond(before)
        assert any("sleep 60" in line for line in extra["processes"])
        assert "shoal-leak" in extra["namespaces"]
        assert "shoalleak0" in extra["links"]
        assert str(folder) in extra["cgroups"]
        assert extra["mounts"]  # ip netns binds the namespace
    finally:
        process.kill()
        process.wait()
        subprocess.run(["ip", "link", "del", "shoalleak0"], check=True)
        subprocess.run(["ip", "netns", "del", "shoal-leak"], check=True)
        folder.rmdir()
    assert wait_clean(before) == {}
