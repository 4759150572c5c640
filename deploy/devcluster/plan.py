"""What a development cluster consists of, decided once and kept in its cluster.json: names, addresses, ports, shares.

Every node is a small machine: its own net, mount, pid, uts and ipc namespaces under a holder (its PID 1), its own
cgroup subtree, /run and data folder. Links carry a hash of the cluster's name and fit the kernel's 15 bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,28}[a-z0-9])?")
DATA_ROOT = Path("/var/lib/shoal")
RUN_ROOT = Path("/run/shoal")
SEGMENTS = IPv4Network("10.89.0.0/16")  # one /24 of it per cluster, the first that no route here overlaps
POD_RANGE = "10.244.0.0/16"
MOST_NODES = 200
PODS_PER_NODE = 250  # a node has a /24 of addresses for them
REGISTRY_PORT = 5000  # everybody's habit; another one when it is taken
MIB = 1 << 20
NODES, MOST_MASTERS = 3, 5
LEAST_MEMORY, LEAST_PIDS = 192 * MIB, 100  # the agent, the spawner and one small pod
OWN_SETTINGS = {"node", "masters", "ca", "certificate", "key", "address", "uplink", "data", "run", "cgroup", "capacity"}


class Refusal(Exception):
    """The cluster cannot be brought up or down as asked; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    name: str
    address: str
    link: str  # the host's end of its cable
    milli_cpu: int
    memory_bytes: int
    pods: int
    storage_bytes: int


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    name: str
    data: str
    bridge: str
    segment: str
    gateway: str
    pod_range: str
    etcd_client_port: int
    etcd_peer_port: int
    master_ports: tuple[int, ...]
    http_ports: tuple[int, ...]
    metrics_port: int  # of every agent, on its node's own address
    nodes: tuple[NodePlan, ...]
    etcd: str  # the binary
    heartbeat_ms: int = 0  # 0: the master's own choice
    node_disk_bytes: int = 0  # each node's own disk; 0: they share the host's
    registries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # as the agents' configuration has them
    registry: str = ""  # the binary of docker's registry, which then runs beside the nodes
    registry_port: int = 0  # on the gateway's address
    node_memory_bytes: int = 0  # of each node; 0: an equal share of this machine
    node_pids: int = 0  # processes of each node; 0: no limit of its own
    agent: Mapping[str, Any] = field(default_factory=dict)  # more settings of every agent

    @property
    def folder(self) -> Path:
        return Path(self.data)

    @property
    def run(self) -> Path:
        return RUN_ROOT / self.name

    @property
    def certs(self) -> Path:
        return self.folder / "certs"

    @property
    def bridge_mac(self) -> str:
        """Locally administered; differs from cluster to cluster."""
        text = link_hash(self.name)
        return f"02:5a:00:{text[0:2]}:{text[2:4]}:{text[4:6]}"

    @property
    def etcd_certs(self) -> Path:
        return self.certs / "etcd"

    @property
    def cgroup(self) -> str:
        return f"shoal-{self.name}"

    @property
    def registry_address(self) -> str:
        """host:port, as the nodes reach it."""
        return f"{self.gateway}:{self.registry_port}"

    def agent_registries(self) -> dict[str, dict[str, Any]]:
        """The agents' `registries`: the cluster's own, if it has one, is asked first for docker.io's images."""
        table = {name: dict(one) for name, one in self.registries.items()}
        if self.registry:
            hub = table.setdefault("docker.io", {})
            hub["mirrors"] = [f"http://{self.registry_address}", *hub.get("mirrors", [])]
            table.setdefault(self.registry_address, {})["insecure"] = True
        return table

    def node_folder(self, node: str) -> Path:
        return self.folder / "nodes" / node

    def save(self) -> None:
        path = self.folder / "cluster.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(new, path)


def load(folder: Path) -> ClusterPlan | None:
    """The plan in a cluster's data folder; None without one. Raises Refusal when it cannot be read."""
    path = folder / "cluster.json"
    try:
        raw = json.loads(path.read_text())
        raw["nodes"] = tuple(NodePlan(**node) for node in raw["nodes"])
        raw["master_ports"], raw["http_ports"] = tuple(raw["master_ports"]), tuple(raw["http_ports"])
        return ClusterPlan(**raw)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as fault:
        raise Refusal(f"{path} is damaged ({fault}): take the cluster away with `shoal down`") from fault


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise Refusal(f"{name!r} is no cluster name: 1 to 30 of a-z, 0-9 and -, not at either end")


