"""A reader's queue of runtime events, filled from the moment it is made until it is closed or forgotten."""

from __future__ import annotations

import asyncio
import weakref

from shoal.agent.runtime.port import RuntimeEvent, RuntimeGone


class EventReader:
    """An async iterator; a reader that nobody holds gets nothing any more. After RuntimeGone it can be read on."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[RuntimeEvent | RuntimeGone] = asyncio.Queue()

    def put(self, event: RuntimeEvent | RuntimeGone) -> None:
        self._queue.put_nowait(event)

    def __aiter__(self) -> EventReader:
        return self

    async def __anext__(self) -> RuntimeEvent:
        event = await self._queue.get()
        if isinstance(event, RuntimeGone):
            raise event
        return event


class Broadcast:
    """Hands each event to every living reader, in the order in which they were made."""

    def __init__(self) -> None:
        self._readers: list[weakref.ref[EventReader]] = []

    def reader(self) -> EventReader:
        reader = EventReader()
        self._readers.append(weakref.ref(reader))
        return reader

    def emit(self, event: RuntimeEvent | RuntimeGone) -> None:
        self._readers = [ref for ref in self._readers if ref() is not None]
        for ref in self._readers:
            reader = ref()
            if reader is not None:
                reader.put(event)
