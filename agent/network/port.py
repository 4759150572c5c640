"""The pod network's port. Two adapters: `linux.py` (bridge, veth, routes, nft) and `fake.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class NetworkFault(Exception):
    """The network could not be set up; the message says which step failed and why. Retryable."""

    reason = "NetworkNotReady"


class PortTaken(NetworkFault):
    """Another pod of this node holds a port that the pod asks for."""

    reason = "HostPortConflict"


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node: where it is and which pods it holds."""

    name: str
    address: str
    pod_cidr: str


@dataclass(frozen=True, slots=True)
class HostPort:
    """A port of the node that leads to one of a pod's."""

    protocol: str  # tcp, udp, sctp
    address: str  # of the node; "": every one
    port: int
    target: int  # the pod's own


class Network(Protocol):
    """All calls are idempotent."""

    async def configure(self, pod_cidr: str, cluster_cidr: str) -> None:
        """Sets up the node's bridge, forwarding and spoof protection for its pod range."""
        ...

    async def sync_peers(self, peers: Sequence[Peer]) -> None:
        """Makes the routes to the other nodes' pods exactly these."""
        ...

    async def attach(self, pod_uid: str, netns: str, ports: Sequence[HostPort] = ()) -> str:
        """Gives the namespace an interface and an address, and leads the node's ports there; returns the address. Asked
        again it returns the same. Raises PortTaken."""
        ...

    async def detach(self, pod_uid: str) -> None:
        """Frees the pod's interface, address and ports."""
        ...

    async def attached(self) -> Mapping[str, str]:
        """pod uid -> address, as known on disk."""
        ...
