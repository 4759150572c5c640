"""Nodes that run short of memory, disk or process ids: who has to go, who stays, and how it ends (B97, B98)."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.deploy.devcluster.plan import DATA_ROOT
from tests import images
from tests.behaviours.world import POD_SECONDS, Object, World, busybox_image, container, deaths, pod, why
from tests.devcluster import Cluster, until
from tests.etcd import binary
from tests.leaks import nothing_left

NODE = "node-1"
MIB = 1 << 20
SETTINGS = {
    "eviction": {
        "hard": {"nodefs.available": "24Mi", "imagefs.available": "24Mi", "pid.available": "60"},
        "transition_period": "15s",
    },
    "image_gc": {"high": 100, "low": 99},
}
TAINT = {"MemoryPressure": "memory-pressure", "DiskPressure": "disk-pressure", "PIDPressure": "pid-pressure"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes so small that one pod can fill them; the machine itself is short of nothing."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces, cgroups and links")
    folder = tmp_path_factory.mktemp("pressure")
    name = f"press{os.getpid()}"
    made = Cluster(name, DATA_ROOT / name, {"SHOAL_CONFIG": str(folder / "config")})
    settings = folder / "agent.yaml"
    settings.write_text(yaml.safe_dump(SETTINGS))
    small = ["--node-memory", "512Mi", "--node-disk", "192Mi", "--node-pids", "400"]
    with nothing_left():
        try:
            made.up("--nodes", "2", "--etcd", binary(), *small, "--agent-settings", str(settings))
            made.shoal("image", "load", str(images.write(folder, busybox_image(), "busy.tar")))
            yield made
        finally:
            made.down()


def here(name: str, *containers: Object, **spec: Any) -> Object:
    """A pod of the one node that is brought into need; it is not started again."""
    selector = {"kubernetes.io/hostname": NODE}
    return pod(name, *containers, nodeSelector=selector, restartPolicy="Never", **spec)


def steady(name: str) -> Object:
    """Guaranteed."""
    amounts = {"cpu": "50m", "memory": "32Mi"}
    return here(name, container("sleep 600", resources={"requests": amounts, "limits": amounts}))


def node(world: World) -> Object:
    found: Object = json.loads(world.cluster.shoal("get", "node", NODE, "-o", "json"))
    return found


def pressed(world: World, kind: str) -> Object:
    """The node's condition when it is True, else {}."""
    conditions = node(world)["status"]["conditions"]
    return next((one for one in conditions if one["type"] == kind and one["status"] == "True"), {})


def evicted(world: World, name: str, kind: str) -> tuple[str, str]:
    """Waits until the pod is evicted and the node says why; (the pod's message, the condition's)."""
    found = world.phase(name, "Failed")["status"]
    assert found["reason"] == "Evicted", found
    condition: Object = {}

    def problem() -> str:
        condition.update(pressed(world, kind))
        return "" if condition else f"no {kind}: {node(world)['status']['conditions']}"

    until(problem, POD_SECONDS)
    return found["message"], str(condition["message"])


def tells_why(world: World, name: str, message: str, *containers: str) -> None:
    """Each container that ran has a certificate with the node's numbers, which `shoal why` tells: also of a pod that
    is gone."""
    found = deaths(world, name, len(containers))
    assert {one["container"]: one["reason"] for one in found} == dict.fromkeys(containers, "Evicted")
    for one in found:
        assert one["node"] == NODE and one["message"] == message, one
        assert one["cause"].startswith(f"evicted: {message}; ") and "SIGKILL" in one["cause"], one
    numbers = message.partition(". The pod")[0].partition(" Container")[0]
    assert numbers in why(world, name)
    world.shoal("delete", "pod", name, "--wait")
    gone = why(world, name)
    assert f"pod/{name} is gone" in gone and numbers in gone, gone


def keeps_away(world: World, kind: str) -> None:
    """A new pod waits until the pressure is over, and then runs here."""
    world.apply(here("newcomer", container("sleep 600")))
    seen = [False]

    def problem() -> str:
        found = node(world)
        tainted = any(taint["key"].endswith(TAINT[kind]) for taint in found["spec"].get("taints", []))
        seen[0] = seen[0] or tainted
        return f"{kind} is still there" if tainted or pressed(world, kind) else ""

    until(problem, POD_SECONDS)
    assert seen[0], "the node was never tainted"
    world.ready("newcomer")


def oom_kills(world: World) -> int:
    """Of all pods of the node, in the kernel's words."""
    folders = Path("/sys/fs/cgroup/memory", world.cluster.plan.cgroup, NODE, "pods").glob("**/memory.oom_control")
    kills = 0
    for folder in folders:
        with contextlib.suppress(OSError):  # its container has gone meanwhile
            lines = folder.read_text().splitlines()
            kills += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return kills


