"""What `make test-kill` takes for unchanged, and for ready."""

from __future__ import annotations

from typing import Any

from tests.kill import Fact, differences, unready

BEFORE = {"etcd": Fact(10, 100), "container a of x": Fact(20, 200, 0), "container b of y": Fact(30, 300, 2)}


def item(name: str, status: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": spec, "status": {"conditions": [{"type": "Ready", "status": status}]}}


def test_a_killed_part_is_another_process_and_nothing_else_changed() -> None:
    assert differences(BEFORE, {**BEFORE, "etcd": Fact(11, 110)}, "etcd") == []


def test_a_pid_that_was_used_again_is_another_process() -> None:
    assert differences(BEFORE, {**BEFORE, "etcd": Fact(10, 900)}, "etcd") == []
    [wrong] = differences(BEFORE, {**BEFORE, "etcd": Fact(11, 1), "container b of y": Fact(30, 999, 2)}, "etcd")
    assert wrong.startswith("container b of y changed")


def test_a_victim_that_was_not_killed_is_told() -> None:
    assert differences(BEFORE, BEFORE, "etcd") == ["etcd is still the process that was killed (pid 10)"]


def test_a_killed_container_has_exactly_one_restart_more() -> None:
    victim = "container b of y"
    assert differences(BEFORE, {**BEFORE, victim: Fact(31, 310, 3)}, victim) == []
    for count in (2, 4):
        wrong = differences(BEFORE, {**BEFORE, victim: Fact(31, 310, count)}, victim)
        assert wrong == [f"{victim} has restart count {count}, not 3"]


def test_another_containers_restart_count_alone_is_told() -> None:
    after = {**BEFORE, "etcd": Fact(11, 110), "container a of x": Fact(20, 200, 1)}
    [wrong] = differences(BEFORE, after, "etcd")
    assert "container a of x" in wrong
    assert "restarts=1" in wrong


def test_missing_and_new_processes_are_told() -> None:
    after = {"etcd": Fact(11, 110), "container a of x": Fact(20, 200, 0), "container c of z": Fact(40, 400, 0)}
    assert differences(BEFORE, after, "etcd") == ["container c of z is new", "container b of y is missing"]


def test_unready_names_nodes_pods_and_short_deployments() -> None:
    short = {"metadata": {"name": "web"}, "spec": {"replicas": 3}, "status": {"readyReplicas": 2}}
    whole = {"metadata": {"name": "tools"}, "spec": {"replicas": 0}, "status": {}}
    found = unready([item("n1", "True"), item("n2", "Unknown")], [short, whole], [item("p1", "False")])
    assert found == ["node n2", "pod p1", "deployment web (2/3)"]
