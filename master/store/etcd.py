"""The port's adapter to a real etcd, over grpc.aio with messages of our own (docs/adr/0002-store-client.md)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from shoal.master.model import Fault, Invalid, NoSpace, TooLarge, Unavailable
from shoal.master.store.port import (
    Compacted,
    Compare,
    HistoryEvent,
    KeyValue,
    Lease,
    Page,
    Put,
    Status,
    TxnResult,
    WatchBatch,
    Write,
)
from shoal.proto.v1 import etcd_pb2 as e

CALL_TIMEOUT_S = 2.0  # below the leader's lease (4 s), so that a lost answer is asked for again while it still leads
MAINTENANCE_TIMEOUT_S = 120.0  # defragmenting and compacting gigabytes
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),  # a page or a catch-up may be above gRPC's 4 MiB
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),  # a silent second try of a transaction is not ours to judge
    ("grpc.use_local_subchannel_pool", 1),  # one connection per client: the lease's must not queue behind writes
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),  # etcd refuses pings more often than every 5 s
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
)

METHODS: dict[str, tuple[str, type[Any], type[Any]]] = {
    "range": ("/etcdserverpb.KV/Range", e.RangeRequest, e.RangeResponse),
    "txn": ("/etcdserverpb.KV/Txn", e.TxnRequest, e.TxnResponse),
    "compact": ("/etcdserverpb.KV/Compact", e.CompactionRequest, e.CompactionResponse),
    "grant": ("/etcdserverpb.Lease/LeaseGrant", e.LeaseGrantRequest, e.LeaseGrantResponse),
    "revoke": ("/etcdserverpb.Lease/LeaseRevoke", e.LeaseRevokeRequest, e.LeaseRevokeResponse),
    "status": ("/etcdserverpb.Maintenance/Status", e.StatusRequest, e.StatusResponse),
    "alarm": ("/etcdserverpb.Maintenance/Alarm", e.AlarmRequest, e.AlarmResponse),
    "defragment": ("/etcdserverpb.Maintenance/Defragment", e.DefragmentRequest, e.DefragmentResponse),
}
WATCH = "/etcdserverpb.Watch/Watch"
KEEPALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"

# Answers by which etcd says that it did not take the request (api/v3rpc/rpctypes/error.go).
REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED)
NEVER_SENT = (
    "failed to connect to all addresses",
    "Connect Failed",
    "DNS resolution failed",
    "connections to all backends failing",
)
COMPARE_TARGETS = {"create": e.CompareRequest.CREATE, "mod": e.CompareRequest.MOD, "value": e.CompareRequest.VALUE}

T = TypeVar("T")


@dataclass(frozen=True)
class Tls:
    """PEM bytes: the authority that signed etcd's certificate, our certificate and its key."""

    ca: bytes
    certificate: bytes | None = None
    key: bytes | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


