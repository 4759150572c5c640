"""The pod network on Linux: a bridge per node, a veth pair per pod, routes to the other nodes, nft against spoofing
and for host ports.

Nodes on one segment need no encapsulation, so pods keep the uplink's MTU. One thread does all the work: setns(2) is
per thread, and the steps of one pod never interleave with another's.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import TypeVar

from shoal.agent.network import conntrack, rules
from shoal.agent.network.hostports import HostPorts
from shoal.agent.network.ipam import Leases, RangeFull, gateway
from shoal.agent.network.netlink import Netlink
from shoal.agent.network.port import HostPort, NetworkFault, Peer

BRIDGE = "shoal0"
POD_LINK = "eth0"
ROUTE_PROTOCOL = 83  # rtnetlink(7): above RTPROT_STATIC is free; tells our routes from everybody else's
DEFAULT_MTU = 1500
UDP = 17  # of IP's protocols
NFT_SECONDS = 20.0
T = TypeVar("T")


def link_name(pod_uid: str) -> str:
    """The host's end of a pod's veth pair: prefix and hash, 13 of the 15 bytes that a name may have."""
    return rules.LINK_PREFIX + hashlib.sha256(pod_uid.encode()).hexdigest()[:10]


def mac_of(address: IPv4Address) -> str:
    """A locally administered MAC that follows from the address, so that neighbours' caches stay right."""
    return "0a:58:" + address.packed.hex(":")


