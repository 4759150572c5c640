"""The Agents service on grpc.aio: each call becomes a stream of the dispatcher's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
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
    """One call as a stream of messages both ways. close() frees whoever waits in send or receive.

    A read or write runs in the task of whoever asks: with thousands of sessions a task for each would be a third of
    a message's cost. close() interrupts those tasks, and they see it as the stream's end.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._closed = False
        self._waiting: set[asyncio.Task[Any]] = set()

    async def send(self, message: Out) -> None:
        """Waits for the peer's window. Raises StreamClosed."""
        await self._interruptible(self._context.write, message)

    async def receive(self) -> In | None:
        """None when either side is done."""
        try:
            message: Any = await self._interruptible(self._context.read)
        except StreamClosed:
            return None
        return None if message is grpc.aio.EOF else message

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            own = asyncio.current_task()
            for task in self._waiting:
                if task is not own:
                    task.cancel()

    def _is_closed(self) -> bool:
        return self._closed

    async def _interruptible(self, work: Callable[..., Awaitable[T]], *arguments: object) -> T:
        if self._closed:
            raise StreamClosed("closed here")
        task = _current()
        self._waiting.add(task)
        try:
            return await work(*arguments)
        except asyncio.CancelledError:
            # By close(), by grpc because the call is over, or from outside: only the last is to go on.
            if task.cancelling() and (not self._is_closed() or task.uncancel()):
                raise
            self._closed = True
            raise StreamClosed("the other side is gone") from None
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            self.close()
            raise StreamClosed("the other side is gone") from None
        finally:
            self._waiting.discard(task)


def _current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "streams are used in tasks"
    return task


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
