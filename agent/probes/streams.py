"""TCP connections for probes: as little per connection as a node with hundreds of probes a second can afford.

An adapter. Plain sockets on the running loop, without transports (docs/adr has the measurements); TLS, which is rare,
goes through asyncio's streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from functools import cache
from typing import Protocol

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() leaves no TIME_WAIT behind


class Connection(Protocol):
    async def send(self, data: bytes) -> None: ...
    async def receive(self, size: int) -> bytes:
        """b"" at the end."""
        ...


class Plain:
    __slots__ = ("_loop", "_sock")

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop, self._sock = loop, sock

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def receive(self, size: int) -> bytes:
        return await self._loop.sock_recv(self._sock, size)


class Tls:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self, size: int) -> bytes:
        return await self._reader.read(size)


async def connected(host: str, port: int) -> socket.socket:
    """A connection to an address or a name; the caller closes it. Raises OSError with words of its own."""
    family, address = await _resolved(host, port)
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _resolved(host: str, port: int) -> tuple[int, tuple[object, ...]]:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
            return family, (host, port)
        except OSError:
            continue
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return found[0][0], found[0][4]


@contextlib.asynccontextmanager
async def connection(host: str, port: int, tls_name: str | None) -> AsyncIterator[Connection]:
    """An open connection; `tls_name`: with TLS, for that name. Raises OSError."""
    sock = await connected(host, port)
    if tls_name is None:
        try:
            yield Plain(asyncio.get_running_loop(), sock)
        finally:
            sock.close()
        return
    try:
        reader, writer = await asyncio.open_connection(sock=sock, ssl=unverified(), server_hostname=tls_name)
    except BaseException:
        sock.close()
        raise
    try:
        yield Tls(reader, writer)
    finally:
        writer.transport.abort()


@cache
def unverified() -> ssl.SSLContext:
    """Pods are asked by address, with certificates for other names, or self-signed: as Kubernetes, none is checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
