"""Ports of a node that lead to its pods, on a real cluster: B71, and what is left when agents and pods have gone."""

from __future__ import annotations

import os
import signal
import subprocess

from tests.behaviours.test_cluster import asked, on, process, serving
from tests.behaviours.world import Object, World, container, pod
from tests.devcluster import until

SECONDS = 60.0
# Those that the server of test_cluster listens at.
PORTS = [
    {"containerPort": 7000, "hostPort": 7000},
    {"containerPort": 7001, "hostPort": 7001, "protocol": "UDP"},
]
ANSWER = "tcp hi udp hi"


def server(name: str, node: str = "") -> Object:
    return pod(name, container("sleep 3600", ports=PORTS), **({"nodeSelector": on(node)} if node else {}))


def holder(world: World, node: str) -> int:
    """A process in the node's own network."""
    found = world.cluster.part(f"holder-{node}")
    assert found is not None
    return found.pid


def rules(world: World, node: str) -> str:
    argv = ["nsenter", "-t", str(holder(world, node)), "-n", "nft", "list", "table", "ip", "shoal"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def kill_agent(world: World, node: str) -> None:
    """The keeper starts it again."""
    agent = world.cluster.part(f"agent-{node}")
    assert agent is not None
    os.kill(agent.pid, signal.SIGKILL)
    until(lambda: "" if world.cluster.part(f"agent-{node}") not in (None, agent) else "no new agent", SECONDS)


def test_a_host_port_leads_to_its_pod_and_goes_with_it(world: World) -> None:
    world.label(pod_security="privileged")
    here, there = world.cluster.plan.nodes
    world.apply(server("server", here.name))
    for name, node in (("near", here), ("far", there)):
        world.apply(pod(name, container("sleep 3600"), nodeSelector=on(node.name)))
    everybody = [process(world, name) for name in ("near", "far", "server")]
    everybody += [holder(world, node.name) for node in (here, there)]
    with serving(process(world, "server")):
        for client in everybody:
            assert asked(client, here.address) == ANSWER
        assert asked(holder(world, here.name), "127.0.0.1") == ANSWER
        kill_agent(world, here.name)
        assert asked(everybody[1], here.address) == ANSWER, "an agent's death must cut nobody off"
    assert "7000" in rules(world, here.name)
    world.shoal("delete", "pod", "server", "--wait=false")
    kill_agent(world, here.name)
    until(lambda: rules(world, here.name) if "elements" in rules(world, here.name) else "", SECONDS)
    assert "ConnectionRefusedError" in asked(everybody[1], here.address)


def test_b71_a_taken_host_port_keeps_a_pod_off_the_node(world: World) -> None:
    """By port, protocol and address: another of these, and both fit."""
    world.label(pod_security="privileged")
    here, there = (node.name for node in world.cluster.plan.nodes)
    address = world.cluster.plan.nodes[0].address
    world.apply(server("first", here))
    world.phase("first", "Running")
    world.apply(server("second", here))
    waiting = world.until("second", "told why it waits", lambda p: "free ports" in str(p["status"]["conditions"]))
    assert waiting["status"]["phase"] == "Pending"
    world.apply(server("elsewhere"))
    assert world.phase("elsewhere", "Running")["spec"]["nodeName"] == there
    one = {"containerPort": 7000, "hostPort": 7000, "protocol": "UDP", "hostIP": address}
    world.apply(pod("beside", container("sleep 3600", ports=[one]), nodeSelector=on(here)))
    world.phase("beside", "Running")
    world.shoal("delete", "pod", "first", "--grace-period", "0")
    assert world.phase("second", "Running")["spec"]["nodeName"] == here


def test_a_pod_that_was_sent_to_a_taken_port_says_so_and_waits(world: World) -> None:
    """spec.nodeName goes past the scheduler: the node itself refuses."""
    world.label(pod_security="privileged")
    here = world.cluster.plan.nodes[0].name
    world.apply(server("first", here))
    world.phase("first", "Running")
    second = server("second")
    second["spec"]["nodeName"] = here
    world.apply(second)
    told = world.until("second", "refused", lambda p: "leads to pod" in str(p["status"]["containerStatuses"]))
    assert "port 7000/tcp of this node leads to pod" in str(told["status"]["containerStatuses"])
    world.shoal("delete", "pod", "first", "--grace-period", "0")
    world.phase("second", "Running")


def test_baseline_refuses_host_ports(world: World) -> None:
    assert "spec.containers[0].ports[0].hostPort: is not allowed" in world.refused(server("server"))
