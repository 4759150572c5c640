"""Who hears of commits: the event window behind API watches, and subscriptions of the master's own loops."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

from shoal.master.model import KINDS, Event, Expired, Key, Object, Record

WINDOW_EVENTS = 50_000
WINDOW_BYTES = 64 << 20  # of bodies
PARSED_EVENTS = 1000  # that have their messages; more than most watchers are behind
BATCH_EVENTS = 500
BATCH_BYTES = 1 << 20  # a message stays below gRPC's 4 MiB: the last revision adds at most 1 MiB, or one object
BOOKMARK_PERIOD_S = 30.0

Predicate: TypeAlias = Callable[[Object], bool]


class WatchEvent(NamedTuple):
    type: Literal["ADDED", "MODIFIED", "DELETED"]
    record: Record  # DELETED: the last state that was seen, with the revision of the deletion


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Whole revisions, up to `revision`. Without events it is a bookmark: resume from `revision`."""

    revision: int
    events: Sequence[WatchEvent]


class _Packed(NamedTuple):
    """An event without its parsed messages; each state is body, revision and create revision."""

    key: Key
    revision: int
    old: tuple[bytes, int, int] | None
    new: tuple[bytes, int, int] | None


class Window:
    """The newest events, whole revisions. Complete for every revision above `floor`. Few ask for what is older than a
    moment, so of that only the bytes are kept: a parsed message takes several times as much."""

    def __init__(
        self, limit: int = WINDOW_EVENTS, limit_bytes: int = WINDOW_BYTES, parsed: int = PARSED_EVENTS
    ) -> None:
        self._limit, self._limit_bytes, self._most_parsed = limit, limit_bytes, parsed
        self.reset(0)

    def reset(self, revision: int) -> None:
        """Forgets all: what lies at or before `revision` cannot be told event by event."""
        self.floor = revision
        self._revisions: list[int] = []
        self._events: list[list[Event] | tuple[_Packed, ...]] = []
        self._sizes: list[int] = []
        self._count = self._bytes = 0
        self._packed = self._parsed = 0  # how many revisions are packed, and how many events are not

    def append(self, revision: int, events: list[Event]) -> None:
        self._revisions.append(revision)
        self._events.append(events)
        self._sizes.append(_size(events))
        self._count += len(events)
        self._parsed += len(events)
        self._bytes += self._sizes[-1]
        while self._parsed > self._most_parsed and self._packed < len(self._events) - 1:
            self._pack(self._packed)
        if self._count > self._limit + self._limit // 4 or self._bytes > self._limit_bytes + self._limit_bytes // 4:
            self._trim()

    def _pack(self, at: int) -> None:
        """The next one that is not packed yet."""
        events = [event for event in self._events[at] if isinstance(event, Event)]
        self._events[at] = tuple(
            _Packed(event.key, event.revision, _state(event.old), _state(event.new)) for event in events
        )
        self._packed += 1
        self._parsed -= len(events)

    def _trim(self) -> None:
        """Down to the limits, but never the newest revision."""
        cut = 0
        while (self._count > self._limit or self._bytes > self._limit_bytes) and cut < len(self._revisions) - 1:
            self._count -= len(self._events[cut])
            self._bytes -= self._sizes[cut]
            if cut >= self._packed:
                self._parsed -= len(self._events[cut])
            cut += 1
        if cut:
            self.floor = self._revisions[cut - 1]
            del self._revisions[:cut], self._events[:cut], self._sizes[:cut]
            self._packed = max(0, self._packed - cut)

    def after(self, revision: int) -> Iterator[tuple[int, list[Event]]]:
        """(revision, events) above `revision`, in order. Raises Expired."""
        self.check(revision)
        for at in range(bisect_right(self._revisions, revision), len(self._revisions)):
            events = self._events[at]
            yield self._revisions[at], events if isinstance(events, list) else [_unpacked(one) for one in events]

    def check(self, revision: int) -> None:
        """Raises Expired when events after `revision` have been dropped."""
        if revision < self.floor:
            raise Expired(f"revision {revision} is too old: events are kept from {self.floor} on; list again")


def _state(record: Record | None) -> tuple[bytes, int, int] | None:
    return None if record is None else (record.body, record.revision, record.created)


def _unpacked(one: _Packed) -> Event:
    return Event(one.key, one.revision, _record(one.key, one.old), _record(one.key, one.new))


def _record(key: Key, state: tuple[bytes, int, int] | None) -> Record | None:
    return None if state is None else Record(key, KINDS[key.kind].FromString(state[0]), *state)


def _size(events: Sequence[Event]) -> int:
    """Bytes of the states that may live in the window only: an object that was deleted counts as well."""
    return sum(len(state.body) for event in events if (state := event.new or event.old))


