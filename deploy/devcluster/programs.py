"""The command lines of a development cluster's programs."""

from __future__ import annotations

import sys

from shoal.deploy.devcluster.plan import ClusterPlan, NodePlan

QUOTA_BYTES = 8 << 30  # etcd's own default is 2 GiB; Shoal sets it explicitly


def etcd(plan: ClusterPlan) -> list[str]:
    client = f"https://127.0.0.1:{plan.etcd_client_port}"
    peer = f"https://127.0.0.1:{plan.etcd_peer_port}"
    certs = plan.etcd_certs
    return [
        plan.etcd,
        f"--name={plan.name}",
        f"--data-dir={plan.folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={plan.name}={peer}",
        f"--quota-backend-bytes={QUOTA_BYTES}",
        f"--cert-file={certs / 'etcd.crt'}",
        f"--key-file={certs / 'etcd.key'}",
        f"--trusted-ca-file={certs / 'ca.crt'}",
        "--client-cert-auth",
        f"--peer-cert-file={certs / 'etcd.crt'}",
        f"--peer-key-file={certs / 'etcd.key'}",
        f"--peer-trusted-ca-file={certs / 'ca.crt'}",
        "--peer-client-cert-auth",
        "--log-outputs=stderr",
        "--logger=zap",
        "--log-level=warn",
    ]


def registry(plan: ClusterPlan) -> list[str]:
    return [plan.registry, "serve", str(plan.folder / "registry.yaml")]


def master(plan: ClusterPlan, index: int) -> list[str]:
    return [sys.executable, "-m", "shoal.master.main", "--config", str(plan.folder / f"master-{index}.yaml")]


def agent(plan: ClusterPlan, node: NodePlan) -> list[str]:
    return [sys.executable, "-m", "shoal.agent.main", "--config", str(plan.node_folder(node.name) / "agent.yaml")]
