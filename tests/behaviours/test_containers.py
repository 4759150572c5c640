"""Commands, containers and their logs: B1 to B24."""

from __future__ import annotations

from tests.behaviours.world import World, container, pod


def test_b14_stdout_and_stderr_are_in_the_logs(world: World) -> None:
    assert world.output(pod("p", container("echo out; echo err >&2"))).split() == ["out", "err"]
