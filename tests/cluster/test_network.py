"""The pod network for real: three nodes as network namespaces on one bridge, packets between their pods."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

PREFIX = f"shoaln{os.getpid() % 10000}"
NODES = {f"{PREFIX}{c}": f"192.168.77.{i}" for i, c in enumerate("abc", 1)}
CIDRS = dict(zip(NODES, ("10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"), strict=True))

DRIVER = """
import asyncio, sys
from pathlib import Path
from shoal.agent.network.linux import LinuxNetwork
from shoal.agent.network.port import Peer

async def main():
    state, cidr, peers, *commands = sys.argv[1:]
    net = LinuxNetwork(Path(state), "up0")
    await net.configure(cidr, "10.244.0.0/16")
    await net.sync_peers([Peer(*p.split(",")) for p in peers.split(";") if p])
    for command in commands:
        verb, uid, *rest = command.split("=")
        if verb == "attach":
            print(await net.attach(uid, rest[0]))
        elif verb == "detach":
            await net.detach(uid)
        elif verb == "remove":
            await net.remove()
    net.close()

asyncio.run(main())
"""


def sh(command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


@pytest.fixture
def segment() -> Iterator[None]:
    """Three nodes on a bridge that lies in a namespace of its own."""
    hub = f"{PREFIX}hub"
    names = [hub, *NODES, *(f"{node}p{i}" for node in NODES for i in (1, 2))]
    try:
        for name in names:
            sh(f"ip netns add {name}")
        sh(f"ip -n {hub} link add br0 mtu 1400 type bridge && ip -n {hub} link set br0 up")
        for i, (node, address) in enumerate(NODES.items()):
            sh(f"ip -n {hub} link add port{i} mtu 1400 type veth peer name up0 mtu 1400 netns {node}")
            sh(f"ip -n {hub} link set port{i} master br0 up")
            sh(f"ip -n {node} addr add {address}/24 dev up0; ip -n {node} link set up0 up; ip -n {node} link set lo up")
        yield
    finally:
        for name in names:
            sh(f"ip netns del {name}", check=False)


def start(node: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = ["ip", "netns", "exec", node, sys.executable, "-c", textwrap.dedent(DRIVER), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def drive(tmp: Path, node: str, *commands: str) -> list[str]:
    """Runs the adapter inside the node's namespace; returns what it printed."""
    peers = ";".join(f"{n},{a},{CIDRS[n]}" for n, a in NODES.items() if n != node)
    done = start(node, str(tmp / node), CIDRS[node], peers, *commands)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def ping(namespace: str, address: str, *flags: str) -> bool:
    return sh(f"ip netns exec {namespace} ping -c 1 -W 2 {' '.join(flags)} {address}", check=False).returncode == 0


def test_pods_reach_pods_on_their_and_other_nodes(segment: None, tmp_path: Path) -> None:
    address: dict[str, str] = {}
    for node in NODES:
        pods = [f"{node}p{i}" for i in (1, 2)]
        got = drive(tmp_path, node, *(f"attach={pod}=/run/netns/{pod}" for pod in pods))
        address.update(zip(pods, got, strict=True))
    assert len(set(address.values())) == 6
    for source in address:
        for target in address.values():
            assert ping(source, target), f"{source} does not reach {target}"
    first, *_, last = address
    assert ping(first, address[last], "-M", "do", "-s", str(1400 - 28)), "a packet of exactly the MTU must pass"
    assert not ping(first, address[last], "-M", "do", "-s", str(1400 - 27)), "one byte more must fail cleanly"
    for node, own in NODES.items():
        assert ping(node, address[last]), f"node {node} ({own}) does not reach a pod"

    sh(f"ip -n {first} addr add {address[last]}/32 dev eth0")
    victim = address[f"{list(NODES)[1]}p1"]
    assert not ping(first, victim, "-I", address[last]), "a spoofed source must be dropped"
    assert ping(first, victim)

    node = next(iter(NODES))
    assert drive(tmp_path, node, f"attach={first}=/run/netns/{first}") == [address[first]], "a second attach changed it"
    assert ping(first, victim), "a restarted agent must not cut its pods off"
    drive(tmp_path, node, f"detach={first}")
    assert not ping(f"{node}p2", address[first])
    drive(tmp_path, node, "remove=")
    assert sh(f"ip netns exec {node} nft list tables").stdout == ""
    assert sh(f"ip -n {node} link show shoal0", check=False).returncode != 0
    assert "10.244." not in sh(f"ip -n {node} route").stdout


def test_the_gateway_keeps_its_address_when_pods_come_and_go(segment: None, tmp_path: Path) -> None:
    node = next(iter(NODES))

    def mac() -> str:
        return sh(f"ip netns exec {node} cat /sys/class/net/shoal0/address").stdout.strip()

    drive(tmp_path, node)
    first = mac()
    drive(tmp_path, node, f"attach={node}p1=/run/netns/{node}p1", f"attach={node}p2=/run/netns/{node}p2")
    assert mac() == first == "0a:58:0a:f4:01:01"
    drive(tmp_path, node, f"detach={node}p1")
    assert mac() == first


def test_a_peer_off_the_segment_is_named(segment: None, tmp_path: Path) -> None:
    node = next(iter(NODES))
    done = start(node, str(tmp_path), CIDRS[node], "far,172.31.9.9,10.244.9.0/24")
    assert done.returncode != 0
    assert "10.244.9.0/24 via 172.31.9.9" in done.stderr and "same network segment" in done.stderr


def test_a_peer_with_a_wrong_address_costs_nobody_else(segment: None, tmp_path: Path) -> None:
    node, other = list(NODES)[:2]
    peers = f"odd,odd.example,10.244.9.0/24;none,192.168.77.9,range;{other},{NODES[other]},{CIDRS[other]}"
    done = start(node, str(tmp_path), CIDRS[node], peers)
    assert done.returncode != 0 and "NetworkFault" in done.stderr
    assert "node odd: " in done.stderr and "node none: " in done.stderr
    assert f"{CIDRS[other]} via {NODES[other]}" in sh(f"ip -n {node} route").stdout


def test_what_others_have_broken_is_repaired(segment: None, tmp_path: Path) -> None:
    """An uplink that was down, a flushed ruleset, a bridge that somebody deleted."""
    first, second = list(NODES)[:2]
    pods = {node: f"{node}p1" for node in (first, second)}
    address = {node: drive(tmp_path, node, f"attach={pod}=/run/netns/{pod}")[0] for node, pod in pods.items()}
    sh(f"ip -n {first} link set up0 down; ip -n {first} link set up0 up")
    sh(f"ip netns exec {first} nft flush ruleset; ip -n {first} link del shoal0")
    assert not ping(pods[first], address[second])
    drive(tmp_path, first)
    # The kernel lets the address of a neighbour that did not answer rest for some seconds.
    assert any(ping(pods[first], address[second]) for _ in range(10)) and ping(pods[second], address[first])
    sh(f"ip -n {pods[first]} addr add 10.244.1.99/32 dev eth0")
    assert not ping(pods[first], address[second], "-I", "10.244.1.99"), "a spoofed source must be dropped"


def test_the_fake_keeps_the_same_promises() -> None:
    from shoal.agent.network.fake import FakeNetwork

    async def scenario() -> None:
        net = FakeNetwork()
        await net.configure("10.244.1.0/24", "10.244.0.0/16")
        address = await net.attach("a", "/x")
        assert await net.attach("a", "/x") == address != await net.attach("b", "/x")
        await net.detach("a")
        assert set(await net.attached()) == {"b"}

    asyncio.run(scenario())
