"""What a node keeps for itself, and how its pods are held to the rest."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from shoal.agent.eviction import Eviction
from shoal.agent.machine import Capacity
from shoal.agent.node import Reserved
from shoal.agent.pressure import DISK, MEMORY
from shoal.agent.runtime.cgroups import CgroupError, Cgroups

log = logging.getLogger("shoal.agent.reserve")
MIB = 1 << 20
RESOURCES = ("cpu", "memory", "ephemeral-storage", "pids")
# The agent, the spawner and a supervisor per pod: small machines cannot give up so much, hence a share of them.
MOST_MILLI_CPU, MOST_MEMORY, MOST_PIDS = 100, 256 * MIB, 1024
LEAST_SHARE = 8  # one in so many
SHARES_PER_CPU = 1024


def decided(told: Mapping[str, int], capacity: Capacity, pids: int) -> Reserved:
    """What was told, and a default for the rest. `pids`: how many the node may have; 0: no limit."""
    return Reserved(
        told.get("cpu", min(MOST_MILLI_CPU, capacity.milli_cpu // LEAST_SHARE)),
        told.get("memory", min(MOST_MEMORY, capacity.memory_bytes // LEAST_SHARE)),
        told.get("ephemeral-storage", 0),  # the hard threshold keeps enough
        told.get("pids", min(MOST_PIDS, pids // LEAST_SHARE)),
    )


def kept(reserved: Reserved, eviction: Eviction, capacity: Capacity) -> Reserved:
    """What allocatable lacks: who asks for no more than that is never evicted for what all together asked for."""
    return Reserved(
        reserved.milli_cpu,
        reserved.memory_bytes + eviction.hard(MEMORY, capacity.memory_bytes),
        reserved.ephemeral_storage_bytes + eviction.hard(DISK, capacity.ephemeral_storage_bytes),
    )


def enforce(groups: Cgroups, reserved: Reserved, capacity: Capacity, pids: int) -> None:
    """Limits all pods together. What cannot be limited (they use more already) is tried again by the next agent."""
    path = f"{groups.base}/pods"
    milli_cpu = max(capacity.milli_cpu - reserved.milli_cpu, 1)
    limits = {
        "cpu_shares": milli_cpu * SHARES_PER_CPU // 1000,
        "memory_bytes": max(capacity.memory_bytes - reserved.memory_bytes, MIB),
        "pids": max(pids - reserved.pids, 1) if pids else None,
    }
    try:
        groups.create(path)
        groups.limit(path, limits)
    except CgroupError as fault:
        log.warning("the node's own share is not kept off its pods: %s", fault)
