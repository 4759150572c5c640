"""A seeded asyncio loop on virtual time: what is ready runs in an order drawn from the seed, and waiting costs nothing.

The same seed gives the same run. Threads and sockets are not available here; code that wants them is an adapter and
has no place in the simulation.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
START = 1_000.0  # seconds; not 0, so that "never" and "at the start" cannot be confused


class Deadlock(AssertionError):
    """Every task waits and no timer is set."""


class _Clock(selectors.BaseSelector):
    """A selector without files: to wait is to move the clock."""

    def __init__(self) -> None:
        self.now = START
        self.idle_limit: float | None = None

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("nothing is ready and no timer is set: every task waits for ever")
        if timeout > 0:
            self.now += timeout
        return []

    def get_map(self) -> dict[Any, selectors.SelectorKey]:
        return {}


class _Numbered:
    """Hashes by number instead of by address, so that sets of such objects are always walked in the same order."""

    _number: int

    def __hash__(self) -> int:
        return self._number


class _Future(_Numbered, asyncio.Future[Any]):
    pass


class _Task(_Numbered, asyncio.Task[Any]):
    def __init__(
        self, number: int, work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop, **more: Any
    ) -> None:
        self._number = number
        super().__init__(work, loop=loop, **more)


class SimulatedLoop(asyncio.SelectorEventLoop):
    """`rng` orders what is ready; `time()` is virtual."""

    def __init__(self, seed: int) -> None:
        self._clock = _Clock()
        self.rng = random.Random(seed)
        self.faults: list[dict[str, Any]] = []
        self.steps = 0
        self.after_step: Callable[[], None] | None = None
        self._numbers = itertools.count()
        super().__init__(self._clock)
        self.set_task_factory(lambda loop, work, **more: _Task(next(self._numbers), work, loop, **more))
        self.set_exception_handler(lambda _, context: self.faults.append(context))

    def time(self) -> float:
        return self._clock.now

    def create_future(self) -> asyncio.Future[Any]:
        future = _Future(loop=self)
        future._number = next(self._numbers)
        return future

    def _run_once(self) -> None:
        ready = self._ready  # type: ignore[attr-defined]
        if len(ready) > 1:
            handles = list(ready)
            self.rng.shuffle(handles)
            ready.clear()
            ready.extend(handles)
        self.steps += 1
        super()._run_once()  # type: ignore[misc]
        if self.after_step is not None:
            self.after_step()

    def run_in_executor(self, *args: Any) -> NoReturn:  # type: ignore[override]
        raise AssertionError("no threads in the simulation: this belongs into an adapter")


def run(seed: int, main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` to its end on a loop of its own. What any task let fall unseen fails the run."""
    loop = SimulatedLoop(seed)
    asyncio.set_event_loop(loop)
    try:
        result = loop.run_until_complete(main)
        assert not loop.faults, f"unhandled: {loop.faults[0]}"
        return result
    finally:
        loop.after_step = None
        leftover = asyncio.all_tasks(loop)
        for task in leftover:
            task.cancel()
        if leftover:
            loop.run_until_complete(asyncio.gather(*leftover, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()
