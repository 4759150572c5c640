"""Claims and volumes: bound where the pod is placed, kept, protected, given back; and pods that wait say why (B82)."""

from __future__ import annotations

import json
from typing import Any

from tests.behaviours.world import POD_SECONDS, Object, World, container, pod, secret
from tests.devcluster import until


def claim(name: str, size: str = "10Mi", **spec: Any) -> Object:
    body = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, **spec}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": body}


def hand_made(name: str, path: str, storage_class: str = "") -> Object:
    spec = {
        "capacity": {"storage": "10Mi"},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": storage_class,
        "hostPath": {"path": path, "type": "DirectoryOrCreate"},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}


def with_claim(name: str, script: str, claim_name: str = "data", **spec: Any) -> Object:
    mounts = [{"name": "v", "mountPath": "/data"}]
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim_name}}]
    return pod(name, container(script, volumeMounts=mounts), volumes=volumes, **spec)


def phase(world: World, name: str = "data") -> str:
    return str(world.get("pvc", name).get("status", {}).get("phase", ""))


def reason(world: World, name: str) -> str:
    """Why a pod is not placed."""
    conditions = world.pod(name).get("status", {}).get("conditions", [])
    return next((str(c.get("message", "")) for c in conditions if c["type"] == "PodScheduled"), "")


def waits_for(world: World, name: str, words: str) -> None:
    until(lambda: "" if words in reason(world, name) else f"pod {name} says {reason(world, name)!r}", POD_SECONDS)


def volumes(world: World) -> list[Object]:
    """The volumes of this namespace's claims."""
    found = json.loads(world.cluster.shoal("get", "pv", "-o", "json"))["items"]
    return [v for v in found if v["spec"].get("claimRef", {}).get("namespace") == world.namespace]


def test_a_volume_is_made_where_the_pod_is_placed_and_what_is_on_it_stays(world: World) -> None:
    world.apply(claim("data"))
    assert world.get("pvc", "data")["spec"]["storageClassName"] == "local"
    until(lambda: "" if phase(world) == "Pending" else f"phase {phase(world)!r}", POD_SECONDS)
    world.output(with_claim("writer", "echo kept > /data/file"))
    first = world.pod("writer")["spec"]["nodeName"]
    assert phase(world) == "Bound"
    world.shoal("delete", "pod", "writer")
    for number in range(3):  # the other node has as much room
        assert world.output(with_claim(f"reader{number}", "cat /data/file")) == "kept\n"
        assert world.pod(f"reader{number}")["spec"]["nodeName"] == first
    [made] = volumes(world)
    assert made["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] == [first]


def test_b82_a_pod_waits_for_its_claim_and_says_so(world: World) -> None:
    world.apply(with_claim("early", "sleep 60"))
    waits_for(world, "early", "claim data does not exist")
    world.apply(claim("data", storageClassName=""))
    waits_for(world, "early", "claim data is not bound yet")
    name = f"made-{world.namespace}"
    world.apply(hand_made(name, f"/tmp/{name}"))
    try:
        world.ready("early")
        assert world.get("pvc", "data")["spec"]["volumeName"] == name
    finally:
        world.shoal("delete", "pod", "early")
        world.shoal("delete", "pvc", "data")
        world.cluster.shoal("delete", "pv", name)


def test_b82_a_pod_that_is_sent_away_from_its_volume_says_so(world: World) -> None:
    world.apply(claim("data"))
    world.output(with_claim("first", "true"))
    here = world.pod("first")["spec"]["nodeName"]
    nodes = [n["metadata"]["name"] for n in json.loads(world.cluster.shoal("get", "nodes", "-o", "json"))["items"]]
    [other] = [name for name in nodes if name != here]
    world.apply(with_claim("away", "true", nodeSelector={"kubernetes.io/hostname": other}))
    waits_for(world, "away", "1 node(s) did not have the volume of a claim")


def test_a_claim_in_use_outlives_its_deletion_until_the_pod_has_ended(world: World) -> None:
    world.apply(claim("data"), with_claim("user", "trap 'exit 0' TERM; while :; do sleep 0.1; done"))
    world.ready("user")
    world.shoal("delete", "pvc", "data", "--wait=false")
    assert world.get("pvc", "data")["metadata"]["deletionTimestamp"]
    world.exec("user", "sh", "-c", "echo still > /data/file")
    world.apply(with_claim("late", "true"))
    waits_for(world, "late", "claim data is being deleted")
    world.shoal("delete", "pod", "user")
    until(lambda: "" if world.attempt("get", "pvc", "data").returncode else "the claim is still there", POD_SECONDS)


def test_with_the_claim_goes_the_volume_and_its_folder(world: World) -> None:
    world.apply(claim("data"))
    world.output(with_claim("writer", "echo secret > /data/file"))
    [made] = volumes(world)
    folders = list(world.cluster.data.rglob(made["metadata"]["name"]))
    assert [(folder / "file").read_text() for folder in folders] == ["secret\n"]
    world.shoal("delete", "pvc", "data")
    until(lambda: "the volume is still there" if volumes(world) else "", POD_SECONDS)
    assert not [folder for folder in folders if folder.exists()]


def test_two_pods_of_one_new_claim_meet_on_its_node(world: World) -> None:
    world.apply(claim("data"), *(with_claim(f"p{n}", "hostname >> /data/all; sleep 60") for n in range(4)))
    nodes = {world.ready(f"p{n}")["spec"]["nodeName"] for n in range(4)}
    assert len(nodes) == 1
    until(lambda: "" if len(world.exec("p0", "cat", "/data/all").split()) == 4 else "not all have written", POD_SECONDS)


def test_b54_a_secret_that_comes_late_reaches_the_pod_that_waits_for_it(world: World) -> None:
    value = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "late", "key": "token"}}}
    world.apply(pod("p", container("echo $TOKEN", env=[value]), restartPolicy="Never"))
    world.waiting("p", "CreateContainerConfigError")
    world.apply(secret("late", {"token": "arrived"}))
    world.phase("p", "Succeeded")
    assert world.logs("p") == "arrived\n"
