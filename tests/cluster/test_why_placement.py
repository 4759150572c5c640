"""On a real cluster: a pod that waits says what would help, that helps, and every decision can be made again."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator

import pytest

from tests import leaks
from tests.cluster.bad_input import WAIT_SECONDS, Shoal, cluster, pod

clean_machine = pytest.fixture(scope="module", autouse=True)(leaks.clean_machine)


@pytest.fixture(scope="module")
def shoal(clean_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shoal]:
    with cluster(tmp_path_factory.mktemp("why"), name="whys") as made:
        yield made


def until(reached: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.2)


def asks(name: str, cpu: str) -> str:
    return pod(name, more=f", resources: {{requests: {{cpu: {cpu}}}}}")


def test_a_placed_pod_says_why_it_is_there(shoal: Shoal) -> None:
    shoal.apply(asks("placed", "100m"))
    until(lambda: bool(shoal.pod("placed")["spec"].get("nodeName")))
    node = shoal.pod("placed")["spec"]["nodeName"]
    told = shoal("why", "pod/placed")
    assert re.search(rf"^Placed on node {node} .* ago, (at once|after .*), at revision \d+$", told, re.M), told
    assert "  2 of 2 nodes could take it" in told
    assert re.search(rf"^    {node} +\d+\.\d{{4}}  least \+0\.\d+", told, re.M), told


def test_advice_is_followed_and_the_pod_is_placed(shoal: Shoal) -> None:
    shoal.apply(asks("big", "64"))
    until(lambda: "Insufficient cpu" in json.dumps(shoal.pod("big")["status"]))
    told = shoal("why", "pod/big")
    assert "2 Insufficient cpu" in told
    assert "What would change that, each by itself, as the cluster is now:" in told
    story = json.loads(shoal("why", "pod/big", "-o", "json"))["scheduling"]
    assert story["rejected"] == [{"reason": "Insufficient cpu", "nodes": 2}]
    (advice,) = [one for one in story["advice"] if one["kind"] == "request"]
    cpu = advice["change"]["requests"]["cpu"]
    assert f"ask for {cpu} cpu instead of 64000m" in told
    shoal("delete", "pod", "big")
    shoal.apply(asks("big", cpu))
    until(lambda: shoal.pod("big")["spec"].get("nodeName") == advice["node"])


def test_every_decision_is_made_again_from_the_log(shoal: Shoal) -> None:
    (log,) = shoal.folder.glob("data/**/decisions-*.log")
    assert log.stat().st_mode & 0o077 == 0
    until(lambda: json.loads(shoal("scheduler", "replay", str(log), "-o", "json"))["recorded"]["placed"] == 2)
    assert "Every decision came out the same again." in shoal("scheduler", "replay", str(log))
