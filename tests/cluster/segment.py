"""Three nodes as network namespaces on one bridge, and the network's adapter driven inside them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = f"shoaln{os.getpid() % 10000}"
NODES = {f"{PREFIX}{c}": f"192.168.77.{i}" for i, c in enumerate("abc", 1)}
CIDRS = dict(zip(NODES, ("10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"), strict=True))

DRIVER = """
import asyncio, sys
from pathlib import Path
from shoal.agent.network.linux import LinuxNetwork
from shoal.agent.network.port import HostPort, Peer

def port(text):
    protocol, address, number, target = text.split(":")
    return HostPort(protocol, address, int(number), int(target))

async def main():
    state, cidr, peers, *commands = sys.argv[1:]
    net = LinuxNetwork(Path(state), "up0")
    await net.configure(cidr, "10.244.0.0/16")
    await net.sync_peers([Peer(*p.split(",")) for p in peers.split(";") if p])
    for command in commands:
        verb, uid, *rest = command.split("=")
        if verb == "attach":
            print(await net.attach(uid, rest[0], [port(text) for text in rest[1:]]))
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


@contextmanager
def three_nodes() -> Iterator[None]:
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
