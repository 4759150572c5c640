"""A small rtnetlink(7) client: links, addresses and routes, one request and one answer at a time.

A pod's network costs about 3 ms this way; `ip` processes or a general library cost 50 to 145 ms.
A socket belongs to the network namespace in which it was opened, so one thread can serve several.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from types import TracebackType

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER = 1, 3, 4, 10
IFLA_PROTINFO, IFLA_LINKINFO, IFLA_NET_NS_FD = 12, 18, 28
IFLA_BRPORT_MODE, NLA_F_NESTED = 4, 0x8000
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
IFF_UP = 1
RT_TABLE_MAIN, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST = 254, 0, 253, 1
AF_BRIDGE = 7  # linux/socket.h; the standard library has no name for it
CLONE_NEWNET = 0x40000000
RECEIVE_BYTES = 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _name(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    mtu: int
    master: int
    mac: str


@dataclass(frozen=True, slots=True)
class Route:
    network: IPv4Network
    gateway: IPv4Address | None
    link: int
    protocol: int


class Netlink:
    """One rtnetlink socket. `netns` is the path of a namespace file; None is the caller's own.
    Failures are OSErrors that name the request."""

    def __init__(self, netns: str | None = None) -> None:
        self._sequence = 0
        self._socket = _socket_in(netns)
        self._socket.bind((0, 0))

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._socket.close()

    def _ask(self, kind: int, flags: int, body: bytes, what: str) -> list[bytes]:
        """Sends one request; returns the bodies of the answers. Raises OSError with `what` as its file name."""
        self._sequence += 1
        header = struct.pack("=IHHII", 16 + len(body), kind, flags | NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + body)
        answers: list[bytes] = []
        while True:
            data = self._socket.recv(RECEIVE_BYTES)
            at = 0
            while at + 16 <= len(data):
                length, got, _, sequence, _ = struct.unpack_from("=IHHII", data, at)
                payload = data[at + 16 : at + length]
                at += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                if got == NLMSG_DONE:
                    return answers
                if got == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", payload)
                    if code:
                        raise OSError(-code, os.strerror(-code), what)
                    return answers
                answers.append(payload)

    # ---- links ----
    def links(self) -> dict[str, Link]:
        found = {}
        for body in self._ask(RTM_GETLINK, NLM_F_DUMP, _ifinfo(), "list links"):
            (index,) = struct.unpack_from("=i", body, 4)
            values = dict(_attributes(body[16:]))
            name = values[IFLA_IFNAME].rstrip(b"\0").decode()
            found[name] = Link(
                index=index,
                name=name,
                mtu=struct.unpack("=I", values[IFLA_MTU])[0] if IFLA_MTU in values else 0,
                master=struct.unpack("=I", values[IFLA_MASTER])[0] if IFLA_MASTER in values else 0,
                mac=values.get(IFLA_ADDRESS, b"").hex(":"),
            )
        return found

    def index(self, name: str) -> int | None:
        """The link's index, or None without such a link."""
        try:
            (body,) = self._ask(RTM_GETLINK, NLM_F_ACK, _ifinfo() + _name(IFLA_IFNAME, name), f"find link {name}")[:1]
        except OSError as fault:
            if fault.errno == errno.ENODEV:
                return None
            raise
        return int(struct.unpack_from("=i", body, 4)[0])

    def add_bridge(self, name: str, mtu: int) -> None:
        info = _attribute(IFLA_LINKINFO, _attribute(IFLA_INFO_KIND, b"bridge"))
        body = _ifinfo() + _name(IFLA_IFNAME, name) + _number(IFLA_MTU, mtu) + info
        self._ask(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, body, f"add bridge {name}")

    def add_veth(
        self, name: str, mtu: int, peer: str, peer_netns: int, peer_mac: str | None = None, master: int = 0
    ) -> None:
        """A veth pair: `name` here, `peer` in the namespace of the descriptor."""
        other = _ifinfo() + _name(IFLA_IFNAME, peer) + _number(IFLA_MTU, mtu) + _number(IFLA_NET_NS_FD, peer_netns)
        if peer_mac:
            other += _attribute(IFLA_ADDRESS, bytes.fromhex(peer_mac.replace(":", "")))
        data = _attribute(IFLA_INFO_DATA, _attribute(VETH_INFO_PEER, other))
        info = _attribute(IFLA_LINKINFO, _attribute(IFLA_INFO_KIND, b"veth") + data)
        body = _ifinfo() + _name(IFLA_IFNAME, name) + _number(IFLA_MTU, mtu) + info
        if master:
            body += _number(IFLA_MASTER, master)
        self._ask(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, body, f"add veth {name}")

    def set_up(self, index: int) -> None:
        self._ask(RTM_NEWLINK, NLM_F_ACK, _ifinfo(index, IFF_UP, IFF_UP), f"set link {index} up")

    def set_mtu(self, index: int, mtu: int) -> None:
        self._ask(RTM_NEWLINK, NLM_F_ACK, _ifinfo(index) + _number(IFLA_MTU, mtu), f"set mtu of link {index}")

    def set_mac(self, index: int, mac: str) -> None:
        body = _ifinfo(index) + _attribute(IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
        self._ask(RTM_NEWLINK, NLM_F_ACK, body, f"set the address of link {index} to {mac}")

    def set_master(self, index: int, master: int) -> None:
        body = _ifinfo(index) + _number(IFLA_MASTER, master)
        self._ask(RTM_NEWLINK, NLM_F_ACK, body, f"put link {index} on bridge {master}")

    def set_hairpin(self, index: int) -> None:
        """A bridge's port that may send back what came from it."""
        body = struct.pack("=BxHiII", AF_BRIDGE, 0, index, 0, 0)
        body += _attribute(IFLA_PROTINFO | NLA_F_NESTED, _attribute(IFLA_BRPORT_MODE, b"\1"))
        self._ask(RTM_SETLINK, NLM_F_ACK, body, f"set hairpin mode of link {index}")

    def delete_link(self, name: str) -> bool:
        """True if there was one."""
        try:
            self._ask(RTM_DELLINK, NLM_F_ACK, _ifinfo() + _name(IFLA_IFNAME, name), f"delete link {name}")
        except OSError as fault:
            if fault.errno == errno.ENODEV:
                return False
            raise
        return True

    # ---- addresses ----
    def addresses(self) -> list[tuple[int, IPv4Interface]]:
        """(link index, address) of every IPv4 address."""
        found = []
        for body in self._ask(RTM_GETADDR, NLM_F_DUMP, struct.pack("=BBBBi", socket.AF_INET, 0, 0, 0, 0), "addresses"):
            _, prefix, _, _, index = struct.unpack_from("=BBBBi", body)
            values = dict(_attributes(body[8:]))
            local = values.get(IFA_LOCAL, values.get(IFA_ADDRESS))
            if local is not None:
                found.append((index, IPv4Interface((local, prefix))))
        return found

    def _address(self, kind: int, flags: int, index: int, address: IPv4Interface, what: str) -> None:
        head = struct.pack("=BBBBi", socket.AF_INET, address.network.prefixlen, 0, 0, index)
        packed = address.ip.packed
        body = head + _attribute(IFA_LOCAL, packed) + _attribute(IFA_ADDRESS, packed)
        self._ask(kind, NLM_F_ACK | flags, body, f"{what} {address} on link {index}")

    def add_address(self, index: int, address: IPv4Interface) -> None:
        self._address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, address, "add address")

    def delete_address(self, index: int, address: IPv4Interface) -> None:
        self._address(RTM_DELADDR, 0, index, address, "delete address")

    # ---- routes ----
    def routes(self, protocol: int | None = None) -> list[Route]:
        """IPv4 routes of the main table, of one protocol if given."""
        head = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
        found = []
        for body in self._ask(RTM_GETROUTE, NLM_F_DUMP, head, "routes"):
            _, length, _, _, table, proto, _, kind, _ = struct.unpack_from("=BBBBBBBBI", body)
            if table != RT_TABLE_MAIN or kind != RTN_UNICAST or protocol not in (None, proto):
                continue
            values = dict(_attributes(body[12:]))
            gateway = values.get(RTA_GATEWAY)
            found.append(
                Route(
                    network=IPv4Network((values.get(RTA_DST, b"\0\0\0\0"), length)),
                    gateway=IPv4Address(gateway) if gateway else None,
                    link=struct.unpack("=I", values[RTA_OIF])[0] if RTA_OIF in values else 0,
                    protocol=proto,
                )
            )
        return found

    def _route(
        self, kind: int, flags: int, network: IPv4Network, gateway: IPv4Address | None, link: int, protocol: int
    ) -> None:
        scope = RT_SCOPE_LINK if gateway is None else RT_SCOPE_UNIVERSE
        head = (socket.AF_INET, network.prefixlen, 0, 0, RT_TABLE_MAIN, protocol, scope, RTN_UNICAST, 0)
        body = struct.pack("=BBBBBBBBI", *head) + _attribute(RTA_DST, network.network_address.packed)
        if gateway is not None:
            body += _attribute(RTA_GATEWAY, gateway.packed)
        if link:
            body += _number(RTA_OIF, link)
        self._ask(kind, NLM_F_ACK | flags, body, f"route to {network} via {gateway}")

    def replace_route(self, network: IPv4Network, gateway: IPv4Address | None, link: int, protocol: int) -> None:
        self._route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, network, gateway, link, protocol)

    def delete_route(self, route: Route) -> None:
        self._route(RTM_DELROUTE, 0, route.network, route.gateway, route.link, route.protocol)


def _socket_in(netns: str | None) -> socket.socket:
    """A route socket in the namespace; the calling thread enters it for this moment only (setns(2) is per thread)."""
    if netns is None:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(netns)
        try:
            return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        finally:
            if _libc.setns(home, CLONE_NEWNET) != 0:
                os._exit(70)  # a thread lost in a pod's namespace must never serve another pod
    finally:
        os.close(home)


def _enter(netns: str) -> None:
    target = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(target, CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), netns)
    finally:
        os.close(target)