class Subscription:
    """What happened since the last take, per object coalesced, in the order of the last change. An async iterator of
    (revision, events); ends when closed. One taker at a time."""

    def __init__(self, hub: Hub, kinds: frozenset[str] | None) -> None:
        self.kinds = kinds
        self._hub = hub
        self._revision = 0
        self._pending: dict[tuple[Key, str], Event] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> tuple[int, list[Event]]:
        while True:
            if taken := self.take():
                return taken
            if self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def take(self) -> tuple[int, list[Event]] | None:
        """What is pending, without waiting; None when nothing is."""
        if not self._pending:
            return None
        events = list(self._pending.values())
        self._pending = {}
        return self._revision, events

    def close(self) -> None:
        self._closed = True
        self._hub.drop(self)
        self._wake()

    def push(self, revision: int, events: Sequence[Event]) -> None:
        """For the hub: events of one revision."""
        self._revision = revision
        for event in events:
            if self.kinds is None or event.key.kind in self.kinds:
                self._merge(event)
        if self._pending:
            self._wake()

    def _merge(self, event: Event) -> None:
        state = event.new or event.old
        assert state is not None
        slot = (event.key, state.message.metadata.uid)
        earlier = self._pending.pop(slot, None)
        if earlier is not None:
            event = replace(event, old=earlier.old)
        if event.old is not None or event.new is not None:
            self._pending[slot] = event

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Tick(NamedTuple):
    """Why a watch wakes: something came after `skipped`, up to which nothing concerned it; or a bookmark is due."""

    skipped: int
    due: bool


class Hub:
    """Takes every applied revision and passes it on: to the window, to subscriptions, to API watches."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.revision = 0
        self._subscriptions: list[Subscription] = []
        self._waiters: dict[asyncio.Future[_Tick], frozenset[str] | None] = {}
        self._reached: dict[asyncio.Future[None], int] = {}

    def publish(self, revision: int, events: list[Event], keep: bool = True) -> None:
        """`keep=False`: they are the outcome of a list, not history; the window starts anew after them."""
        before, self.revision = self.revision, revision
        if not keep:
            self.window.reset(revision)
        elif events:
            self.window.append(revision, events)
        for subscription in self._subscriptions:
            subscription.push(revision, events)
        kinds = {event.key.kind for event in events}
        for waiter, wanted in self._waiters.items():
            if not waiter.done() and (not keep or (kinds and (wanted is None or not kinds.isdisjoint(wanted)))):
                waiter.set_result(_Tick(before if keep else 0, False))
        for reached, least in self._reached.items():
            if least <= revision and not reached.done():
                reached.set_result(None)

    def subscribe(self, kinds: Collection[str] | None) -> Subscription:
        subscription = Subscription(self, None if kinds is None else frozenset(kinds))
        self._subscriptions.append(subscription)
        return subscription

    def drop(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    async def reach(self, revision: int) -> None:
        """Waits until this revision has been applied."""
        while self.revision < revision:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._reached[waiter] = revision
            try:
                await waiter
            finally:
                del self._reached[waiter]

    async def watch(
        self, kinds: Collection[str] | None, from_revision: int, predicate: Predicate | None
    ) -> AsyncGenerator[WatchBatch]:
        """Batches after `from_revision`, a bookmark first and whenever nothing else was sent for a while.
        Raises Expired when the taker is too slow or asks for too much."""
        wanted = None if kinds is None else frozenset(kinds)
        position = from_revision
        self.window.check(position)
        told, due = -1, True
        while True:
            position, events = self._collect(wanted, position, predicate)
            if events or (due and position > told):
                told, due = position, False
                yield WatchBatch(position, events)
            else:
                skipped, due = await self._wait(wanted)
                position = max(position, skipped)

    def _collect(
        self, wanted: frozenset[str] | None, position: int, predicate: Predicate | None
    ) -> tuple[int, list[WatchEvent]]:
        """Events after `position` up to a batch's size, and where they end."""
        chosen: list[WatchEvent] = []
        size = 0
        for revision, events in self.window.after(position):
            position = revision
            for event in events:
                if (wanted is None or event.key.kind in wanted) and (seen := as_seen(event, predicate)):
                    chosen.append(seen)
                    size += len(seen.record.body)
            if len(chosen) >= BATCH_EVENTS or size >= BATCH_BYTES:
                return position, chosen
        return max(position, self.revision), chosen

    async def _wait(self, wanted: frozenset[str] | None) -> _Tick:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[_Tick] = loop.create_future()
        self._waiters[waiter] = wanted
        timer = loop.call_later(BOOKMARK_PERIOD_S, self._bookmark, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            del self._waiters[waiter]

    def _bookmark(self, waiter: asyncio.Future[_Tick]) -> None:
        if not waiter.done():
            waiter.set_result(_Tick(self.revision, True))


def as_seen(event: Event, predicate: Predicate | None) -> WatchEvent | None:
    """What a watcher with this selector sees of an event; None: nothing."""
    old = event.old if event.old and (predicate is None or predicate(event.old.message)) else None
    new = event.new if event.new and (predicate is None or predicate(event.new.message)) else None
    if new is not None:
        return WatchEvent("MODIFIED" if old else "ADDED", new)
    if old is not None:
        return WatchEvent("DELETED", replace(old, revision=event.revision))
    return None