def test_b97_the_pod_that_eats_the_memory_goes_and_the_guaranteed_one_stays(world: World) -> None:
    agent = world.cluster.part(f"agent-{NODE}")
    world.apply(steady("steady"))
    world.ready("steady")
    before = oom_kills(world)
    pause = "n < 120 ? 0.02 : 0.2"  # the more it has the slower it eats: the agent looks now and then
    eater = 'BEGIN { x = sprintf("%1000000s", "x"); for (;;) { a[n++] = x x; system("sleep " (' + pause + ")) } }"
    world.apply(here("hog", container(["awk", eater]), container("exec sleep 600", "aside")))
    message, condition = evicted(world, "hog", "MemoryPressure")
    assert message.startswith("The node was low on resource: memory. Threshold quantity: 100Mi, available: ")
    assert "Container main was using" in message and "request is 0, has larger consumption of memory" in message
    assert "emory.available is " in condition and "less than 100Mi" in condition
    assert oom_kills(world) == before, "the kernel was first"
    assert "Evicted" in world.shoal("events") and "low on resource: memory" in world.shoal("events")
    keeps_away(world, "MemoryPressure")
    tells_why(world, "hog", message, "main", "aside")
    assert world.pod("steady")["status"]["phase"] == "Running"
    assert world.status("steady")["restartCount"] == 0
    assert world.cluster.part(f"agent-{NODE}") == agent


def test_b97_the_pod_that_fills_the_disk_goes_and_the_disk_is_free_again(world: World) -> None:
    agent = world.cluster.part(f"agent-{NODE}")
    world.apply(steady("steady"))
    world.ready("steady")
    mounts = [{"name": "v", "mountPath": "/v"}]
    fill = "while dd if=/dev/zero of=/v/$((n+=1)) bs=1M count=4 2>/dev/null; do sleep 0.05; done; sleep 600"
    world.apply(here("writer", container(fill, volumeMounts=mounts), volumes=[{"name": "v", "emptyDir": {}}]))
    message, condition = evicted(world, "writer", "DiskPressure")
    assert message.startswith("The node was low on resource: ephemeral-storage. Threshold quantity: 24Mi, available: ")
    assert "Its volumes hold " in message and "less than 24Mi" in condition
    keeps_away(world, "DiskPressure")
    tells_why(world, "writer", message, "main")
    assert world.pod("steady")["status"]["phase"] == "Running"
    assert world.cluster.part(f"agent-{NODE}") == agent


def test_b97_the_pod_with_the_most_processes_goes_when_none_are_left(world: World) -> None:
    agent = world.cluster.part(f"agent-{NODE}")
    world.apply(steady("steady"))
    world.ready("steady")
    world.apply(here("forks", container("n=0; while :; do n=$((n+1)); sleep 600 & [ $n -lt 280 ] || sleep 0.2; done")))
    message, condition = evicted(world, "forks", "PIDPressure")
    assert message.startswith("The node was low on resource: pids. Threshold quantity: 60, available: ")
    assert "processes" in message and "less than 60" in condition
    keeps_away(world, "PIDPressure")
    tells_why(world, "forks", message, "main")
    assert world.pod("steady")["status"]["phase"] == "Running"
    assert world.cluster.part(f"agent-{NODE}") == agent


def test_b98_a_full_disk_costs_unused_images_and_never_used_ones(world: World, tmp_path: Path) -> None:
    filler = random.Random(98).randbytes(30 * MIB)
    layer = images.layer(images.member("filler", filler))
    big = images.oci_archive(images.image(layer, names=["docker.io/library/unused:1"]))
    world.cluster.shoal("image", "load", str(images.write(tmp_path, big, "big.tar")))
    world.apply(steady("steady"))
    world.ready("steady")

    def listed() -> set[str]:
        return {name for image in node(world)["status"]["images"] for name in image["names"]}

    until(lambda: "" if "docker.io/library/unused:1" in listed() else f"not loaded: {listed()}", POD_SECONDS)
    mounts = [{"name": "v", "mountPath": "/v"}]
    fill = (
        "while sleep 0.05; do [ $(df -m /v | tail -n 1 | awk '{print $4}') -lt 18 ] ||"
        " dd if=/dev/zero of=/v/$((n+=1)) bs=1M count=2 2>/dev/null; done"
    )
    world.apply(here("writer", container(fill, volumeMounts=mounts), volumes=[{"name": "v", "emptyDir": {}}]))
    evicted(world, "writer", "DiskPressure")  # it filled again whatever became free, until there was nothing left
    until(lambda: "it is listed" if "docker.io/library/unused:1" in listed() else "", POD_SECONDS)
    assert "docker.io/library/busy:1" in listed()
    world.apply(steady("second"))
    world.ready("second")  # from the image that is still there: there is no registry
