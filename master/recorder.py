"""Writes what was said as Events, behind everything else: counted in memory, in low-priority groups."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from shoal.master.controllers import events
from shoal.master.controllers.base import Rng, Said
from shoal.master.controllers.pods import new_uid
from shoal.master.model import Fault, Key, NotLeader
from shoal.master.stores import StoreFace

log = logging.getLogger("shoal.events")

PENDING_LIMIT = 10_000  # notes in memory; beyond it new ones are dropped and counted
GROUP = 127  # notes per write
EXPIRE_EVERY_SECONDS = 60.0
EXPIRED_AT_ONCE = 1000  # events of one write: the store's queue is bounded
RETRY_SECONDS = 5.0


class Recorder:
    """`say` never waits and never fails; `run` carries the notes to the store until leadership is lost."""

    def __init__(self, store: StoreFace, now: Callable[[], float], rng: Rng) -> None:
        self.store = store
        self.now = now
        self.rng = rng
        self.dropped = 0
        self._notes: dict[Key, events.Note] = {}
        self._wake = asyncio.Event()

    def say(self, said: Said, component: str) -> None:
        key = events.event_key(said)
        if key not in self._notes and len(self._notes) >= PENDING_LIMIT:
            self.dropped += 1
            return
        self._notes[key] = events.merge(self._notes, said, component, self.now())
        self._wake.set()

    def say_all(self, said: Iterable[Said], component: str) -> None:
        for one in said:
            self.say(one, component)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        next_expiry = loop.time()
        while True:
            try:
                if loop.time() >= next_expiry:
                    next_expiry = loop.time() + EXPIRE_EVERY_SECONDS
                    await self._expire()
                wait = await self._flush()
            except NotLeader:
                log.info("stops writing events: leadership is lost")
                return
            except Fault as fault:
                log.warning("events wait: %s", fault)
                wait = RETRY_SECONDS
            await self._pause(min(wait, next_expiry - loop.time()))

    async def _pause(self, seconds: float) -> None:
        """Sleeps, less long when something new is said."""
        self._wake.clear()
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _expire(self) -> None:
        changes = events.expired(self.store.view, self.now())
        for start in range(0, len(changes), EXPIRED_AT_ONCE):
            await self.store.write(changes[start : start + EXPIRED_AT_ONCE], low_priority=True)
        if changes:
            log.info("removed %d events that were an hour old", len(changes))

    async def _flush(self) -> float:
        """Writes what is due; gives the seconds until the next is."""
        wait = EXPIRE_EVERY_SECONDS
        group: list[tuple[Key, events.Note]] = []
        for key, note in self._notes.items():
            left = events.due(self.store.view, key, self.now())
            if left > 0:
                wait = min(wait, left)
            elif len(group) < GROUP:
                group.append((key, note))
            else:
                wait = 0.0
        if not group:
            return wait
        for key, _ in group:
            del self._notes[key]
        changes = [change for _, note in group for change in events.write(self.store.view, note, new_uid(self.rng))]
        try:
            await self.store.write(changes, low_priority=True)
        except Fault:
            for key, note in group:  # what was said meanwhile is newer and stays
                self._notes.setdefault(key, note)
            raise
        return 0.0 if wait == 0.0 or self._notes else wait
