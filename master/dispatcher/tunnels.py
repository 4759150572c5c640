"""Matches the master's Open with the agent's Tunnel call, by id and by certificate."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

from shoal.master.model import Fault, Unavailable
from shoal.master.ports import StreamClosed, TunnelStream
from shoal.proto.v1 import session_pb2 as s

ID_BITS = 128
FRAME_BYTES = 64 << 10
PER_NODE = 64  # tunnels of one node at once


class Tunnel:
    """One open tunnel: frames both ways until close()."""

    def __init__(self, node: str, stream: TunnelStream) -> None:
        self.node = node
        self._stream = stream
        self.finished = asyncio.Event()
        self.when_closed: Callable[[], None] = lambda: None

    async def send(self, frame: s.TunnelFrame) -> None:
        """Raises StreamClosed."""
        await self._stream.send(frame)

    async def receive(self) -> s.TunnelFrame | None:
        return await self._stream.receive()

    def close(self) -> None:
        if not self.finished.is_set():
            self.finished.set()
            self._stream.close()
            self.when_closed()


class Tunnels:
    """Waits for the calls that agents were asked for."""

    def __init__(self, rng: random.Random, patience: float) -> None:
        self._rng = rng
        self._patience = patience  # seconds between an Open and its Tunnel call
        self._waiting: dict[str, tuple[str, asyncio.Future[Tunnel]]] = {}
        self._count: Counter[str] = Counter()

    async def open(self, node: str, request: s.Open, ask: Callable[[s.Open], None]) -> Tunnel:
        """Sends `request` with a new id through `ask` and waits for the agent's call. Raises Unavailable."""
        if self._count[node] >= PER_NODE:
            raise Unavailable(f"node {node} already serves {PER_NODE} streams: end some of them, or try again later")
        number = f"{self._rng.getrandbits(ID_BITS):032x}"
        message = s.Open()
        message.CopyFrom(request)
        message.id = number
        answer: asyncio.Future[Tunnel] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (node, answer)
        self._count[node] += 1
        tunnel: Tunnel | None = None
        try:
            ask(message)
            async with asyncio.timeout(self._patience):
                tunnel = await answer
        except TimeoutError:
            raise Unavailable(f"the agent of node {node} did not answer within {self._patience:g} s") from None
        finally:
            del self._waiting[number]
            if tunnel is None:
                self._forget(node)
                _close_late(answer)
        tunnel.when_closed = lambda: self._forget(node)
        return tunnel

    def _forget(self, node: str) -> None:
        self._count[node] -= 1
        if not self._count[node]:
            del self._count[node]

    async def accept(self, stream: TunnelStream, node: str) -> None:
        """Serves one Tunnel call of the agent whose certificate names `node`; returns when the tunnel is over."""
        try:
            async with asyncio.timeout(self._patience):
                first = await stream.receive()
        except TimeoutError:
            first = None
        if first is None or first.WhichOneof("frame") != "hello":
            await _refuse(stream, "the first frame of a tunnel must be its hello")
            return
        owner, answer = self._waiting.get(first.hello.id, ("", None))
        if answer is None or answer.done():
            await _refuse(stream, "nobody waits for this tunnel (it came too late, or twice)")
            return
        if owner != node:
            await _refuse(stream, "this tunnel was asked of another node")
            return
        tunnel = Tunnel(node, stream)
        answer.set_result(tunnel)
        try:
            await tunnel.finished.wait()
        finally:
            tunnel.close()

    def fail(self, node: str, fault: Fault) -> None:
        """The node's session is gone: nobody will call for what is still waited for."""
        for owner, answer in self._waiting.values():
            if owner == node and not answer.done():
                answer.set_exception(fault)


def _close_late(answer: asyncio.Future[Tunnel]) -> None:
    """The agent has called in the moment in which its caller gave up: nobody else would end that call."""
    if answer.done() and not answer.cancelled() and answer.exception() is None:
        answer.result().close()


async def _refuse(stream: TunnelStream, why: str) -> None:
    try:
        await stream.send(s.TunnelFrame(end=s.TunnelEnd(error=why)))
    except StreamClosed:
        pass
    stream.close()
