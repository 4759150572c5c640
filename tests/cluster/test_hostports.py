"""Host ports for real: packets to three nodes that are led to their pods, and what is left when those have gone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cluster.segment import CIDRS, NODES, drive, sh, start, three_nodes

ONE, TWO = list(NODES)[:2]
HERE = NODES[ONE]
SCTP = 132
# Answers each message with its name and who asked; says when it is ready.
SERVER = """
import socket, sys, threading
name, protocol, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
own = socket.socket(socket.AF_INET, kind, 132 if protocol == "sctp" else 0)
own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
own.bind(("0.0.0.0", port))
if protocol != "udp":
    own.listen()
print("ready", flush=True)
while True:
    if protocol == "udp":
        _, peer = own.recvfrom(100)
        own.sendto(f"{name} {peer[0]}".encode(), peer)
    else:
        connection, peer = own.accept()
        connection.sendall(f"{name} {peer[0]}".encode())
        connection.close()
"""
# Asks once for each line on its standard input, always from the same socket when it is a datagram one.
CLIENT = """
import socket, sys
protocol, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
def fresh():
    made = socket.socket(socket.AF_INET, kind, 132 if protocol == "sctp" else 0)
    made.settimeout(1.0)
    made.connect((address, port))
    return made
own = None
for _ in sys.stdin:
    try:
        own = own if own is not None and protocol == "udp" else fresh()
        if protocol == "udp":
            own.send(b"?")
        print(own.recv(100).decode(), flush=True)
    except OSError as fault:
        print(f"! {type(fault).__name__}", flush=True)
"""


@pytest.fixture
def segment() -> Iterator[None]:
    with three_nodes():
        yield


@contextmanager
def running(namespace: str, script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    argv = ["ip", "netns", "exec", namespace, sys.executable, "-c", script, *arguments]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def serving(*servers: tuple[str, str, int]) -> Iterator[None]:
    """(namespace, protocol, port) each; a server's name is its namespace's."""
    with ExitStack() as stack:
        for namespace, protocol, port in servers:
            process = stack.enter_context(running(namespace, SERVER, namespace, protocol, str(port)))
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield


@contextmanager
def asking(namespace: str, protocol: str, address: str, port: int) -> Iterator[Callable[[], str]]:
    with running(namespace, CLIENT, protocol, address, str(port)) as process:
        assert process.stdin is not None and process.stdout is not None
        to, answers = process.stdin, process.stdout

        def ask() -> str:
            print("", file=to, flush=True)
            return answers.readline().strip()

        yield ask


def ask(namespace: str, protocol: str, address: str, port: int) -> str:
    with asking(namespace, protocol, address, port) as once:
        return once()


def attach(tmp: Path, node: str, pod: str, *ports: str) -> str:
    return drive(tmp, node, "=".join((f"attach={pod}=/run/netns/{pod}", *ports)))[0]


def protocols() -> list[str]:
    """Those of host ports that this kernel has."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP).close()
    except OSError:
        return ["tcp", "udp"]
    return ["tcp", "udp", "sctp"]


def test_a_host_port_leads_to_its_pod_from_everywhere(segment: None, tmp_path: Path) -> None:
    pod, neighbour, far = f"{ONE}p1", f"{ONE}p2", f"{TWO}p1"
    address = attach(tmp_path, ONE, pod, *(f"{name}::8080:80" for name in ("tcp", "udp", "sctp")))
    attach(tmp_path, ONE, neighbour)
    attach(tmp_path, TWO, far)
    for protocol in protocols():
        with serving((pod, protocol, 80)):
            assert ask(TWO, protocol, HERE, 8080) == f"{pod} {NODES[TWO]}", "another node, seen as it is"
            assert ask(far, protocol, HERE, 8080) == f"{pod} {NODES[TWO]}", "another node's pod"
            gateway = CIDRS[ONE].replace("0/24", "1")
            assert ask(neighbour, protocol, HERE, 8080) == f"{pod} {gateway}", "another pod of the node"
            assert ask(pod, protocol, HERE, 8080) == f"{pod} {gateway}", "the pod itself"
            assert ask(ONE, protocol, HERE, 8080).startswith(f"{pod} "), "the node at its own address"
            if protocol != "sctp":
                assert ask(ONE, protocol, "127.0.0.1", 8080) == f"{pod} {gateway}", "the node at 127.0.0.1"
            drive(tmp_path, ONE)
            assert ask(TWO, protocol, HERE, 8080) == f"{pod} {NODES[TWO]}", "after a restart of the agent"
            assert ask(ONE, protocol, address, 80).startswith(f"{pod} "), "its own port is open as before"
            assert ask(TWO, protocol, HERE, 80).startswith("! "), "the pod's own number is no port of the node"


def test_a_port_of_one_address_is_open_there_only(segment: None, tmp_path: Path) -> None:
    sh(f"ip -n {ONE} addr add 192.168.77.101/24 dev up0")
    one, other = f"{ONE}p1", f"{ONE}p2"
    attach(tmp_path, ONE, one, f"tcp:{HERE}:8080:80")
    with serving((one, "tcp", 80), (other, "tcp", 80)):
        assert ask(TWO, "tcp", HERE, 8080).startswith(one)
        assert ask(TWO, "tcp", "192.168.77.101", 8080) == "! ConnectionRefusedError"
        assert ask(ONE, "tcp", "127.0.0.1", 8080) == "! ConnectionRefusedError"
        attach(tmp_path, ONE, other, "tcp:192.168.77.101:8080:80")
        assert ask(TWO, "tcp", HERE, 8080).startswith(one)
        assert ask(TWO, "tcp", "192.168.77.101", 8080).startswith(other)


