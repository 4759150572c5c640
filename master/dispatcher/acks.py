"""When an acknowledged status is told to its agent: at once in a small cluster; in a large one with the next message
that goes there anyway, as a message of its own for each would be a third of all that is sent.

An agent keeps what is not acknowledged, and says it again on its next session: waiting costs it a little memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

ACKS_PER_SECOND = 1000.0  # that are messages of their own, if every node has one: the patience is nodes / this
LEAST_S = 0.1  # a shorter patience is none
TICK_S = 0.05  # the least between two looks at what is due


class Acknowledging(Protocol):
    """A session, as this sees it."""

    def ack_now(self) -> None:
        """What has not gone with another message goes alone."""


class Acks:
    """Sessions that hold an acknowledgement back, in the order in which their patience ends."""

    def __init__(self, nodes: Callable[[], int]) -> None:
        self._nodes = nodes
        self._waiting: deque[tuple[float, Acknowledging]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def hold_back(self, session: Acknowledging) -> bool:
        """True when ack_now follows in a while; else it is to go at once."""
        patience = self._nodes() / ACKS_PER_SECOND
        if patience < LEAST_S:
            return False
        self._waiting.append((asyncio.get_running_loop().time() + patience, session))
        self._arm()
        return True

    def close(self) -> None:
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._timer is None and self._waiting:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(TICK_S, self._waiting[0][0] - loop.time()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._waiting and self._waiting[0][0] <= now:
            self._waiting.popleft()[1].ack_now()
        self._arm()
