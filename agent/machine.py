"""What the machine offers: the port through which the agent reads capacity and pressure.

A real machine answers from /proc; a node of the development cluster from its own cgroup and flags.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Capacity:
    milli_cpu: int
    memory_bytes: int
    pods: int
    ephemeral_storage_bytes: int


@dataclass(frozen=True, slots=True)
class MachineInfo:
    machine_id: str
    boot_id: str
    kernel: str
    os_image: str
    architecture: str  # as OCI writes it: amd64, arm64
    hostname: str


@dataclass(frozen=True, slots=True)
class MachineUsage:
    """Since the machine began, and now (without what the kernel can take back)."""

    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Amount:
    """Of one resource: what is left of how much. `capacity` 0: not known, nobody runs short of it."""

    available: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Signals:
    """What the node has left: of its own, and of what its pods may have together."""

    memory: Amount  # bytes
    disk: Amount  # bytes, for pods, images and logs alike
    inodes: Amount
    pids: Amount
    pods_memory: Amount = Amount(0, 0)
    pods_pids: Amount = Amount(0, 0)


class Machine(Protocol):
    def capacity(self) -> Capacity: ...
    def info(self) -> MachineInfo: ...
    def usage(self) -> MachineUsage: ...

    def signals(self) -> Signals:
        """Cheap enough to be asked every second. Raises OSError."""
        ...
