"""The pod network in memory, for unit tests and simulation. It outlives the agent, as the kernel's would."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from shoal.agent.network.port import NetworkFault, Peer


class FakeNetwork:
    """`failing` makes every call raise NetworkFault with that text; `attachments` counts new addresses per pod."""

    def __init__(self) -> None:
        self.failing = ""
        self.pod_cidr = ""
        self.peers: tuple[Peer, ...] = ()
        self.attachments: dict[str, int] = {}
        self._addresses: dict[str, str] = {}

    async def configure(self, pod_cidr: str, cluster_cidr: str) -> None:
        self._check()
        self.pod_cidr = pod_cidr

    async def sync_peers(self, peers: Sequence[Peer]) -> None:
        self._check()
        self.peers = tuple(sorted(peers, key=lambda peer: peer.name))

    async def attach(self, pod_uid: str, netns: str) -> str:
        self._check()
        if pod_uid not in self._addresses:
            self._addresses[pod_uid] = self._free_address()
            self.attachments[pod_uid] = self.attachments.get(pod_uid, 0) + 1
        return self._addresses[pod_uid]

    async def detach(self, pod_uid: str) -> None:
        self._check()
        self._addresses.pop(pod_uid, None)

    async def attached(self) -> Mapping[str, str]:
        return dict(self._addresses)

    def _check(self) -> None:
        if self.failing:
            raise NetworkFault(self.failing)

    def _free_address(self) -> str:
        if not self.pod_cidr:
            raise NetworkFault("the node has no pod range yet: it gets one from the master")
        hosts = ipaddress.ip_network(self.pod_cidr).hosts()
        next(hosts)  # the bridge's
        taken = set(self._addresses.values())
        for host in hosts:
            if str(host) not in taken:
                return str(host)
        raise NetworkFault(f"no address is left in {self.pod_cidr}")