def registry_settings(mirrors: Sequence[str], insecure: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """The agents' `registries` from flags: mirrors as REGISTRY=URL, insecure ones as HOST:PORT. Raises Refusal."""
    table: dict[str, dict[str, Any]] = {}
    for text in mirrors:
        registry, equals, url = text.partition("=")
        if not equals or not registry or not url.startswith(("http://", "https://")):
            raise Refusal(f"--registry-mirror {text}: write REGISTRY=URL, such as docker.io=http://10.89.0.1:5000")
        table.setdefault(registry, {}).setdefault("mirrors", []).append(url)
    for host in insecure:
        if not host or "/" in host:
            raise Refusal(f"--insecure-registry {host}: write HOST:PORT, such as 10.89.0.1:5000")
        table.setdefault(host, {})["insecure"] = True
    return table


def seen_from_nodes(registries: Mapping[str, Mapping[str, Any]], gateway: str) -> Mapping[str, Mapping[str, Any]]:
    """`gateway` as a host stands for this machine, whose address nobody knows before the cluster has a segment."""

    def host(text: str) -> str:
        return re.sub(r"^((?:https?://)?)gateway(?=[:/]|$)", rf"\g<1>{gateway}", text)

    return {
        host(name): {**table, **({"mirrors": [*map(host, table["mirrors"])]} if "mirrors" in table else {})}
        for name, table in registries.items()
    }


def link_hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:6]


def free_segment(taken: Collection[IPv4Network]) -> IPv4Network:
    """The first /24 that overlaps nothing that is routed here. Raises Refusal."""
    for segment in SEGMENTS.subnets(new_prefix=24):
        if not any(segment.overlaps(other) for other in taken if other.prefixlen):
            return segment
    raise Refusal(f"every /24 of {SEGMENTS} is routed on this machine already")


def node_plans(
    name: str, count: int, segment: IPv4Network, cpus: int, memory_bytes: int, storage_bytes: int
) -> Iterator[NodePlan]:
    """`count` nodes with an equal share of the machine each, rounded down to 1 MiB."""
    for i in range(1, count + 1):
        yield NodePlan(
            name=f"node-{i}",
            address=str(segment.network_address + 10 + i),
            link=f"sh{link_hash(name)}n{i}",
            milli_cpu=cpus * 1000 // count,
            memory_bytes=memory_bytes // count // MIB * MIB,
            pods=PODS_PER_NODE,
            storage_bytes=storage_bytes // count // MIB * MIB,
        )


@dataclass(frozen=True, slots=True)
class Host:
    """What this machine offers to a new cluster."""

    cpus: int
    memory_bytes: int
    storage_bytes: int
    routes: Collection[IPv4Network]
    free_port: Callable[..., int]  # the one that is given, when it is free


@dataclass(frozen=True, slots=True)
class Wishes:
    """What `up` is asked for; nothing or 0 is its own choice."""

    nodes: int | None = None
    masters: int = 1
    etcd: str | None = None  # the binary
    heartbeat_ms: int = 0
    node_disk_bytes: int = 0
    node_memory_bytes: int = 0
    node_pids: int = 0
    agent: Mapping[str, Any] = field(default_factory=dict)  # what every agent is told beyond the usual
    registries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    registry: bool = False  # one of its own

    def check(self) -> None:
        """Raises Refusal for what cannot be, and for nodes on which nothing can run."""
        if self.nodes is not None and not 1 <= self.nodes <= MOST_NODES:
            raise Refusal(f"--nodes {self.nodes}: a development cluster has 1 to {MOST_NODES} nodes")
        if not 1 <= self.masters <= MOST_MASTERS:
            raise Refusal(f"--masters {self.masters}: 1 to {MOST_MASTERS}")
        if self.node_memory_bytes and self.node_memory_bytes < LEAST_MEMORY:
            raise Refusal(f"--node-memory {self.node_memory_bytes}: a node needs at least {LEAST_MEMORY // MIB}Mi")
        if self.node_pids and self.node_pids < LEAST_PIDS:
            raise Refusal(f"--node-pids {self.node_pids}: a node needs at least {LEAST_PIDS}")
        own = sorted(set(self.agent) & OWN_SETTINGS)
        if own:
            raise Refusal(f"--agent-settings: {', '.join(own)} is the cluster's own affair")


def new_plan(name: str, data: Path, wishes: Wishes, host: Host, etcd: str, registry: str = "") -> ClusterPlan:
    """A cluster from scratch. `etcd` and `registry` are binaries; "": without a registry. Raises Refusal."""
    check_name(name)
    wishes.check()
    nodes = wishes.nodes or NODES
    segment = free_segment(host.routes)
    gateway = str(segment.network_address + 1)
    storage = wishes.node_disk_bytes * nodes or host.storage_bytes
    memory = wishes.node_memory_bytes * nodes or host.memory_bytes
    return ClusterPlan(
        name=name,
        data=str(data),
        bridge=f"shoal{link_hash(name)}",
        segment=str(segment),
        gateway=gateway,
        pod_range=POD_RANGE,
        etcd_client_port=host.free_port(),
        etcd_peer_port=host.free_port(),
        master_ports=tuple(host.free_port() for _ in range(wishes.masters)),
        http_ports=tuple(host.free_port() for _ in range(wishes.masters)),
        metrics_port=10250,
        nodes=tuple(node_plans(name, nodes, segment, host.cpus, memory, storage)),
        etcd=etcd,
        heartbeat_ms=wishes.heartbeat_ms,
        node_disk_bytes=wishes.node_disk_bytes,
        registries=seen_from_nodes(wishes.registries, gateway),
        registry=registry,
        registry_port=host.free_port(REGISTRY_PORT) if registry else 0,
        node_memory_bytes=wishes.node_memory_bytes,
        node_pids=wishes.node_pids,
        agent=dict(wishes.agent),
    )
