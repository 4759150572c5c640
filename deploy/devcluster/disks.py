"""A development node's own disk: a sparse file with ext4 on it, mounted over the node's data folder.

The mount lies in the node's mount namespace alone, so that it goes when the node's power goes; the file stays.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from shoal.deploy.devcluster.plan import MIB, ClusterPlan, NodePlan, Refusal

LEAST_BYTES = 32 * MIB  # ext4's journal and the agent's own records fit
MAKE_SECONDS = 120.0
TOOL = "mkfs.ext4"


def image(plan: ClusterPlan, node: NodePlan) -> Path:
    return plan.node_folder(node.name) / "disk.img"


def check(size: int) -> None:
    """Raises Refusal for a disk that cannot be made."""
    if size < LEAST_BYTES:
        raise Refusal(f"--node-disk {size}: a node needs at least {LEAST_BYTES // MIB}Mi")
    if shutil.which(TOOL) is None:
        raise Refusal(f"--node-disk needs {TOOL}: install it (Debian: e2fsprogs)")


def make(plan: ClusterPlan, node: NodePlan) -> None:
    """The file with an empty file system; one that is there already stays. Raises Refusal."""
    path = image(plan, node)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with open(new, "wb") as file:
        file.truncate(plan.node_disk_bytes)
    _run([TOOL, "-q", "-F", "-m", "0", str(new)], f"{node.name}: its disk could not be made")
    os.replace(new, path)


def attach(plan: ClusterPlan, node: NodePlan, holder: int) -> None:
    """Mounts the node's disk in the holder's namespaces. Raises Refusal."""
    data = plan.node_folder(node.name) / "data"
    data.mkdir(parents=True, exist_ok=True)
    inside = ["nsenter", "--target", str(holder), "--mount"]
    mount = ["mount", "-t", "ext4", "-o", "loop", str(image(plan, node)), str(data)]
    _run([*inside, *mount], f"{node.name}: its disk could not be mounted")


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=MAKE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise Refusal(f"{what}: {fault}") from fault
    if done.returncode != 0:
        raise Refusal(f"{what}: {done.stderr.strip()}")
