"""The pod network's port. Two adapters: `linux.py` (bridge, veth, routes, nft) and `fake.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class NetworkFault(Exception):
    """The network could not be set up; the message says which step failed and why. Retryable."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node: where it is and which pods it holds."""

    name: str
    address: str
    pod_cidr: str


class Network(Protocol):
    """All calls are idempotent."""

    async def configure(self, pod_cidr: str, cluster_cidr: str) -> None:
        """Sets up the node's bridge, forwarding and spoof protection for its pod range."""
        ...

    async def sync_peers(self, peers: Sequence[Peer]) -> None:
        """Makes the routes to the other nodes' pods exactly these."""
        ...

    async def attach(self, pod_uid: str, netns: str) -> str:
        """Gives the namespace an interface and an address; returns the address. Asked again it returns the same."""
        ...

    async def detach(self, pod_uid: str) -> None:
        """Frees the pod's interface and address."""
        ...

    async def attached(self) -> Mapping[str, str]:
        """pod uid -> address, as known on disk."""
        ...
