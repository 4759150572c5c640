"""A pod's life seen from outside: B39 to B41, B43 and B44."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.behaviours.world import POD_SECONDS, Object, World, container, pod
from tests.devcluster import until


def test_b39_a_deleted_pod_gets_term_then_its_grace_then_kill_and_watchers_see_each_step(world: World) -> None:
    script = "trap 'echo asked to end' TERM; echo up; while :; do sleep 0.1; done"
    with following(world, "get", "pods", "-w") as table:
        world.apply(pod("p", container(script), terminationGracePeriodSeconds=2))
        uid = world.ready("p")["metadata"]["uid"]
        with following(world, "logs", "-f", "p") as log:
            until(lambda: "" if "up" in log.read_text() else "it has set no trap", POD_SECONDS)
            begun = time.monotonic()
            world.shoal("delete", "pod", "p", "--wait")
            assert time.monotonic() - begun >= 2, "KILL comes after the grace only"
            until(lambda: "" if "asked to end" in log.read_text() else log.read_text(), POD_SECONDS)
        words = ("Pending", "Running", "Terminating")
        until(lambda: " ".join(word for word in words if word not in table.read_text()), POD_SECONDS)
    assert (uid, "main") not in world.cluster.containers()


def test_b39_a_container_that_heeds_term_ends_at_once_with_its_own_code(world: World) -> None:
    """A finalizer keeps the record until its last status has been seen."""
    script = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done"
    made = pod("p", container(script), terminationGracePeriodSeconds=3600)
    made["metadata"]["finalizers"] = ["example.com/hold"]
    world.apply(made)
    world.said("p", "up")
    world.shoal("delete", "pod", "p", "--wait=false")
    world.until("p", "ended", lambda _: "terminated" in world.status("p")["state"])
    assert world.status("p")["state"]["terminated"]["exitCode"] == 7
    del made["metadata"]["finalizers"]
    world.apply(made)
    until(lambda: "" if world.attempt("get", "pod", "p").returncode else "it is still there", POD_SECONDS)


@contextmanager
def following(world: World, verb: str, *arguments: str) -> Iterator[Path]:
    """A command that goes on until the end of the block, and the file that its output goes to."""
    path = world.folder / f"{verb}.out"
    command = [sys.executable, "-m", "shoal.deploy.cli.main", verb, "--context", world.cluster.name]
    environment = {**os.environ, **world.cluster.environment}
    with open(path, "w") as out:
        process = subprocess.Popen([*command, "-n", world.namespace, *arguments], stdout=out, env=environment)
    try:
        yield path
    finally:
        process.terminate()
        process.wait(POD_SECONDS)


def test_b40_a_pod_ends_when_its_deadline_has_passed(world: World) -> None:
    found = world.run(pod("p", container("exec sleep 600"), activeDeadlineSeconds=5, restartPolicy="Always"))
    status = found["status"]
    assert (status["phase"], status["reason"]) == ("Failed", "DeadlineExceeded")
    assert status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137


def test_b41_host_and_pod_addresses_are_in_the_status(world: World) -> None:
    world.apply(pod("p", container("exec sleep 600")))
    status = world.ready("p")["status"]
    seen = world.exec("p", "hostname", "-i").strip()
    assert status["podIP"] == seen and status["podIPs"] == [{"ip": seen}]
    node = world.get("node", world.pod("p")["spec"]["nodeName"])
    address = next(one["address"] for one in node["status"]["addresses"] if one["type"] == "InternalIP")
    assert status["hostIP"] == address and status["hostIPs"] == [{"ip": address}]
    assert status["startTime"]


@pytest.mark.parametrize(
    ("resources", "qos"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "10m"}}, "Burstable"),
        ({"limits": {"cpu": "100m", "memory": "32Mi"}}, "Guaranteed"),
    ],
)
def test_b43_the_class_of_service_follows_from_requests_and_limits(world: World, resources: Object, qos: str) -> None:
    scores = {
        "BestEffort": range(1000, 1001),
        "Burstable": range(2, 1000),
        "Guaranteed": (-997, 0),
    }  # 0: not allowed less
    out = world.output(pod("p", container("cat /proc/self/oom_score_adj", resources=resources))).strip()
    assert world.pod("p")["status"]["qosClass"] == qos
    assert int(out) in scores[qos]


def test_b44_the_status_says_which_generation_it_is_of(world: World) -> None:
    world.apply(pod("p", container("exec sleep 600")))
    found = world.ready("p")
    assert found["metadata"]["generation"] == found["status"]["observedGeneration"] == 1
    changed = pod("p", container("exec sleep 600"), activeDeadlineSeconds=600)
    world.apply(changed)
    world.until("p", "of its second generation", lambda one: one["status"]["observedGeneration"] == 2)
    assert world.status("p")["restartCount"] == 0
