"""A store port that tells how long each call of another one took."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager

from shoal.master.store.port import Compare, Lease, Page, Port, Status, TxnResult, WatchBatch, Write

Tell = Callable[[str, float], None]  # operation, seconds


class Metered:
    """Passes everything on. Calls that fail count too: slow failures are what one looks for."""

    def __init__(self, port: Port, tell: Tell) -> None:
        self._port = port
        self._tell = tell

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            yield
        finally:
            self._tell(operation, clock() - started)

    async def range(self, start: bytes, end: bytes = b"", *, limit: int = 0, revision: int = 0) -> Page:
        with self._timed("range"):
            return await self._port.range(start, end, limit=limit, revision=revision)

    async def txn(
        self, compares: Sequence[Compare], writes: Sequence[Write], otherwise: Sequence[bytes] = ()
    ) -> TxnResult:
        with self._timed("txn"):
            return await self._port.txn(compares, writes, otherwise)

    def watch(self, start: bytes, end: bytes, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        return self._port.watch(start, end, from_revision)

    async def grant(self, ttl: float) -> Lease:
        with self._timed("grant"):
            return await self._port.grant(ttl)

    async def keepalive(self, lease: int) -> float:
        with self._timed("keepalive"):
            return await self._port.keepalive(lease)

    async def revoke(self, lease: int) -> None:
        with self._timed("revoke"):
            await self._port.revoke(lease)

    async def compact(self, revision: int) -> None:
        with self._timed("compact"):
            await self._port.compact(revision)

    async def status(self) -> Status:
        with self._timed("status"):
            return await self._port.status()

    async def defragment(self) -> None:
        with self._timed("defragment"):
            await self._port.defragment()

    async def disarm(self) -> None:
        with self._timed("disarm"):
            await self._port.disarm()

    async def close(self) -> None:
        await self._port.close()
