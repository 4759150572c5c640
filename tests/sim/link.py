"""The transport between simulated agents and masters: gRPC's promises (ordered, reliable until it ends), and its ends.

A message may be slow, come twice, or be lost; a lost one takes its stream with it soon, since that is how a stream
loses messages. Both sides' stream protocols are spoken: the agent's raises LinkLost, the master's StreamClosed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from shoal.agent.session import LinkLost
from shoal.master.ports import StreamClosed
from shoal.proto.v1 import session_pb2 as s

Message = TypeVar("Message", s.Up, s.Down, s.TunnelFrame)
LONGEST_BREAK = 3.0  # seconds from a lost message to the end of its stream


@dataclass(slots=True)
class Weather:
    """How bad the network is; rates are per message. All zero: it is perfect."""

    slow: float = 0.0
    slowest: float = 2.0  # seconds
    repeat: float = 0.0
    lose: float = 0.0


class Pipe(Generic[Message]):
    """One direction: in order, each message after its delay."""

    def __init__(self, rng: random.Random, weather: Weather, cut: Callable[[], None]) -> None:
        self._rng, self._weather, self._cut = rng, weather, cut
        self._queue: asyncio.Queue[Message | None] = asyncio.Queue()
        self._last = 0.0
        self._broken = False
        self._timers: set[asyncio.TimerHandle] = set()
        self.closed = False

    def put(self, message: Message | None, repeatable: bool) -> None:
        loop = asyncio.get_running_loop()
        weather, draw = self._weather, self._rng.random
        if self._broken:
            return
        if message is not None and draw() < weather.lose:
            self._broken = True
            self._timers.add(loop.call_later(self._rng.uniform(0, LONGEST_BREAK), self._cut))
            return
        delay = self._rng.uniform(0, weather.slowest) if draw() < weather.slow else 0.0
        times = 2 if repeatable and draw() < weather.repeat else 1
        self._last = max(self._last, loop.time() + delay)
        for _ in range(times):
            copy = None if message is None else type(message).FromString(message.SerializeToString())
            # Equal times fire in the order of the shuffled loop, so each message gets a moment of its own.
            self._last += 1e-6
            self._timers.add(loop.call_at(self._last, self._queue.put_nowait, copy))

    async def get(self) -> Message | None:
        if self.closed:
            return None
        return await self._queue.get()

    def close(self) -> None:
        """What is under way is lost; the reader sees the end."""
        if not self.closed:
            self.closed = True
            for timer in self._timers:
                timer.cancel()
            self._queue.put_nowait(None)


class Wire:
    """A session's two directions."""

    def __init__(self, rng: random.Random, weather: Weather) -> None:
        self.up: Pipe[s.Up] = Pipe(rng, weather, self.cut)
        self.down: Pipe[s.Down] = Pipe(rng, weather, self.cut)
        self.alive = True

    def cut(self) -> None:
        if self.alive:
            self.alive = False
            self.up.close()
            self.down.close()


class AgentEnd:
    """The agent's end of a session (shoal.agent.session.Stream)."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def send(self, up: s.Up) -> None:
        await asyncio.sleep(0)
        if not self._wire.alive:
            raise LinkLost("the connection was cut")
        self._wire.up.put(up, repeatable=not up.HasField("hello"))

    async def receive(self) -> s.Down | None:
        message = await self._wire.down.get()
        if message is None and not self._wire.alive:
            raise LinkLost("the connection was cut")
        return message

    async def close(self) -> None:
        self._wire.cut()


class MasterEnd:
    """The master's end (shoal.master.ports.Stream)."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def send(self, message: s.Down) -> None:
        await asyncio.sleep(0)
        if not self._wire.alive:
            raise StreamClosed
        self._wire.down.put(message, repeatable=message.WhichOneof("message") == "assignments")

    async def receive(self) -> s.Up | None:
        return await self._wire.up.get()

    def close(self) -> None:
        """What was sent before still arrives, as with a gRPC status at the end of the stream."""
        if self._wire.alive:
            self._wire.down.put(None, repeatable=False)
