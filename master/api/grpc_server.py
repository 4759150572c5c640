"""The Cluster service on grpc.aio with mutual TLS: identity, routing to the leader, failures as status codes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NoReturn, Protocol, TypeVar

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID
from google.protobuf.message import Message

from shoal.master.api import auth
from shoal.master.api.auth import Identity
from shoal.master.api.faults import failure_of
from shoal.master.model import Fault, NotLeader, Unavailable
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import session_pb2 as s

log = logging.getLogger("shoal.api")

SERVICE = "shoal.v1.Cluster"
FAILURE_KEY = "shoal-failure-bin"
FORWARDED_KEY = "shoal-forwarded-identity"
MAX_REQUEST_BYTES = 32 << 20
MAX_HELD_BYTES = 256 << 20  # of all requests that wait for an answer: etcd may be slow, memory is bounded
BREAK_OFF_SECONDS = 0.05  # within which a cancelled call is known to be cancelled
Context = grpc.aio.ServicerContext[Any, Any]
Answer = TypeVar("Answer")

SERVER_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.so_reuseport", 0),  # else a second master on the port would silently share it
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.keepalive_time_ms", 10_000),  # a peer that is frozen or cut off is noticed
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
    ("grpc.http2.bdp_probe", 0),  # it answers each message after a pause with a ping of its own
    ("grpc.http2.lookahead_bytes", 1 << 20),  # the window, which the probe would have found
)

CODES = {
    "AlreadyExists": grpc.StatusCode.ALREADY_EXISTS,
    "NotFound": grpc.StatusCode.NOT_FOUND,
    "Conflict": grpc.StatusCode.ABORTED,
    "Invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "Forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "Unavailable": grpc.StatusCode.UNAVAILABLE,
    "UnknownOutcome": grpc.StatusCode.UNAVAILABLE,
    "NotLeader": grpc.StatusCode.UNAVAILABLE,
    "Expired": grpc.StatusCode.OUT_OF_RANGE,
    "TooLarge": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "NoSpace": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "Timeout": grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True, slots=True)
class Method:
    """One verb: its name on the wire, its messages, and which sides stream."""

    name: str
    verb: str  # the function of ClusterService
    request: type[Message]
    response: type[Message]
    streams_in: bool = False
    streams_out: bool = False


METHODS = (
    Method("Create", "create", c.WriteRequest, c.WriteResponse),
    Method("Update", "update", c.WriteRequest, c.WriteResponse),
    Method("Apply", "apply", c.WriteRequest, c.WriteResponse),
    Method("Delete", "delete", c.DeleteRequest, c.WriteResponse),
    Method("Get", "get", c.GetRequest, c.Object),
    Method("List", "list", c.ListRequest, c.ListResponse),
    Method("Watch", "watch", c.WatchRequest, c.WatchBatch, streams_out=True),
    Method("Scale", "scale", c.ScaleRequest, c.WriteResponse),
    Method("Logs", "logs", c.LogsRequest, s.TunnelFrame, streams_out=True),
    Method("Exec", "exec", c.ExecRequest, s.TunnelFrame, streams_in=True, streams_out=True),
    Method("Attach", "attach", c.AttachRequest, s.TunnelFrame, streams_in=True, streams_out=True),
    Method("Copy", "copy", c.CopyRequest, s.TunnelFrame, streams_in=True, streams_out=True),
    Method("Top", "top", c.TopRequest, c.TopResponse),
    Method("LoadImage", "load_image", c.LoadImageRequest, c.LoadImageResponse, streams_in=True, streams_out=True),
    Method("RemoveImage", "remove_image", c.RemoveImageRequest, c.LoadImageResponse, streams_out=True),
    Method("Image", "image", c.ImageRequest, c.LoadImageResponse, streams_out=True),
    Method("SaveImage", "save_image", c.SaveImageRequest, s.TunnelFrame, streams_out=True),
    Method("Plan", "plan", c.PlanRequest, c.PlanResponse),
    Method("CarryOut", "carry_out", c.CarryOutRequest, c.CarryOutResponse),
    Method("WhatIf", "what_if", c.WhatIfRequest, c.WhatIfResponse),
    Method("Fit", "fit", c.FitRequest, c.FitResponse),
    Method("Why", "why", c.WhyRequest, c.WhyResponse),
    Method("Rebalance", "rebalance", c.RebalanceRequest, c.RebalanceResponse),
    Method("Evict", "evict", c.EvictRequest, c.WriteResponse),
    Method("Version", "version", c.VersionRequest, c.VersionResponse),
)


class Remote(Protocol):
    """The leader, elsewhere (forward.Forwarder). Raises Fault."""

    async def call(self, method: Method, request: Any, caller: Identity) -> Message: ...
    def stream(self, method: Method, request: Any, caller: Identity) -> AsyncIterator[Message]: ...


class Front(Protocol):
    """Which service answers: this master's own when it leads, its cache for some reads, or the leader elsewhere."""

    def leading(self) -> Any | None: ...
    def reading(self) -> Any | None: ...
    def remote(self) -> Remote: ...  # raises NotLeader when no leader is known


Meter = Callable[[str, str, float], None]  # verb, status code, seconds


