"""Planning on a real cluster: what was foretold is what comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests import leaks
from tests.cluster.bad_input import WAIT_SECONDS, Shoal, cluster

NODES = ("node-1", "node-2")


clean_machine = pytest.fixture(scope="module", autouse=True)(leaks.clean_machine)


@pytest.fixture(scope="module")
def whole(clean_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shoal]:
    with cluster(tmp_path_factory.mktemp("planning"), name="plans") as made:
        yield made


@pytest.fixture
def shoal(whole: Shoal) -> Iterator[Shoal]:
    yield whole
    open_nodes(whole)
    whole("delete", "pdb,deploy,rs", "--all", "--timeout", "60s")
    whole.clear()


def deployment(name: str, replicas: int, cpu: str, more: str = "") -> str:
    """A manifest on one line; `more` are further fields of the container, each with a comma before it."""
    container = (
        f'{{name: main, image: base:1, command: ["sleep", "1000"], resources: {{requests: {{cpu: {cpu}}}}}{more}}}'
    )
    spec = f"{{terminationGracePeriodSeconds: 0, containers: [{container}]}}"
    template = f"{{metadata: {{labels: {{app: {name}}}}}, spec: {spec}}}"
    selector = f"{{matchLabels: {{app: {name}}}}}"
    inner = f"{{replicas: {replicas}, selector: {selector}, template: {template}}}"
    return f"{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: {name}}}, spec: {inner}}}\n"


def share(shoal: Shoal, part: float) -> str:
    """A part of the cpu of one node, whatever the machine has."""
    (node,) = [node for node in shoal.items("nodes") if node["metadata"]["name"] == NODES[0]]
    text: str = node["status"]["allocatable"]["cpu"]
    milli = int(text[:-1]) if text.endswith("m") else 1000 * int(text)
    return f"{int(milli * part)}m"


def cordon(shoal: Shoal, *names: str) -> None:
    for name in NODES:
        closed = "true" if name in names else "false"
        shoal.apply(f"{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, spec: {{unschedulable: {closed}}}}}")


def open_nodes(shoal: Shoal) -> None:
    cordon(shoal)


def where(shoal: Shoal) -> Counter[tuple[str, str]]:
    """How many pods of which app are on which node ("": none) now."""
    pods = [pod for pod in shoal.items("pods") if "deletionTimestamp" not in pod["metadata"]]
    return Counter((pod["metadata"]["labels"]["app"], pod["spec"].get("nodeName", "")) for pod in pods)


def foretold(plan: dict[str, Any]) -> Counter[tuple[str, str]]:
    return Counter((pod["owner"]["name"], pod["node"]) for pod in plan.get("pods", ()) if pod["fate"] == "created")


def until_bound(shoal: Shoal, total: int, bound: int) -> Counter[tuple[str, str]]:
    end = time.monotonic() + WAIT_SECONDS
    while True:
        found = where(shoal)
        placed = sum(count for (_, node), count in found.items() if node)
        if found.total() == total and placed == bound:
            return found
        assert time.monotonic() < end, found
        time.sleep(0.2)


def planned(shoal: Shoal, manifest: str, path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shoal("plan", "-f", shoal.file(manifest), "--out", path, "-o", "json"))
    return found


def test_pods_come_where_the_plan_said(shoal: Shoal) -> None:
    path = str(shoal.folder / "first.plan")
    before = shoal("get", "deploy,rs,pods", "-o", "json")
    little, much = share(shoal, 0.02), share(shoal, 0.07)
    plan = planned(shoal, deployment("small", 3, little) + "---\n" + deployment("large", 3, much), path)
    assert foretold(plan).total() == 6
    assert shoal("get", "deploy,rs,pods", "-o", "json") == before
    shoal("apply", "--plan", path, "--wait", "--timeout", "60s")
    assert where(shoal) == foretold(plan)

    less = share(shoal, 0.06)
    other = deployment("large", 4, less)
    text = shoal("plan", "-f", shoal.file(other), "--out", path)
    assert "spec.replicas changed (3 -> 4)" in text
    assert f"resources.requests[cpu] changed ({much} -> {less})" in text
    assert "3 pods to delete from" in text
    plan = planned(shoal, other, path)
    shoal("apply", "--plan", path, "--wait", "--timeout", "60s")
    now = where(shoal)
    assert {key: count for key, count in now.items() if key[0] == "large"} == foretold(plan)
    assert "large unchanged" in shoal("apply", "--plan", path)


def test_a_plan_that_does_not_hold_is_refused_and_changes_nothing(shoal: Shoal) -> None:
    path = str(shoal.folder / "second.plan")
    planned(shoal, deployment("web", 4, share(shoal, 0.02)), path)
    cordon(shoal, "node-2")
    assert shoal("apply", "--plan", path, code=1) == ""
    assert "the plan had 2 on node-1, 2 on node-2 created; now it is 4 on node-1 created" in shoal.err
    assert "Nothing was applied: plan again" in shoal.err
    assert shoal.items("deploy") == []
    open_nodes(shoal)
    shoal("apply", "--plan", path, "--wait", "--timeout", "60s")
    shoal("scale", "deploy/web", "--replicas", "1")
    planned(shoal, deployment("web", 2, share(shoal, 0.02)), path)
    shoal("scale", "deploy/web", "--replicas", "3")
    shoal("apply", "--plan", path, code=1)
    assert "deployment/web has been changed since" in shoal.err


def test_who_is_evicted_is_who_the_plan_named(shoal: Shoal) -> None:
    cpu = share(shoal, 0.4)
    shoal.apply(deployment("low", 4, cpu), "--wait", "--timeout", "60s")
    before = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in shoal.items("pods")}
    top = "{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: top}, value: 1000}\n"
    high = deployment("high", 1, cpu).replace(
        "{terminationGracePeriodSeconds", "{priorityClassName: top, terminationGracePeriodSeconds"
    )
    path = str(shoal.folder / "third.plan")
    try:
        plan = planned(shoal, top + "---\n" + high, path)
        named = {pod["key"]["name"]: pod["node"] for pod in plan["pods"] if pod["fate"] == "preempted"}
        assert len(named) == 1
        assert named.items() <= before.items()
        shoal("apply", "--plan", path, "--wait", "--timeout", "60s")
        until_bound(shoal, 5, 4)
        now = {pod["metadata"]["name"] for pod in shoal.items("pods")}
        assert before.keys() - now == named.keys()
        assert where(shoal)["high", next(iter(named.values()))] == 1
    finally:
        shoal("delete", "deploy/high", "pc/top", "--timeout", "60s")


def test_as_many_fit_as_were_counted(shoal: Shoal) -> None:
    cpu = share(shoal, 0.2)
    manifest = deployment("web", 1, cpu)
    counted = json.loads(shoal("fit", "-f", shoal.file(manifest), "-o", "json"))["results"][0]
    count = counted["count"]
    assert count > 2
    assert "Insufficient cpu" in counted["reason"]
    told = shoal("fit", "-f", shoal.file(manifest), "--limit", "2")
    assert "at least 2 more pods fit" in told
    shoal.apply(deployment("web", count + 1, cpu))
    found = until_bound(shoal, count + 1, count)
    assert {node: number for (_, node), number in found.items() if node} == {
        one["node"]: one["count"] for one in counted["nodes"]
    }
    assert "0 more pods fit" in shoal("fit", "-f", shoal.file(manifest))


def test_what_if_tells_and_changes_nothing(shoal: Shoal) -> None:
    shoal.apply(deployment("web", 2, share(shoal, 0.02)), "--wait", "--timeout", "60s")
    shoal.apply(
        "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: web}, spec: {minAvailable: 2, "
        "selector: {matchLabels: {app: web}}}}"
    )
    before = shoal("get", "nodes,deploy,pods", "-o", "name")
    failed = shoal("whatif", "--fail", "node-1")
    assert "1 pod to create on node-2 (1)" in failed
    assert "its node node-1 fails" in failed
    drained = shoal("whatif", "--drain", "node-1", "--detailed-exitcode", code=4)
    assert "PodDisruptionBudget web forbids its eviction: it needs 2 healthy pods and has 2" in drained
    more = shoal("whatif", "--add", "3", "LIKE", "node-1", "--scale", "web=5")
    assert "node-1-copy-3 (1)" in more
    shoal("whatif", "--fail", "node1", code=1)
    assert "did you mean 'node-1'" in shoal.err
    shoal("whatif", "--scale", "wbe=2", code=1)
    assert "not found" in shoal.err
    assert shoal("get", "nodes,deploy,pods", "-o", "name") == before


def crowd(shoal: Shoal, *manifests: str) -> None:
    """All of them on node-1."""
    cordon(shoal, "node-2")
    shoal.apply("---\n".join(manifests), "--wait", "--timeout", "60s")
    open_nodes(shoal)


def test_rebalancing_moves_pods_where_it_said_and_then_has_nothing_to_do(shoal: Shoal) -> None:
    cpu = share(shoal, 0.15)
    crowd(shoal, *(deployment(name, 1, cpu) for name in "abcd"))
    shoal.apply(
        "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: a}, spec: {minAvailable: 1, "
        "selector: {matchLabels: {app: a}}}}"
    )
    before = where(shoal)
    assert before == {(name, "node-1"): 1 for name in "abcd"}
    moves = json.loads(shoal("rebalance", "--dry-run", "-o", "json"))["moves"]
    assert where(shoal) == before
    assert [(move["owner"]["name"], move["from"], move["to"]) for move in moves] == [
        ("b", "node-1", "node-2"),
        ("c", "node-1", "node-2"),
    ]
    told = shoal("rebalance")
    assert "2/2 pod/c-" in told
    assert where(shoal) == {("a", "node-1"): 1, ("b", "node-2"): 1, ("c", "node-2"): 1, ("d", "node-1"): 1}
    assert "after 0 moves; no further move makes a full node less full" in shoal("rebalance")


def crowd_of_sets(shoal: Shoal) -> None:
    """Three ReplicaSets on node-1 that work, but whose next pods never become ready."""
    cpu = share(shoal, 0.2)

    def sets(delay: int) -> list[str]:
        probe = f', readinessProbe: {{initialDelaySeconds: {delay}, periodSeconds: 1, exec: {{command: ["true"]}}}}'
        return [deployment(name, 1, cpu, probe).replace("kind: Deployment", "kind: ReplicaSet") for name in "abc"]

    crowd(shoal, *sets(0))
    shoal.apply("---\n".join(sets(3600)))


def test_rebalancing_stops_when_a_replacement_does_not_become_ready(shoal: Shoal) -> None:
    crowd_of_sets(shoal)
    shoal("rebalance", "--timeout", "3s", code=1)
    assert "is not ready in time" in shoal.err
    assert "stopped in move 1 of 1; 0 were not begun" in shoal.err


def test_rebalancing_can_be_interrupted(shoal: Shoal) -> None:
    """What was begun goes on without it; nothing else is touched."""
    crowd_of_sets(shoal)
    before = {pod["metadata"]["uid"] for pod in shoal.items("pods")}
    command = [sys.executable, "-m", "shoal.deploy.cli.main", "rebalance"]
    running = subprocess.Popen(
        command,
        env=os.environ | {"SHOAL_CONFIG": str(shoal.config)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + WAIT_SECONDS
    while {pod["metadata"]["uid"] for pod in shoal.items("pods")} <= before:
        assert time.monotonic() < end and running.poll() is None, running.communicate()
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=WAIT_SECONDS)
    assert running.returncode == 130
    assert "Traceback" not in told
    found = until_bound(shoal, 3, 3)
    assert found == {("a", "node-2"): 1, ("b", "node-1"): 1, ("c", "node-1"): 1}
