"""Pods on a network, owners and namespaces: B69, B70, B76, B82, B84, B89, B90."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tests.behaviours.world import World, container, pod
from tests.devcluster import until

# Processes of the test's own in a pod's network: busybox has no UDP. Each answers, or prints the answer.
SERVE = """
import socket, threading
tcp = socket.create_server(("", 7000))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", 7001))
print("ready", flush=True)
def answer():
    while True:
        data, peer = udp.recvfrom(100)
        udp.sendto(b"udp " + data, peer)
threading.Thread(target=answer, daemon=True).start()
while True:
    peer, _ = tcp.accept()
    peer.sendall(b"tcp " + peer.recv(100))
    peer.close()
"""
ASK = """
import socket, sys
tcp = socket.create_connection((sys.argv[1], 7000), 30)
tcp.sendall(b"hi")
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(30)
udp.sendto(b"hi", (sys.argv[1], 7001))
print(tcp.recv(100).decode(), udp.recv(100).decode())
"""
SETTLED_SECONDS = 120.0


def on(node: str) -> dict[str, str]:
    return {"kubernetes.io/hostname": node}


def address(world: World, name: str) -> str:
    return str(world.ready(name)["status"]["podIP"])


def deployment(name: str, replicas: int, **labels: str) -> dict[str, Any]:
    template = pod(name, container("sleep 3600"))["spec"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": template},
        },
    }


def names(world: World, *arguments: str) -> set[str]:
    return set(world.shoal("get", *arguments, "-o", "name").split())


@contextlib.contextmanager
def serving(pid: int) -> Iterator[None]:
    """A server in the network of the process."""
    server = subprocess.Popen([*inside(pid), SERVE], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == "ready\n"
        yield
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def inside(pid: int) -> list[str]:
    return ["nsenter", "-t", str(pid), "-n", sys.executable, "-S", "-c"]


def asked(pid: int, target: str) -> str:
    done = subprocess.run([*inside(pid), ASK, target], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr


def process(world: World, name: str) -> int:
    """The pid of a running pod's container."""
    uid = world.ready(name)["metadata"]["uid"]
    return world.cluster.containers()[uid, "main"].process.pid


def test_b69_pods_reach_pods_on_their_node_and_on_another_by_tcp_and_udp(world: World) -> None:
    here, there = (node.name for node in world.cluster.plan.nodes)
    for name, node in (("server", here), ("near", here), ("far", there)):
        world.apply(pod(name, container("sleep 3600"), nodeSelector=on(node)))
    with serving(process(world, "server")):
        for client in ("near", "far"):
            assert asked(process(world, client), address(world, "server")) == "tcp hi udp hi"


def test_b70_a_node_reaches_its_pods(world: World) -> None:
    node = world.cluster.plan.nodes[0].name
    world.apply(pod("server", container("sleep 3600"), nodeSelector=on(node)))
    holder = world.cluster.part(f"holder-{node}")
    assert holder is not None
    with serving(process(world, "server")):
        assert asked(holder.pid, address(world, "server")) == "tcp hi udp hi"


def test_b76_and_nothing_else_fits_where_the_cpu_is_taken(world: World) -> None:
    node = world.cluster.objects("nodes")[0]
    name, cpu = node["metadata"]["name"], node["status"]["allocatable"]["cpu"]
    asking = container("sleep 3600", resources={"requests": {"cpu": cpu}})
    world.apply(pod("first", asking, nodeSelector=on(name)))
    world.phase("first", "Running")
    world.apply(pod("second", asking, nodeSelector=on(name)))
    pending = world.until("second", "told why it waits", lambda p: "insufficient cpu" in str(p["status"]).lower())
    assert pending["status"]["phase"] == "Pending"
    world.shoal("delete", "pod", "first", "--grace-period", "0")
    assert world.phase("second", "Running")["spec"]["nodeName"] == name


def test_b82_a_pending_pod_counts_the_nodes_that_refused_it_and_goes_on_trying(world: World) -> None:
    world.apply(pod("p", container("sleep 3600"), nodeSelector={"disk": "ssd"}))
    total = len(world.cluster.plan.nodes)
    waiting = world.until("p", "told why it waits", lambda p: f"0/{total} nodes" in str(p["status"]))
    [told] = [c for c in waiting["status"]["conditions"] if c["type"] == "PodScheduled"]
    assert (told["status"], told["reason"]) == ("False", "Unschedulable")
    assert f"{total} " in told["message"]
    node = world.cluster.objects("nodes")[0]
    metadata = {"name": node["metadata"]["name"], "labels": {**node["metadata"]["labels"], "disk": "ssd"}}
    world.cluster.shoal("apply", "-f", world.write({"apiVersion": "v1", "kind": "Node", "metadata": metadata}))
    assert world.phase("p", "Running")["spec"]["nodeName"] == node["metadata"]["name"]


def test_b84_a_replicaset_adopts_what_matches_and_releases_what_no_longer_does(world: World) -> None:
    orphan = pod("orphan", container("sleep 3600"), labels={"app": "web"})
    world.apply(orphan)
    world.phase("orphan", "Running")
    world.apply(deployment("web", 2, app="web"))
    template = {"metadata": {"labels": {"app": "lone"}}, "spec": pod("x", container("sleep 3600"))["spec"]}
    lone = {"replicas": 1, "selector": {"matchLabels": {"app": "lone"}}, "template": template}
    stray = pod("stray", container("sleep 3600"), labels={"app": "lone"})
    world.apply(stray)
    world.phase("stray", "Running")
    world.apply({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "lone"}, "spec": lone})
    world.until("stray", "adopted", lambda p: p["metadata"].get("ownerReferences"))
    assert names(world, "pods", "-l", "app=lone") == {"pod/stray"}, "the one that was there is enough"
    stray["metadata"]["labels"] = {"app": "free"}
    world.apply(stray)
    world.until("stray", "released", lambda p: not p["metadata"].get("ownerReferences"))
    until(lambda: "" if len(names(world, "pods", "-l", "app=lone")) == 1 else "no replacement", SETTLED_SECONDS)


def test_b89_dependents_go_with_their_owner_or_stay_as_orphans(world: World) -> None:
    for name in ("web", "kept"):
        world.apply(deployment(name, 2, app=name))
        until(lambda: "" if len(names(world, "pods", "-l", f"app={name}")) == 2 else "no pods", SETTLED_SECONDS)  # noqa: B023
    kept = names(world, "pods", "-l", "app=kept")
    world.shoal("delete", "deployment", "kept", "--cascade", "orphan")
    world.shoal("delete", "deployment", "web", "--cascade", "foreground")
    assert names(world, "pods,rs", "-l", "app=web") == set(), "foreground is over when all dependents have gone"
    assert names(world, "pods", "-l", "app=kept") == kept


def test_b90_a_namespace_takes_everything_in_it_along(world: World) -> None:
    other = World(world.cluster, world.folder)
    other.apply(deployment("web", 1, app="web"), pod("p", container("sleep 3600")))
    other.phase("p", "Running")
    uids = {each["metadata"]["uid"] for each in world.cluster.objects("pods", "-n", other.namespace)}
    world.cluster.shoal("delete", "namespace", other.namespace)
    assert not uids & {c.pod for c in world.cluster.containers().values()}, "their processes have ended"
    gone = world.cluster.attempt("get", "pods", "-n", other.namespace, "-o", "name")
    assert gone.stdout == ""