class ClusterAdapter:
    """Hooks the service's verbs into a grpc.aio server."""

    def __init__(self, front: Front, meter: Meter) -> None:
        self._front = front
        self._meter = meter
        self._held = 0  # bytes of unary requests under way

    def add_to(self, server: grpc.aio.Server) -> None:
        handlers = {method.name: self._handler(method) for method in METHODS}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def _handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        made: Callable[..., Any]
        if method.streams_out:
            made = grpc.stream_stream_rpc_method_handler if method.streams_in else grpc.unary_stream_rpc_method_handler
            behaviour: Callable[..., Any] = partial(self._stream, method)
        else:
            made, behaviour = grpc.unary_unary_rpc_method_handler, partial(self._unary, method)
        handler: grpc.RpcMethodHandler[Any, Any] = made(
            _coroutine(behaviour), method.request.FromString, method.response.SerializeToString
        )
        return handler

    async def _unary(self, method: Method, request: Any, context: Context) -> Message:
        size = request.ByteSize()
        self._held += size
        try:
            return await self._answered(method, context, self._answer(method, request, context))
        finally:
            self._held -= size

    async def _stream(self, method: Method, request: Any, context: Context) -> None:
        await self._answered(method, context, self._answer_all(method, request, context))

    async def _answered(self, method: Method, context: Context, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Carries out one call and measures it; what it raises ends it with a status code."""
        code, started = "OK", asyncio.get_running_loop().time()
        try:
            return await work
        except Fault as fault:
            code = CODES.get(fault.reason, grpc.StatusCode.INTERNAL).name
            await refuse(context, fault)
        except Exception as error:
            code = "INTERNAL"
            log.exception("%s failed", method.name)
            await refuse(context, Fault(f"the master could not do this: {type(error).__name__}; see its log"))
        finally:
            self._meter(method.name, code, asyncio.get_running_loop().time() - started)

    async def _answer(self, method: Method, request: Any, context: Context) -> Message:
        caller, forwarded = self._caller(context)
        if self._held > MAX_HELD_BYTES:
            raise Unavailable(f"requests of {self._held} bytes wait for their answers: ask again later")
        service = self._local(method, request)
        if service is not None:
            answer: Message = await getattr(service, method.verb)(request)
            return answer
        return await self._elsewhere(forwarded).call(method, request, caller)

    async def _answer_all(self, method: Method, request: Any, context: Context) -> None:
        caller, forwarded = self._caller(context)
        service = self._local(method, request)
        if method.streams_in:
            request = _whole(request)
        if service is not None:
            answers: AsyncIterator[Message] = getattr(service, method.verb)(request)
        else:
            answers = self._elsewhere(forwarded).stream(method, request, caller)
        try:
            async for answer in answers:
                await context.write(answer)
        finally:
            await answers.aclose()  # type: ignore[attr-defined]

    def _caller(self, context: Context) -> tuple[Identity, bool]:
        """Who asks, and whether another master asks for them. Raises Forbidden."""
        forwarded = ""
        for key, value in context.invocation_metadata() or ():
            if key == FORWARDED_KEY:
                forwarded = value if isinstance(value, str) else value.decode()
        caller = auth.effective(identity_of(context), forwarded)
        auth.may_use_cluster(caller)
        return caller, bool(forwarded)

    def _local(self, method: Method, request: Any) -> Any | None:
        leading = self._front.leading()
        if leading is not None:
            return leading
        if method.verb in ("get", "list") and request.min_revision:
            return self._front.reading()
        return None

    def _elsewhere(self, forwarded: bool) -> Remote:
        if forwarded:  # it would go in circles
            raise NotLeader("this master does not lead any more: ask again, the next leader is being elected")
        return self._front.remote()


async def _whole(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The client's stream, whose end is only taken for one when the client has not broken off: grpc ends the
    iterator in both cases, and cancels this call in the second."""
    async for request in requests:
        yield request
    await asyncio.sleep(BREAK_OFF_SECONDS)


def _coroutine(behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """grpc looks at the function itself to see that it is a coroutine; it does not see through a partial."""

    async def call(request: Any, context: Context) -> Any:
        return await behaviour(request, context)

    return call


async def refuse(context: Context, fault: Fault) -> NoReturn:
    """Ends the call with the fault's status code and its Failure in the trailing metadata."""
    code = CODES.get(fault.reason, grpc.StatusCode.INTERNAL)
    failure = failure_of(fault).SerializeToString()
    await context.abort(code, str(fault), trailing_metadata=((FAILURE_KEY, failure),))


def identity_of(context: Context) -> Identity:
    """The caller's certificate, which TLS has verified."""
    pem = context.auth_context().get("x509_pem_cert")
    return parse_identity(next(iter(pem))) if pem else Identity("", "")


@lru_cache(maxsize=10_000)
def parse_identity(pem: bytes) -> Identity:
    """Organization and common name of a PEM certificate."""
    subject = x509.load_pem_x509_certificate(pem).subject
    organizations = subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(organizations) != 1 or len(names) != 1:
        return Identity("", "")  # two of either could be read one way here and another way elsewhere
    return Identity(str(organizations[0].value), str(names[0].value))


def credentials(ca: bytes, certificate: bytes, key: bytes) -> grpc.ServerCredentials:
    """A server that admits only who shows a certificate of this authority."""
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=ca, require_client_auth=True)
