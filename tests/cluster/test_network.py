"""The pod network for real: three nodes as network namespaces on one bridge, packets between their pods."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.segment import CIDRS, NODES, drive, ping, sh, start, three_nodes


@pytest.fixture
def segment() -> Iterator[None]:
    with three_nodes():
        yield


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
