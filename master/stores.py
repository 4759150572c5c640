"""The faces of the Store that the loops and the API use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Protocol

from shoal.master.model import Change, Event, Fault, Record, View


class WriteFace(Protocol):
    """Own commits are in `view` before `write` returns."""

    @property
    def view(self) -> View: ...

    async def write(self, changes: Sequence[Change], *, low_priority: bool = False) -> Sequence[Record | Fault | None]:
        """One result per change: the record, None for a deleted one, or the Fault that refused it.
        Raises Unavailable or NotLeader for the whole."""
        ...


class StoreFace(WriteFace, Protocol):
    """With what others commit."""

    def subscribe(self, kinds: Collection[str] | None) -> AsyncIterator[tuple[int, list[Event]]]: ...
