"""Passes calls on to the leader with this master's certificate, saying for whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from shoal.master.api.auth import Identity
from shoal.master.api.faults import Invalid
from shoal.master.api.grpc_server import CODES, FAILURE_KEY, FORWARDED_KEY, SERVICE, Method
from shoal.master.model import Expired, Fault, NotFound, Unavailable
from shoal.proto.v1 import cluster_pb2 as c

MASTER_DNS = "shoal-master"  # in every master's certificate
OPTIONS = (
    ("grpc.ssl_target_name_override", MASTER_DNS),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)


class Forwarder:
    """Keeps channels to the masters that led."""

    def __init__(self, ca: bytes, certificate: bytes, key: bytes) -> None:
        self._credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        self._address = ""
        self._channels: dict[str, grpc.aio.Channel] = {}

    def lead_to(self, address: str) -> None:
        """From now on calls go to host:port."""
        self._address = address
        if address not in self._channels:
            self._channels[address] = grpc.aio.secure_channel(address, self._credentials, OPTIONS)

    async def close(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    async def call(self, method: Method, request: Any, caller: Identity) -> Message:
        """Raises Fault, the leader's own where it is one."""
        made = self._open().unary_unary(_path(method), method.request.SerializeToString, method.response.FromString)
        try:
            answer: Message = await made(request, metadata=_metadata(caller))
        except grpc.aio.AioRpcError as error:
            raise fault_of(error) from None
        return answer

    async def stream(self, method: Method, request: Any, caller: Identity) -> AsyncIterator[Message]:
        """Raises Fault; closing the iterator ends the leader's call."""
        channel = self._open()
        make: Any = channel.stream_stream if method.streams_in else channel.unary_stream
        call = make(_path(method), method.request.SerializeToString, method.response.FromString)(
            request, metadata=_metadata(caller)
        )
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise fault_of(error) from None
        finally:
            call.cancel()

    def _open(self) -> grpc.aio.Channel:
        if self._address not in self._channels:
            raise Unavailable("no leader is known now: ask again in a moment")
        return self._channels[self._address]


def _path(method: Method) -> str:
    return f"/{SERVICE}/{method.name}"


def _metadata(caller: Identity) -> tuple[tuple[str, str], ...]:
    return ((FORWARDED_KEY, f"{caller.organization}/{caller.name}"),)


def fault_of(error: grpc.aio.AioRpcError) -> Fault:
    """The fault that a status stands for."""
    for key, value in error.trailing_metadata() or ():
        if key == FAILURE_KEY and isinstance(value, bytes):
            try:
                return _revived(c.Failure.FromString(value))
            except DecodeError:
                break
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return Unavailable(f"the leader does not answer: {error.details()}", outcome="unknown")
    return Fault(f"the leader answered {error.code().name}: {error.details()}")


def _revived(failure: c.Failure) -> Fault:
    fault: Fault
    if failure.reason == "Invalid":
        fault = Invalid(failure.message, [(f.path, f.message) for f in failure.fields])
    else:
        kinds = {"NotFound": NotFound, "Expired": Expired}
        fault = kinds.get(failure.reason, Fault)(failure.message)
    fault.reason = failure.reason if failure.reason in CODES else "Internal"
    fault.retryable = failure.retryable
    return fault
