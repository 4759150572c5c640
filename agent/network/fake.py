"""An in-memory pod network, for unit tests and the simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

from shoal.agent.network.hostports import refuse, taken
from shoal.agent.network.ipam import RangeFull, next_address
from shoal.agent.network.port import HostPort, NetworkFault, Peer


class FakeNetwork:
    """Implements port.Network. It outlives its agent, as a node's kernel does; `broken` makes calls fail."""

    def __init__(self) -> None:
        self.pods: dict[str, str] = {}
        self.ports: dict[str, tuple[HostPort, ...]] = {}
        self.peers: tuple[Peer, ...] = ()
        self.range: IPv4Network | None = None
        self.broken = ""

    def _check(self) -> None:
        if self.broken:
            raise NetworkFault(self.broken)

    async def configure(self, pod_cidr: str, cluster_cidr: str) -> None:
        self._check()
        self.range = IPv4Network(pod_cidr)

    async def sync_peers(self, peers: Sequence[Peer]) -> None:
        self._check()
        self.peers = tuple(peers)

    async def attach(self, pod_uid: str, netns: str, ports: Sequence[HostPort] = ()) -> str:
        self._check()
        found = taken(self.ports, pod_uid, ports)
        if found is not None:
            raise refuse(*found)
        if self.range is None:
            raise NetworkFault("the node has no pod range yet: it has not reached the master")
        if pod_uid not in self.pods:
            used = {IPv4Address(a) for a in self.pods.values()}
            try:
                self.pods[pod_uid] = str(next_address(self.range, used, None))
            except RangeFull as fault:
                raise NetworkFault(str(fault)) from fault
        if ports:
            self.ports[pod_uid] = tuple(ports)
        return self.pods[pod_uid]

    async def detach(self, pod_uid: str) -> None:
        self._check()
        self.pods.pop(pod_uid, None)
        self.ports.pop(pod_uid, None)

    async def attached(self) -> Mapping[str, str]:
        return dict(self.pods)