class Etcd:
    """A client of one etcd cluster. Calls go to one endpoint; when it does not answer, the next takes over.
    Must be made and used on one event loop."""

    def __init__(self, endpoints: Sequence[str], tls: Tls | None = None, timeout: float = CALL_TIMEOUT_S) -> None:
        if not endpoints:
            raise Invalid("no etcd endpoint is given: name at least one as host:port")
        self._endpoints = [_Endpoint(address, tls) for address in endpoints]
        self._current = 0
        self._timeout = timeout

    async def range(self, start: bytes, end: bytes = b"", *, limit: int = 0, revision: int = 0) -> Page:
        request = e.RangeRequest(key=start, range_end=end, limit=limit, revision=revision)
        answer = await self._call("range", request)
        items = [KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease) for kv in answer.kvs]
        return Page(answer.header.revision, items, answer.more)

    async def txn(
        self, compares: Sequence[Compare], writes: Sequence[Write], otherwise: Sequence[bytes] = ()
    ) -> TxnResult:
        answer = await self._call("txn", txn_request(compares, writes, otherwise))
        found: list[KeyValue | None] = []
        if not answer.succeeded:
            for response in answer.responses:
                kvs = response.response_range.kvs
                kv = kvs[0] if kvs else None
                found.append(kv and KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease))
        return TxnResult(answer.succeeded, answer.header.revision, found)

    async def watch(self, start: bytes, end: bytes, from_revision: int) -> AsyncGenerator[WatchBatch]:
        endpoint = self._endpoint()
        create = e.WatchCreateRequest(
            key=start, range_end=end, start_revision=from_revision, progress_notify=True, fragment=True
        )
        call = endpoint.watch()
        assemble = Assembler()
        with self._stream(endpoint, call):
            # the request side stays open: closing it would end the watch
            await call.write(e.WatchRequest(create_request=create))
            while True:
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    raise Unavailable(f"etcd at {endpoint.address} ended the watch: {await call.details()}")
                for batch in assemble.take(answer):
                    yield batch

    async def grant(self, ttl: float) -> Lease:
        answer = await self._call("grant", e.LeaseGrantRequest(TTL=max(1, round(ttl))))
        if answer.error:
            raise Unavailable(f"etcd grants no lease: {answer.error}")
        return Lease(answer.ID, float(answer.TTL))

    async def keepalive(self, lease: int) -> float:
        endpoint = self._endpoint()
        call = endpoint.keepalive(timeout=self._timeout)
        with self._stream(endpoint, call):
            await call.write(e.LeaseKeepAliveRequest(ID=lease))
            answer = await call.read()
            if answer is grpc.aio.EOF:
                raise Unavailable(f"etcd at {endpoint.address} ended the lease's stream")
            return float(answer.TTL)

    @contextlib.contextmanager
    def _stream(self, endpoint: _Endpoint, call: Any) -> Iterator[None]:
        """Ends the call in any case; its errors become Faults, and the next call goes elsewhere."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            self._turn_from(endpoint)
            raise fault_of(error, endpoint) from error
        except asyncio.InvalidStateError as error:  # the stream had ended before something was written to it
            self._turn_from(endpoint)
            raise Unavailable(f"etcd at {endpoint.address} ended the stream: {error}") from error
        finally:
            call.cancel()

    async def revoke(self, lease: int) -> None:
        try:
            await self._call("revoke", e.LeaseRevokeRequest(ID=lease))
        except _NoSuchLease:
            pass

    async def compact(self, revision: int) -> None:
        try:
            await self._call("compact", e.CompactionRequest(revision=revision, physical=True), MAINTENANCE_TIMEOUT_S)
        except Compacted:
            pass

    async def status(self) -> Status:
        answer = await self._call("status", e.StatusRequest())
        alarms = await self._call("alarm", e.AlarmRequest(action=e.AlarmRequest.GET))
        no_space = any(alarm.alarm == e.NOSPACE for alarm in alarms.alarms)
        return Status(answer.header.revision, answer.version, answer.db_size, answer.db_size_in_use, no_space)

    async def defragment(self) -> None:
        for endpoint in self._endpoints:
            await self._ask(endpoint, "defragment", e.DefragmentRequest(), MAINTENANCE_TIMEOUT_S)

    async def disarm(self) -> None:
        alarms = await self._call("alarm", e.AlarmRequest(action=e.AlarmRequest.GET))
        for alarm in alarms.alarms:
            if alarm.alarm == e.NOSPACE:
                request = e.AlarmRequest(action=e.AlarmRequest.DEACTIVATE, member_id=alarm.member_id, alarm=e.NOSPACE)
                await self._call("alarm", request)

    async def close(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.close()

    def _endpoint(self) -> _Endpoint:
        return self._endpoints[self._current % len(self._endpoints)]

    def _turn_from(self, endpoint: _Endpoint) -> None:
        """The next call goes elsewhere, unless another call has turned already."""
        if self._endpoint() is endpoint:
            self._current += 1

    async def _call(self, method: str, request: object, timeout: float = 0.0) -> Any:
        endpoint = self._endpoint()
        try:
            return await self._ask(endpoint, method, request, timeout or self._timeout)
        except Unavailable:
            self._turn_from(endpoint)
            raise

    async def _ask(self, endpoint: _Endpoint, method: str, request: object, timeout: float) -> Any:
        try:
            return await endpoint.unary(method)(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise fault_of(error, endpoint) from error
        except asyncio.CancelledError:
            raise
        except grpc.RpcError as error:
            raise Unavailable(f"etcd at {endpoint.address}: {error}", "unknown") from error


class _Endpoint:
    """One member's channel, opened at the first call."""

    def __init__(self, address: str, tls: Tls | None) -> None:
        self.address = address
        # gRPC reports a refused certificate as a lost connection
        self.hint = "; a certificate that is missing or not accepted on either side looks the same" if tls else ""
        self._tls = tls
        self._channel: grpc.aio.Channel | None = None
        self._unary: dict[str, Callable[..., Awaitable[Any]]] = {}

    def unary(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method not in self._unary:
            path, request, response = METHODS[method]
            self._unary[method] = self._open().unary_unary(
                path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
            )
        return self._unary[method]

    def watch(self) -> Any:
        return self._open().stream_stream(
            WATCH,
            request_serializer=e.WatchRequest.SerializeToString,
            response_deserializer=e.WatchResponse.FromString,
        )()

    def keepalive(self, timeout: float) -> Any:
        return self._open().stream_stream(
            KEEPALIVE,
            request_serializer=e.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=e.LeaseKeepAliveResponse.FromString,
        )(timeout=timeout)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
            self._unary.clear()

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            if self._tls is None:
                self._channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
            else:
                self._channel = grpc.aio.secure_channel(self.address, self._tls.credentials(), options=CHANNEL_OPTIONS)
        return self._channel


class Assembler:
    """Makes whole revisions of a watch's messages, whose events may be split over fragments."""

    def __init__(self) -> None:
        self._held: list[HistoryEvent] = []  # of the one revision that may go on in the next fragment

    def take(self, answer: e.WatchResponse) -> list[WatchBatch]:
        """The revisions that this message completes. Raises Compacted or Unavailable when it ends the watch."""
        if answer.compact_revision:
            raise Compacted(
                f"etcd has compacted its history up to revision {answer.compact_revision}: list again",
                answer.compact_revision,
            )
        if answer.canceled:
            raise Unavailable(f"etcd ended the watch: {answer.cancel_reason or 'no reason given'}")
        if not answer.events and not answer.fragment and not self._held:
            # A created watch's header may be ahead of its first events: only a progress message tells a revision.
            return [] if answer.created else [WatchBatch(answer.header.revision, ())]
        batches: list[WatchBatch] = []
        for event in answer.events:
            kv = event.kv
            if self._held and self._held[0].mod_revision != kv.mod_revision:
                batches.append(WatchBatch(self._held[0].mod_revision, self._held))
                self._held = []
            deleted = event.type == e.HistoryEvent.DELETE
            self._held.append(
                HistoryEvent(kv.key, None if deleted else kv.value, kv.create_revision, kv.mod_revision, kv.lease)
            )
        if not answer.fragment and self._held:
            batches.append(WatchBatch(self._held[0].mod_revision, self._held))
            self._held = []
        return batches


class _NoSuchLease(Invalid):
    pass


def txn_request(compares: Sequence[Compare], writes: Sequence[Write], otherwise: Sequence[bytes]) -> e.TxnRequest:
    """The message of a transaction."""
    request = e.TxnRequest()
    for compare in compares:
        entry = request.compare.add(target=COMPARE_TARGETS[compare.target], key=compare.key)
        if isinstance(compare.value, bytes):
            entry.value = compare.value
        elif compare.target == "create":
            entry.create_revision = compare.value
        else:
            entry.mod_revision = compare.value
    add = request.success.add
    for write in writes:
        if isinstance(write, Put):
            put = add().request_put
            put.key = write.key
            put.value = write.value
            if write.lease:
                put.lease = write.lease
        else:
            add().request_delete_range.key = write.key
    for key in otherwise:
        request.failure.add().request_range.key = key
    return request


def fault_of(error: grpc.aio.AioRpcError, endpoint: _Endpoint) -> Fault:
    """What a failed call means. Whatever etcd does not certainly refuse may have been carried out."""
    code = error.code()
    details = error.details() or ""
    where = f"etcd at {endpoint.address}: {details or code.name}"
    if "database space exceeded" in details:
        return NoSpace(f"{where}; its quota is used up: compact and defragment it, or raise --quota-backend-bytes")
    if "has been compacted" in details:
        return Compacted(where)
    if "lease not found" in details:
        return _NoSuchLease(where)
    if "request is too large" in details or "message larger than max" in details:
        return TooLarge(where)
    if "too many requests" in details or any(mark in details for mark in NEVER_SENT):
        return Unavailable(where + endpoint.hint, "none")
    if code in REFUSALS:
        return Invalid(where)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return Unavailable(f"{where}; etcd refuses this client: check its certificate", "none")
    return Unavailable(where, "unknown")
