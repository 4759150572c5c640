"""The files that a development cluster's programs read: certificates and one configuration each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from shoal.deploy.certs.ca import Authority
from shoal.deploy.devcluster.plan import ClusterPlan, NodePlan

# How full this machine's own disk is, no node can help: only its very end is a node's affair.
SHARED_DISK: dict[str, Any] = {
    "eviction": {"hard": {"nodefs.available": "256Mi", "imagefs.available": "256Mi", "nodefs.inodesFree": "1%"}},
    "image_gc": {"high": 100, "low": 99},
}


def write_all(plan: ClusterPlan) -> None:
    """What etcd, masters, agents, a registry and the command read. Raises CertificateError, OSError."""
    etcd = Authority.ensure(plan.etcd_certs, f"{plan.name} etcd")
    etcd.issue("etcd", "etcd", ["127.0.0.1"])
    etcd.issue("etcd-client", "master")
    cluster = Authority.ensure(plan.certs, plan.name)
    cluster.issue("admin", "admin")
    for index in range(len(plan.master_ports)):
        cluster.issue("master", f"master-{index}", ["127.0.0.1", plan.gateway])
        _write(plan.folder / f"master-{index}.yaml", master(plan, index))
    if plan.registry:
        _write(plan.folder / "registry.yaml", registry(plan))
    for node in plan.nodes:
        cluster.issue("node", node.name)
        _write(plan.node_folder(node.name) / "agent.yaml", agent(plan, node))


def master(plan: ClusterPlan, index: int) -> dict[str, Any]:
    """One master's configuration; it listens on loopback and on the cluster's own segment only."""
    certs, port, http = plan.certs, plan.master_ports[index], plan.http_ports[index]
    settings: dict[str, Any] = {
        "name": f"master-{index}",
        "listen": [f"127.0.0.1:{port}", f"{plan.gateway}:{port}"],
        "advertise": f"{plan.gateway}:{port}",
        "http": [f"127.0.0.1:{http}"],
        "ca": str(certs / "ca.crt"),
        "certificate": str(certs / f"master-{index}.crt"),
        "key": str(certs / f"master-{index}.key"),
        "etcd": {
            "endpoints": [f"127.0.0.1:{plan.etcd_client_port}"],
            "ca": str(plan.etcd_certs / "ca.crt"),
            "certificate": str(plan.etcd_certs / "master.crt"),
            "key": str(plan.etcd_certs / "master.key"),
        },
        "cluster_cidr": plan.pod_range,
        "decision_log": str(plan.certs.parent / f"decisions-{index}.log"),
    }
    if plan.heartbeat_ms:
        settings["heartbeat_ms"] = plan.heartbeat_ms
    return settings


def agent(plan: ClusterPlan, node: NodePlan) -> dict[str, Any]:
    """One agent's configuration: a node of the development cluster is told what it may call its own."""
    certs = plan.certs
    settings: dict[str, Any] = {
        "node": node.name,
        "masters": [f"{plan.gateway}:{port}" for port in plan.master_ports],
        "ca": str(certs / "ca.crt"),
        "certificate": str(certs / f"{node.name}.crt"),
        "key": str(certs / f"{node.name}.key"),
        "address": node.address,
        "uplink": "uplink0",
        "data": str(plan.node_folder(node.name) / "data"),
        "run": "/run/shoal",
        "cgroup": f"{plan.cgroup}/{node.name}",
        "http": [f"{node.address}:{plan.metrics_port}"],
        "capacity": {
            "cpu": f"{node.milli_cpu}m",
            "memory": str(node.memory_bytes),
            "pods": str(node.pods),
            "ephemeral-storage": str(node.storage_bytes),
        },
    }
    if registries := plan.agent_registries():
        settings["registries"] = registries
    if not plan.node_disk_bytes:
        settings |= SHARED_DISK
    settings.update(plan.agent)
    return settings


def registry(plan: ClusterPlan) -> dict[str, Any]:
    """The configuration of docker's registry: on the cluster's own segment only, for everybody there."""
    return {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(plan.folder / "registry")}, "delete": {"enabled": True}},
        "http": {"addr": plan.registry_address},
    }


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        yaml.safe_dump(settings, file, sort_keys=False)
    os.replace(new, path)
