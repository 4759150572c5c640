"""Init containers and sidecars: B21 to B24."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.behaviours.world import POD_SECONDS, Object, World, container, pod
from tests.devcluster import until

SHARED: Object = {"volumes": [{"name": "shared", "emptyDir": {}}]}
MOUNT = [{"name": "shared", "mountPath": "/shared"}]


def step(name: str, script: str, **fields: Any) -> Object:
    """A container that shares a folder with the others."""
    return container(script, name, volumeMounts=MOUNT, **fields)


def note(name: str) -> Object:
    """It notes in the shared folder that it has run."""
    return step(name, f"echo {name} >> /shared/order; sleep 0.2")


def test_b21_init_containers_run_in_order_before_the_app_under_never(world: World) -> None:
    made = pod("p", step("main", "cat /shared/order"), initContainers=[note("one"), note("two")], **SHARED)
    assert world.output(made).split() == ["one", "two"]
    status = world.pod("p")["status"]
    first, second = (one["state"]["terminated"] for one in status["initContainerStatuses"])
    assert first["exitCode"] == second["exitCode"] == 0 and first["finishedAt"] <= second["startedAt"]
    assert {c["type"]: c["status"] for c in status["conditions"]}["Initialized"] == "True"


def test_b22_init_containers_run_in_order_before_the_app_under_always(world: World) -> None:
    world.apply(
        pod(
            "p",
            step("main", "exec sleep 600"),
            initContainers=[note("one"), note("two")],
            restartPolicy="Always",
            **SHARED,
        )
    )
    world.ready("p")
    assert world.exec("p", "cat", "/shared/order", container="main").split() == ["one", "two"]
    assert [one["restartCount"] for one in world.pod("p")["status"]["initContainerStatuses"]] == [0, 0]


def test_b23_an_init_container_that_fails_under_never_fails_the_pod(world: World) -> None:
    made = pod(
        "p",
        container("echo the app ran"),
        initContainers=[container("exit 3", "one"), container("true", "two")],
        restartPolicy="Never",
    )
    status = world.run(made)["status"]
    assert status["phase"] == "Failed"
    assert status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 3
    for later in (status["initContainerStatuses"][1], status["containerStatuses"][0]):
        assert later["state"]["waiting"]["reason"] == "PodInitializing" and "containerID" not in later
    assert "Init:Error" in world.shoal("get", "pods")


def test_b24_an_init_container_that_fails_under_always_is_tried_again_and_the_app_never_starts(world: World) -> None:
    world.apply(pod("p", container("echo the app ran"), initContainers=[container("exit 1", "one")]))
    message = world.waiting("p", "CrashLoopBackOff", "one")
    assert "back-off 10s" in message
    status = world.status("p", "one")
    assert status["restartCount"] >= 1 and status["lastState"]["terminated"]["exitCode"] == 1
    assert world.pod("p")["status"]["phase"] == "Pending"
    assert world.status("p")["state"]["waiting"]["reason"] == "PodInitializing"
    until(lambda: "" if "Init:CrashLoopBackOff" in (table := world.shoal("get", "pods")) else table, POD_SECONDS)


def test_b21_a_sidecar_runs_beside_the_app_and_ends_after_it(world: World) -> None:
    script = (
        "trap 'echo sidecar ended >> /shared/order; exit 0' TERM; echo up >> /shared/order; while :; do sleep 0.1; done"
    )
    sidecar = step("proxy", script, restartPolicy="Always")
    app = step("main", "until grep -q up /shared/order; do sleep 0.1; done; echo app ended >> /shared/order")
    made = pod("p", app, initContainers=[sidecar], restartPolicy="Never", terminationGracePeriodSeconds=60, **SHARED)
    status = world.run(made)["status"]
    assert status["phase"] == "Succeeded"
    (ended,) = (one["state"]["terminated"] for one in status["initContainerStatuses"])
    assert ended["exitCode"] == 0
    assert ended["finishedAt"] >= status["containerStatuses"][0]["state"]["terminated"]["finishedAt"]


def test_b22_a_sidecar_that_dies_is_started_again_and_the_app_goes_on(world: World) -> None:
    sidecar = container("exec sleep 600", "proxy", restartPolicy="Always")
    world.apply(pod("p", container("exec sleep 600"), initContainers=[sidecar], restartPolicy="Never"))
    uid = world.ready("p")["metadata"]["uid"]
    before = world.cluster.containers()
    os.kill(before[uid, "proxy"].process.pid, signal.SIGKILL)
    world.until("p", "with a new sidecar", lambda _: world.status("p", "proxy")["restartCount"] == 1)
    found = world.ready("p")
    assert found["status"]["phase"] == "Running" and world.status("p")["restartCount"] == 0
    after = world.cluster.containers()
    assert after[uid, "main"] == before[uid, "main"] and after[uid, "proxy"] != before[uid, "proxy"]
