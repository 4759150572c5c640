"""Connections that the kernel tracks (nfnetlink, ctnetlink): finding and forgetting those that lead somewhere.

A flow keeps the translation that it began with: without this a datagram client would go on sending to a pod that is
gone, or past one that has come.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

NETLINK_NETFILTER = 12
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
CT_NEW, CT_GET, CT_DELETE = (1 << 8) | 0, (1 << 8) | 1, (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID = 1, 2, 12
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V4_DST = 1, 2
CTA_PROTO_NUM, CTA_PROTO_DST_PORT = 1, 3
HEADER, FAMILY = struct.Struct("=IHHII"), struct.Struct(">BBH")  # nlmsghdr; nfgenmsg
RECEIVE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Flow:
    """One tracked connection, as its first packet had it, and whence the answers come."""

    protocol: int  # of IP: 6 TCP, 17 UDP, 132 SCTP
    target: IPv4Address
    port: int
    answered_by: IPv4Address
    tuple_bytes: bytes  # names it to the kernel
    id: bytes


def forget(chosen: Callable[[Flow], bool]) -> int:
    """Deletes the flows of this network namespace that are chosen; how many. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as link:
        link.bind((0, 0))
        found = [flow for flow in list(_flows(link)) if chosen(flow)]
        return sum(_delete(link, flow) for flow in found)


def _flows(link: socket.socket) -> Iterator[Flow]:
    _send(link, CT_GET, NLM_F_REQUEST | NLM_F_DUMP, b"")
    while True:
        for kind, body in _messages(link.recv(RECEIVE_BYTES)):
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                _check(body)
            elif (flow := _flow(dict(_attributes(body[FAMILY.size :])))) is not None:
                yield flow


def _flow(attributes: dict[int, bytes]) -> Flow | None:
    """None for what has no ports."""
    first = _tuple(attributes.get(CTA_TUPLE_ORIG, b""))
    answer = _tuple(attributes.get(CTA_TUPLE_REPLY, b""))
    if first is None or answer is None:
        return None
    return Flow(first[0], first[2], first[3], answer[1], attributes[CTA_TUPLE_ORIG], attributes.get(CTA_ID, b""))


def _tuple(data: bytes) -> tuple[int, IPv4Address, IPv4Address, int] | None:
    """(protocol, source, destination, destination port)"""
    parts = dict(_attributes(data))
    ip, proto = dict(_attributes(parts.get(CTA_TUPLE_IP, b""))), dict(_attributes(parts.get(CTA_TUPLE_PROTO, b"")))
    if not {CTA_IP_V4_SRC, CTA_IP_V4_DST} <= ip.keys() or not {CTA_PROTO_NUM, CTA_PROTO_DST_PORT} <= proto.keys():
        return None
    (port,) = struct.unpack_from(">H", proto[CTA_PROTO_DST_PORT])
    return proto[CTA_PROTO_NUM][0], IPv4Address(ip[CTA_IP_V4_SRC][:4]), IPv4Address(ip[CTA_IP_V4_DST][:4]), port


def _delete(link: socket.socket, flow: Flow) -> bool:
    """False when it has ended meanwhile. The id keeps a new flow with the same tuple out of it."""
    body = _attribute(CTA_TUPLE_ORIG | 0x8000, flow.tuple_bytes)  # NLA_F_NESTED
    body += _attribute(CTA_ID, flow.id) if flow.id else b""
    _send(link, CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, body)
    for kind, answer in _messages(link.recv(RECEIVE_BYTES)):
        if kind == NLMSG_ERROR:
            try:
                _check(answer)
            except FileNotFoundError:
                return False
    return True


def _send(link: socket.socket, kind: int, flags: int, body: bytes) -> None:
    payload = FAMILY.pack(socket.AF_INET, 0, 0) + body
    link.send(HEADER.pack(HEADER.size + len(payload), kind, flags, 0, 0) + payload)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, at)
        yield kind, data[at + HEADER.size : at + length]
        at += max((length + 3) & ~3, HEADER.size)


def _check(body: bytes) -> None:
    (code,) = struct.unpack_from("=i", body)
    if code:
        raise OSError(-code, f"netfilter: {os.strerror(-code)}" if -code != errno.ENOENT else "no such flow")


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3