def test_a_port_that_another_pod_holds_is_refused_until_it_has_gone(segment: None, tmp_path: Path) -> None:
    one, other = f"{ONE}p1", f"{ONE}p2"
    attach(tmp_path, ONE, one, "tcp::8080:80")
    for wanted in ("tcp::8080:90", f"tcp:{HERE}:8080:90"):
        done = start(ONE, str(tmp_path / ONE), CIDRS[ONE], "", f"attach={other}=/run/netns/{other}={wanted}")
        assert done.returncode != 0 and f"8080/tcp of this node leads to pod {one} already" in done.stderr
    attach(tmp_path, ONE, other, "udp::8080:80")
    with serving((one, "tcp", 80), (other, "tcp", 90)):
        assert ask(TWO, "tcp", HERE, 8080).startswith(one)
        drive(tmp_path, ONE, f"detach={other}", f"detach={one}")
        assert ask(TWO, "tcp", HERE, 8080) == "! ConnectionRefusedError"
        attach(tmp_path, ONE, other, "tcp::8080:90")
        assert ask(TWO, "tcp", HERE, 8080).startswith(other)


def test_flows_follow_the_port_to_whoever_has_it_now(segment: None, tmp_path: Path) -> None:
    """A datagram client that never pauses: before the first pod, from the first to the second."""
    one, other = f"{ONE}p1", f"{ONE}p2"
    drive(tmp_path, ONE)
    with serving((one, "udp", 53), (other, "udp", 53)), asking(TWO, "udp", HERE, 53) as again:
        assert again().startswith("! ")
        attach(tmp_path, ONE, one, "udp::53:53")
        assert again().startswith(one)
        drive(tmp_path, ONE, f"detach={one}")
        attach(tmp_path, ONE, other, "udp::53:53")
        assert again().startswith(other)


def test_nothing_is_left_of_a_pod_that_has_gone(segment: None, tmp_path: Path) -> None:
    pod = f"{ONE}p1"
    attach(tmp_path, ONE, pod, "tcp::8080:80", f"udp:{HERE}:53:53")
    before = sh(f"ip netns exec {ONE} nft list table ip shoal").stdout
    assert "8080" in before and f"udp . {HERE} . 53" in before
    drive(tmp_path, ONE, f"detach={pod}", f"detach={pod}")
    assert "elements" not in sh(f"ip netns exec {ONE} nft list table ip shoal").stdout
    assert json.loads((tmp_path / ONE / "ports.json").read_text()) == {}


def test_what_a_killed_agent_had_only_begun_is_taken_back(segment: None, tmp_path: Path) -> None:
    """The ports are written first, then the address, then the rules: dying between them leaves the port free."""
    pod, state = f"{ONE}p1", tmp_path / ONE / "ports.json"
    attach(tmp_path, ONE, pod, "tcp::8080:80")
    held = json.loads(state.read_text())
    state.write_text(json.dumps(held | {"never": [["tcp", "", 9090, 80]]}))
    sh(f"ip netns exec {ONE} nft add element ip shoal anyport '{{ tcp . 9091 : 10.244.1.77 . 80 }}'")
    drive(tmp_path, ONE)
    assert json.loads(state.read_text()) == held
    rules = sh(f"ip netns exec {ONE} nft list map ip shoal anyport").stdout
    assert "8080" in rules and "9090" not in rules and "9091" not in rules


def test_pods_do_not_reach_the_nodes_loopback(segment: None, tmp_path: Path) -> None:
    """For 127.0.0.1 to have host ports the bridge lets loopback addresses through: not to what listens there."""
    pod = f"{ONE}p1"
    address = attach(tmp_path, ONE, pod)
    sh(f"ip netns exec {pod} sysctl -qw net.ipv4.conf.all.route_localnet=1 net.ipv4.conf.eth0.route_localnet=1")
    sh(f"ip -n {pod} route del local 127.0.0.1 table local; ip -n {pod} route del local 127.0.0.0/8 table local")
    sh(f"ip -n {pod} route add 127.0.0.1 via {CIDRS[ONE].replace('0/24', '1')} dev eth0 src {address}")
    inside = f"ip netns exec {ONE} nft"
    sh(f"{inside} 'add table ip probe; add chain ip probe heard {{ type filter hook input priority 0; }}'")
    sh(f"{inside} add rule ip probe heard ip daddr 127.0.0.1 tcp dport 7777 counter")

    def heard() -> bool:
        """Whether anything has come to the node's own 127.0.0.1."""
        assert ask(pod, "tcp", "127.0.0.1", 7777).startswith("! ")
        return "packets 0 " not in sh(f"{inside} list chain ip probe heard").stdout

    assert not heard()
    sh(f"{inside} flush chain ip shoal loopback")
    assert heard(), "else the test would prove nothing"
