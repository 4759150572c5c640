"""Work that is done once however many ask for it at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from shoal.agent.images.port import ImageFault

K = TypeVar("K")
T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiters: int = 0


class Shared(Generic[K, T]):
    """Work under way by key. It belongs to nobody: it goes on when its first caller is cancelled, and ends with its
    last."""

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[T]] = {}

    async def run(self, key: K, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the work under way for `key`, else of `make()`. Another's failure is no answer: its address or
        credential was wrong, and ours may not be."""
        flight = self._flights.get(key)
        if flight is not None:
            try:
                return await self._wait(key, flight)
            except ImageFault:
                flight = self._flights.get(key)
        return await self._wait(key, flight or self._start(key, make))

    def _start(self, key: K, make: Callable[[], Coroutine[Any, Any, T]]) -> _Flight[T]:
        flight = self._flights[key] = _Flight(asyncio.get_running_loop().create_task(make()))
        flight.task.add_done_callback(lambda _: self._forget(key, flight))
        return flight

    async def _wait(self, key: K, flight: _Flight[T]) -> T:
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                self._forget(key, flight)
                flight.task.cancel()
                await ended(flight.task)

    def _forget(self, key: K, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # its callers may be gone


async def ended(task: asyncio.Task[Any]) -> None:
    """Waits for the end of a cancelled task, also when the caller is cancelled meanwhile."""
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            continue


async def together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them at once; the first failure ends the others and is raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
