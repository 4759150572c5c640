"""The Agents service on grpc.aio: each call becomes a stream of the dispatcher's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

import grpc

from shoal.master.api import auth
from shoal.master.api.grpc_server import Context, identity_of, refuse
from shoal.master.model import Fault
from shoal.master.ports import Stream, StreamClosed, TunnelStream
from shoal.proto.v1 import session_pb2 as s

SERVICE = "shoal.v1.Agents"
Out = TypeVar("Out")
In = TypeVar("In")
T = TypeVar("T")


class Sessions(Protocol):
    """The dispatcher, or what answers for it while this master does not lead."""

    async def serve(self, stream: Stream, node: str, address: str = "") -> None: ...
    async def accept_tunnel(self, stream: TunnelStream, node: str) -> None: ...


class GrpcStream(Generic[Out, In]):
    """One call as a stream of messages both ways. close() frees whoever waits in send or receive."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def send(self, message: Out) -> None:
        """Waits for the peer's window. Raises StreamClosed."""
        if self._closed.done():
            raise StreamClosed("closed here")
        await self._or_closed(self._context.write(message))

    async def receive(self) -> In | None:
        """None when either side is done."""
        if self._closed.done():
            return None
        try:
            message = await self._or_closed(self._context.read())
        except StreamClosed:
            return None
        return None if message is grpc.aio.EOF else message

    def close(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)

    async def _or_closed(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self._closed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.add_done_callback(_forget)
                task.cancel()
        if not task.done():
            raise StreamClosed("closed here")
        try:
            return task.result()
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError, asyncio.CancelledError):
            self.close()
            raise StreamClosed("the other side is gone") from None


def _forget(task: asyncio.Task[Any]) -> None:
    """Nobody waits for it any more: how it ended does not matter."""
    if not task.cancelled():
        task.exception()


class AgentsAdapter:
    """Admits nodes by certificate and hands their streams on."""

    def __init__(self, sessions: Callable[[], Sessions]) -> None:
        self._sessions = sessions

    def add_to(self, server: grpc.aio.Server) -> None:
        make = grpc.stream_stream_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Session": make(self._session, s.Up.FromString, s.Down.SerializeToString),
            "Tunnel": make(self._tunnel, s.TunnelFrame.FromString, s.TunnelFrame.SerializeToString),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def _session(self, _requests: object, context: Context) -> None:
        try:
            node = auth.may_be_node(identity_of(context))
        except Fault as fault:
            await refuse(context, fault)
        stream: GrpcStream[s.Down, s.Up] = GrpcStream(context)
        await self._sessions().serve(stream, node, context.peer())

    async def _tunnel(self, _requests: object, context: Context) -> None:
        try:
            node = auth.may_be_node(identity_of(context))
        except Fault as fault:
            await refuse(context, fault)
        stream: GrpcStream[s.TunnelFrame, s.TunnelFrame] = GrpcStream(context)
        await self._sessions().accept_tunnel(stream, node)
