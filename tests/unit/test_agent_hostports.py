"""Host ports on a node: which a pod asks for, who holds them, and what happens to the second who wants one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.agent.network.hostports import HostPorts
from shoal.agent.network.port import HostPort, NetworkFault, PortTaken
from shoal.agent.pods.hostports import host_ports
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s
from tests.agent_world import World, scenario, until
from tests.agents import UID, deleted, make_pod

OTHER = UID[:-1] + "f"
WEB = HostPort("tcp", "", 8080, 80)


def asking(uid: str, number: int = 8080, address: str = "") -> o.Pod:
    pod = make_pod("web" if uid == UID else "other", uid=uid)
    pod.spec.containers[0].ports.add(containerPort=80, hostPort=number, hostIP=address, protocol="TCP")
    return pod


def test_the_ports_of_a_spec() -> None:
    spec = asking(UID, address="0.0.0.0").spec
    spec.containers[0].ports.add(containerPort=53, hostPort=53, hostIP="10.0.0.1", protocol="UDP")
    spec.containers[0].ports.add(containerPort=90)
    for name, policy in (("once", ""), ("sidecar", "Always")):
        init = spec.initContainers.add(name=name)
        init.ports.add(containerPort=81, hostPort=len(name), protocol="SCTP")
        if policy:
            init.restartPolicy = policy
    assert host_ports(spec) == (HostPort("sctp", "", 7, 81), WEB, HostPort("udp", "10.0.0.1", 53, 53))
    spec.hostNetwork = True
    assert host_ports(spec) == ()


@scenario
async def test_the_second_pod_waits_until_the_first_has_gone(world: World) -> None:
    def refused(report: s.PodReport) -> bool:
        return "port 8080/tcp of this node leads to pod" in report.status.containerStatuses[0].state.waiting.message

    def runs(report: s.PodReport) -> bool:
        return report.status.phase == "Running"

    async with world.running():
        pipe = await world.master.welcomed(-1, asking(UID))
        await world.reports(pipe, UID, runs)
        assert world.network.ports == {UID: (WEB,)}
        pipe.put(world.master.change(asking(OTHER)))
        report = await world.reports(pipe, OTHER, refused)
        assert report.status.phase == "Pending" and UID in report.status.containerStatuses[0].state.waiting.message
        pipe.put(world.master.change(deleted(asking(UID))))
        await world.reports(pipe, OTHER, runs)
        await until(lambda: world.network.ports == {OTHER: (WEB,)})


# ---- on disk ----
@pytest.mark.parametrize(
    ("wanted", "clashes"),
    [
        (HostPort("tcp", "", 8080, 1), True),
        (HostPort("tcp", "10.0.0.1", 8080, 1), True),
        (HostPort("udp", "", 8080, 1), False),
        (HostPort("tcp", "", 8081, 1), False),
        (HostPort("tcp", "10.0.0.2", 53, 1), False),
        (HostPort("tcp", "10.0.0.1", 53, 1), True),
        (HostPort("tcp", "", 53, 1), True),
    ],
)
def test_what_contradicts(tmp_path: Path, wanted: HostPort, clashes: bool) -> None:
    ports = HostPorts(tmp_path / "ports.json")
    ports.claim("a", [WEB, HostPort("tcp", "10.0.0.1", 53, 53)])
    if clashes:
        with pytest.raises(PortTaken, match="leads to pod a already"):
            ports.claim("b", [wanted])
    else:
        ports.claim("b", [wanted])
    assert ("b" in ports.held) is not clashes


def test_claims_outlive_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    ports = HostPorts(path)
    ports.free(["nobody"])
    assert not path.exists()
    ports.claim("a", [WEB])
    ports.claim("a", [WEB])
    again = HostPorts(path)
    assert again.held == {"a": (WEB,)}
    again.free(["a"])
    assert HostPorts(path).held == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"a": [["icmp", "", 1, 2]]}', '{"a": [["tcp", "x", 1, 2]]}', '{"a": 3}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ports.json"
    path.write_text(text)
    with pytest.raises(NetworkFault, match=r"ports.json, .*is damaged"):
        HostPorts(path)
    path.write_text(json.dumps({}))
    HostPorts(path)
