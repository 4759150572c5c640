"""The Connector over grpc.aio and mutual TLS: one channel per master, shared by the session and the tunnels."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from shoal.agent.session import LinkLost
from shoal.proto.v1 import session_pb2 as s

SESSION, TUNNEL = "/shoal.v1.Agents/Session", "/shoal.v1.Agents/Tunnel"
MAX_MESSAGE = 16 << 20  # an assignment's part is 1 MiB, or one larger object
KEEPALIVE_MS = 5_000
KEEPALIVE_TIMEOUT_MS = 5_000
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
    ("grpc.http2.bdp_probe", 0),  # it answers each message after a pause with a ping of its own
    ("grpc.http2.lookahead_bytes", 1 << 20),  # the window, which the probe would have found
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),  # the session has its own, longer backoff above this
]
FAULTS = (grpc.RpcError, grpc.aio.BaseError, grpc.aio.UsageError, asyncio.InvalidStateError)
Out = TypeVar("Out")
In = TypeVar("In")
T = TypeVar("T")


class CertificateFault(Exception):
    """The agent's certificate or key cannot be read; the message says which file and why."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: the cluster's authority, and this node's own pair."""

    ca: Path
    certificate: Path
    key: Path

    def credentials(self) -> grpc.ChannelCredentials:
        """Read anew for each channel, so that a renewed certificate is used at the next connection."""
        ca, certificate, key = (_read(path) for path in (self.ca, self.certificate, self.key))
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=certificate)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise CertificateFault(f"{path} cannot be read: {fault.strerror or fault}") from fault


@dataclass(frozen=True, slots=True)
class Pems:
    """The same, as PEM texts in memory."""

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


class Identity(Protocol):
    """Who shows itself to the masters. Raises CertificateFault."""

    def credentials(self) -> grpc.ChannelCredentials: ...


class GrpcLink(Generic[Out, In]):
    """One call as a stream of messages both ways.

    grpc.aio ends the whole call when a read or write is cancelled, so each runs in a task of its own: who waits for it
    may be cancelled, and the message stays for the next who asks.
    """

    def __init__(self, call: grpc.aio.StreamStreamCall[Out, In]) -> None:
        self._call = call
        self._reading: asyncio.Task[object] | None = None
        self._writing: asyncio.Task[None] | None = None

    async def send(self, message: Out) -> None:
        try:
            while self._writing is not None:
                await self._finish_writing(self._writing)
            self._writing = asyncio.create_task(self._write(message))
            await self._finish_writing(self._writing)
        except FAULTS as fault:
            raise LinkLost(await self._why(fault)) from fault

    async def _write(self, message: Out) -> None:
        await self._call.write(message)

    async def _finish_writing(self, writing: asyncio.Task[None]) -> None:
        try:
            await _outlive(writing)
        finally:
            if writing.done() and self._writing is writing:
                self._writing = None

    async def receive(self) -> In | None:
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        reading = self._reading
        try:
            message = await _outlive(reading)
        except FAULTS as fault:
            raise LinkLost(await self._why(fault)) from fault
        finally:
            if reading.done() and self._reading is reading:
                self._reading = None
        if message is not grpc.aio.EOF:
            return cast("In", message)
        if await self._call.code() == grpc.StatusCode.OK:
            return None
        raise LinkLost(await self._why(None))

    async def _read(self) -> object:
        return await self._call.read()

    async def finish(self) -> None:
        """Says that no more will be sent; what the other side still sends is lost."""
        try:
            await self._call.done_writing()
        except FAULTS:
            pass  # it is over already

    async def close(self) -> None:
        self._call.cancel()
        tasks = [task for task in (self._reading, self._writing) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _why(self, fault: BaseException | None) -> str:
        if not self._call.done():
            return str(fault) or type(fault).__name__
        code, details = await self._call.code(), await self._call.details()
        return f"{code.name}: {details}" if details else code.name


class PlainLink(GrpcLink[s.Up, s.Down]):
    """A session whose reads and writes run in whose asks: cancelling one ends the call, which is what a session that
    gives up does next. Half the work of a message, where thousands of sessions share a process."""

    async def send(self, message: s.Up) -> None:
        try:
            await self._call.write(message)
        except FAULTS as fault:
            raise LinkLost(await self._why(fault)) from fault
        except asyncio.CancelledError:
            raise self._lost_or_cancelled() from None

    async def receive(self) -> s.Down | None:
        try:
            message = await self._call.read()
        except FAULTS as fault:
            raise LinkLost(await self._why(fault)) from fault
        except asyncio.CancelledError:
            raise self._lost_or_cancelled() from None
        if isinstance(message, s.Down):
            return message
        if await self._call.code() == grpc.StatusCode.OK:
            return None
        raise LinkLost(await self._why(None))

    def _lost_or_cancelled(self) -> BaseException:
        """grpc tells of a call that was cancelled beneath us as if we had been."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return asyncio.CancelledError()
        return LinkLost("the call was cancelled")


async def _outlive(task: asyncio.Task[T]) -> T:
    """The task's result; cancelling the wait leaves the task alone. A call that was cancelled is a lost link."""
    await asyncio.wait({task})
    if task.cancelled():
        raise LinkLost("the call was cancelled")
    return task.result()


class TunnelLink(GrpcLink[s.TunnelFrame, s.TunnelFrame]):
    """A tunnel: what was sent reaches the master before the call ends."""

    def __init__(self, call: grpc.aio.StreamStreamCall[s.TunnelFrame, s.TunnelFrame]) -> None:
        super().__init__(call)
        self._ended = False

    async def send(self, message: s.TunnelFrame) -> None:
        await super().send(message)
        self._ended = message.WhichOneof("frame") == "end"

    async def close(self) -> None:
        if self._ended:
            await self.finish()
            try:
                while await self.receive() is not None:
                    pass  # the master ends the call when it has read our last frame
            except LinkLost:
                pass
        await super().close()


class GrpcConnector:
    """Implements session.Connector. `close` ends every channel. `plain`: many of them in one process; `options` come
    on top of ours."""

    def __init__(self, certificates: Identity, *, plain: bool = False, options: Sequence[tuple[str, Any]] = ()) -> None:
        self._certificates = certificates
        self._link: Callable[[Any], GrpcLink[s.Up, s.Down]] = PlainLink if plain else GrpcLink
        self._options = [*OPTIONS, *options]
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def connect(self, address: str) -> GrpcLink[s.Up, s.Down]:
        await self._drop(address)  # a new session gets a new connection, and a certificate that may be newer
        # Not waiting for the channel: the call itself then fails with the reason, a refused certificate included.
        channel = self._channel(address)
        return self._link(_method(channel, SESSION, s.Up.SerializeToString, s.Down.FromString)())

    async def tunnel(self, address: str) -> TunnelLink:
        channel = self._channel(address)
        frame = s.TunnelFrame
        return TunnelLink(_method(channel, TUNNEL, frame.SerializeToString, frame.FromString)())

    async def close(self) -> None:
        for address in list(self._channels):
            await self._drop(address)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            try:
                credentials = self._certificates.credentials()
            except CertificateFault as fault:
                raise LinkLost(str(fault)) from fault
            self._channels[address] = grpc.aio.secure_channel(address, credentials, options=self._options)
        return self._channels[address]

    async def _drop(self, address: str) -> None:
        channel = self._channels.pop(address, None)
        if channel is not None:
            await channel.close()


def _method(
    channel: grpc.aio.Channel, path: str, serialize: Callable[[Any], bytes], parse: Callable[[bytes], Any]
) -> Any:
    return channel.stream_stream(path, request_serializer=serialize, response_deserializer=parse)