class LinuxNetwork:
    """Implements port.Network. `state` is a folder on the node's disk, `uplink` the link towards the other nodes."""

    def __init__(self, state: Path, uplink: str | None = None) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self._leases = Leases(state / "addresses.json")
        self._ports = HostPorts(state / "ports.json")
        self._uplink = uplink
        self._thread = ThreadPoolExecutor(1, "network")
        self._pods: IPv4Network | None = None
        self._arriving: dict[str, None] = {}  # whose attach waits for the thread: what can be done for all at once is
        self._leaving: dict[str, None] = {}
        self._bound: set[str] = set()  # pods whose address and element of the ruleset are in place
        self._led: set[str] = set()  # pods that the node's ports lead to
        self._mtu = DEFAULT_MTU

    async def _run(self, what: str, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (OSError, ValueError, RangeFull) as fault:  # ValueError: what we were told is no address or range
            raise NetworkFault(f"{what}: {fault}") from fault

    async def configure(self, pod_cidr: str, cluster_cidr: str) -> None:
        await self._run("setting up the pod network", lambda: self._configure(pod_cidr, cluster_cidr))

    async def sync_peers(self, peers: Sequence[Peer]) -> None:
        await self._run("setting the routes to the other nodes", lambda: self._sync_peers(peers))

    async def attach(self, pod_uid: str, netns: str, ports: Sequence[HostPort] = ()) -> str:
        self._arriving[pod_uid] = None
        what = f"attaching pod {pod_uid} to the network"
        try:
            return await self._run(what, lambda: self._attach(pod_uid, netns, ports))
        finally:
            self._arriving.pop(pod_uid, None)

    async def detach(self, pod_uid: str) -> None:
        self._leaving[pod_uid] = None
        try:
            await self._run(f"detaching pod {pod_uid} from the network", lambda: self._detach(pod_uid))
        finally:
            self._leaving.pop(pod_uid, None)

    async def attached(self) -> Mapping[str, str]:
        return {uid: str(address) for uid, address in self._leases.held.items()}

    async def remove(self) -> None:
        """Takes everything of ours away from the node: bridge, routes, rules."""
        await self._run("removing the pod network", self._remove)

    def close(self) -> None:
        self._thread.shutdown()

    # ---- in the thread ----
    def _configure(self, pod_cidr: str, cluster_cidr: str) -> None:
        pods = IPv4Network(pod_cidr)
        with Netlink() as link:
            self._mtu = _uplink_mtu(link, self._uplink)
            index = link.index(BRIDGE)
            if index is None:
                link.add_bridge(BRIDGE, self._mtu)
                index = link.index(BRIDGE)
            assert index is not None
            wanted = IPv4Interface((gateway(pods), pods.prefixlen))
            for owner, address in link.addresses():
                if owner == index and address != wanted:
                    link.delete_address(index, address)
            link.add_address(index, wanted)
            link.set_mtu(index, self._mtu)
            # Without one of its own it takes the lowest of its ports', and with each pod that goes the gateway of all
            # others could change.
            link.set_mac(index, mac_of(gateway(pods)))
            link.set_up(index)
            for pod in link.links().values():
                if pod.name.startswith(rules.LINK_PREFIX) and pod.master != index:
                    link.set_master(pod.index, index)  # somebody had taken the bridge away
                    if pod.name in {link_name(uid) for uid in self._ports.held}:
                        link.set_hairpin(pod.index)
        _set_sysctl("net/ipv4/ip_forward")
        bound = {
            link_name(uid): (str(address), mac_of(address))
            for uid, address in self._leases.held.items()
            if address in pods
        }
        self._bound = {uid for uid, address in self._leases.held.items() if address in pods}
        self._ports.free(self._ports.held.keys() - self._leases.held.keys())  # died between the two writes
        self._led = self._bound & self._ports.held.keys()
        mapped = {str(self._leases.held[uid]): self._ports.held[uid] for uid in self._led}
        _set_sysctl(f"net/ipv4/conf/{BRIDGE}/route_localnet")  # the node's 127.0.0.1 has host ports too
        _nft(rules.ruleset(BRIDGE, pod_cidr, cluster_cidr, bound, mapped))
        self._pods = pods

    def _sync_peers(self, peers: Sequence[Peer]) -> None:
        faults: list[str] = []  # one node's mistake must not cost the routes to the others
        wanted: dict[IPv4Network, IPv4Address] = {}
        for peer in peers:
            try:
                wanted[IPv4Network(peer.pod_cidr)] = IPv4Address(peer.address)
            except ValueError as fault:
                faults.append(f"node {peer.name}: {fault}")
        with Netlink() as link:
            have = {route.network: route for route in link.routes(ROUTE_PROTOCOL)}
            for network, route in have.items():
                if network not in wanted:
                    link.delete_route(route)
            for network, address in wanted.items():
                if network in have and have[network].gateway == address:
                    continue
                try:
                    link.replace_route(network, address, 0, ROUTE_PROTOCOL)
                except OSError as fault:
                    faults.append(f"{network} via {address}: {fault.strerror}")
        if faults:
            raise OSError(errno.ENETUNREACH, "is every node on the same network segment? " + "; ".join(faults))

    def _attach(self, uid: str, netns: str, ports: Sequence[HostPort]) -> str:
        if self._pods is None:
            raise OSError(errno.EAGAIN, "the node has no pod range yet: it has not reached the master")
        if ports:
            self._ports.claim(uid, ports)
        if uid not in self._bound:
            self._bind([uid, *(other for other in list(self._arriving) if other not in self._bound and other != uid)])
        address = self._leases.held[uid]
        name, mac = link_name(uid), mac_of(address)
        with Netlink() as host, Netlink(netns) as pod:
            inner = pod.index(POD_LINK)
            if inner is None or host.index(name) is None:
                host.delete_link(name)
                bridge = host.index(BRIDGE)
                if bridge is None:
                    raise OSError(errno.ENODEV, f"the bridge {BRIDGE} is gone; it is made again soon")
                descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    host.add_veth(name, self._mtu, POD_LINK, descriptor, mac, bridge)
                finally:
                    os.close(descriptor)
                inner = pod.index(POD_LINK)
            outer = host.index(name)
            assert inner is not None and outer is not None
            if ports:
                # Where bridges ask netfilter (bridge-nf-call-iptables) a pod that asks its own host port is answered
                # through the port it came from.
                host.set_hairpin(outer)
            host.set_up(outer)
            pod.set_up(inner)
            loopback = pod.index("lo")
            if loopback is not None:
                pod.set_up(loopback)
            pod.add_address(inner, IPv4Interface((address, self._pods.prefixlen)))
            pod.replace_route(IPv4Network("0.0.0.0/0"), gateway(self._pods), inner, ROUTE_PROTOCOL)
        if ports and uid not in self._led:
            self._lead(uid, address, ports)
        return str(address)

    def _lead(self, uid: str, address: IPv4Address, ports: Sequence[HostPort]) -> None:
        """Last, so that nobody is sent to a pod without an interface."""
        _nft(rules.lead(str(address), ports))
        self._led.add(uid)
        numbers = {port.port for port in ports if port.protocol == "udp"}
        if numbers:  # who was sending already would go on past the pod
            with Netlink() as host:
                own = {interface.ip for _, interface in host.addresses()}
            conntrack.forget(lambda flow: flow.protocol == UDP and flow.port in numbers and flow.target in own)

    def _bind(self, uids: Sequence[str]) -> None:
        """Addresses and elements of the ruleset: one write and one process for all of them, the first above all."""
        assert self._pods is not None
        addresses = self._leases.take(uids, self._pods)
        _nft("".join(rules.bind(link_name(uid), str(a), mac_of(a)) for uid, a in addresses.items()))
        self._bound.update(addresses)

    def _detach(self, uid: str) -> None:
        """Links first: an address is free only when nothing answers to it any more."""
        if uid not in self._leases.held:  # gone together with an earlier one, or never attached
            with Netlink() as host:
                host.delete_link(link_name(uid))
            self._ports.free([uid])
            return
        going = [uid, *(other for other in list(self._leaving) if other in self._leases.held and other != uid)]
        with Netlink() as host:
            for other in going:
                host.delete_link(link_name(other))
        addresses = {other: self._leases.held[other] for other in going}
        gone = {str(a): self._ports.held[other] for other, a in addresses.items() if other in self._ports.held}
        script = [rules.unbind(link_name(other), str(a), mac_of(a)) for other, a in addresses.items()]
        _nft("".join([*script, *(rules.mislead(address, ports) for address, ports in gone.items())]))
        if gone:
            conntrack.forget(lambda flow: str(flow.answered_by) in gone)
        self._bound.difference_update(going)
        self._led.difference_update(going)
        self._ports.free(going)
        self._leases.free(going)

    def _remove(self) -> None:
        with Netlink() as link:
            for route in link.routes(ROUTE_PROTOCOL):
                link.delete_route(route)
            link.delete_link(BRIDGE)
        _nft(rules.remove())
        self._pods, self._bound, self._led = None, set(), set()


def _uplink_mtu(link: Netlink, name: str | None) -> int:
    """The MTU towards the other nodes: of the named link, else of the one with the default route."""
    links = link.links()
    if name is not None:
        if name not in links:
            raise OSError(errno.ENODEV, f"there is no link {name}; links here: {', '.join(sorted(links))}")
        return links[name].mtu
    indexes = {route.link for route in link.routes() if route.network.prefixlen == 0}
    found = [entry.mtu for entry in links.values() if entry.index in indexes]
    return min(found, default=DEFAULT_MTU)


def _set_sysctl(name: str) -> None:
    """Namespaces inherit ip_forward from whoever made them: set it, never assume it."""
    path = Path("/proc/sys", name)
    if path.read_text().strip() != "1":
        path.write_text("1")


def _nft(script: str) -> None:
    """One nft transaction. Raises OSError with nft's own words."""
    try:
        done = subprocess.run(
            ["nft", "-f", "-"], input=script, text=True, capture_output=True, timeout=NFT_SECONDS, check=False
        )
    except FileNotFoundError:
        raise OSError(errno.ENOENT, "the nft command is missing (Debian: apt-get install nftables)") from None
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"nft did not answer in {NFT_SECONDS:.0f} s") from None
    if done.returncode != 0:
        raise OSError(errno.EINVAL, f"nft: {done.stderr.strip()}")
