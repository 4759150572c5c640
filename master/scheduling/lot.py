"""Where refused pods wait, by class, and which of them get another turn when something has changed.

Pods of one class share their fate: the first in line is tried, and when it goes the next are. A node with new room
stays `open` until nobody who waits could use it.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.snapshot import NodeFacts, Snapshot
from shoal.master.scheduling.needs import Needs
from shoal.master.scheduling.news import News, admits, distinct
from shoal.master.scheduling.pending import Pending, Place

Shape = tuple[tuple[tuple[str, int], ...], int | None]
Line = list[tuple[Place, int, "Waiters"]]


@dataclass(eq=False, slots=True)
class Waiters:
    """Pods of one class, refused for the same reasons; or one pod that is nominated to `node`."""

    needs: Needs
    number: int
    node: str = ""
    tried: int = 0  # the window that refused them last
    members: dict[str, Pending] = field(default_factory=dict)
    heap: list[tuple[Place, str]] = field(default_factory=list)
    heaped: set[str] = field(default_factory=set)
    entry: tuple[Place, int, Waiters] | None = None  # in the line of their shape

    def add(self, pending: Pending) -> None:
        self.members[pending.waiting.uid] = pending
        if pending.waiting.uid not in self.heaped:
            self.heaped.add(pending.waiting.uid)
            heapq.heappush(self.heap, (pending.place, pending.waiting.uid))

    def first(self) -> tuple[Place, str] | None:
        while self.heap and self.heap[0][1] not in self.members:
            self.heaped.discard(heapq.heappop(self.heap)[1])
        return self.heap[0] if self.heap else None

    def foremost(self, number: int) -> list[tuple[Place, str]]:
        """So many, in the order of the queue."""
        if number == 1:
            first = self.first()
            return [first] if first is not None else []
        return heapq.nsmallest(number, [one for one in self.heap if one[1] in self.members])


@dataclass(slots=True)
class Gang:
    """The members of a PodGroup that wait: tried together or not at all."""

    needs: dict[int, Needs] = field(default_factory=dict)
    members: dict[str, Pending] = field(default_factory=dict)
    tried: int = 0


@dataclass(slots=True)
class Open:
    """A node with something new: since which window, what room it gained (None: its facts changed), who left it."""

    window: int
    gain: dict[str, int] | None
    left: list[PodClass]


class Lot:
    """The parked pods."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.where: dict[str, Waiters | Gang] = {}
        self.gangs: dict[tuple[str, str], Gang] = {}
        self._by_class: dict[int, Waiters] = {}
        self._lines: dict[Shape, Line] = {}
        self._odd: dict[int, Waiters] = {}  # whom more than the room of one node can help
        self._symmetric: dict[int, Waiters] = {}  # others that pods' anti-affinity keeps away
        self._nominated: dict[str, dict[str, Waiters]] = {}
        self._open: dict[str, Open] = {}
        self._numbers = 0

    def __len__(self) -> int:
        return len(self.where)

    # ---- in and out ----
    def park(self, pending: Pending, reasons: Iterable[str], evicts: bool, window: int) -> None:
        """`evicts`: it may have pods of lower priority evicted, and that was no help either."""
        pods, uid = pending.waiting.pods, pending.waiting.uid
        self.leave(uid)
        pending.tried = window
        if pods.group and not pending.node:
            gang = self.gangs.setdefault((pending.waiting.key.namespace, pods.group), Gang())
            gang.members[uid], gang.tried = pending, window
            gang.needs[id(pods)] = Needs.of(pods, tuple(reasons), False)
            self.where[uid] = gang
            return
        found = None if pending.node else self._by_class.get(id(pods))
        if found is None or (found.tried < window and found.needs != Needs.of(pods, tuple(reasons), evicts)):
            needs = Needs.of(pods, tuple(reasons), evicts or bool(pending.node))
            found = self._renew(found, replace(needs, below=None) if pending.node else needs, pending.node)
        found.tried = window
        found.add(pending)
        self.where[uid] = found
        if pending.node:
            self._nominated.setdefault(pending.node, {})[uid] = found
        self._line_up(found)

    def _renew(self, old: Waiters | None, needs: Needs, node: str) -> Waiters:
        """Refused for other reasons than before: so would be all that wait with it."""
        self._numbers += 1
        made = Waiters(needs, self._numbers, node)
        if old is not None:
            self._withdraw(old)
            made.members, made.heap, made.heaped = old.members, old.heap, old.heaped
            for uid in made.members:
                self.where[uid] = made
        return made

    def leave(self, uid: str) -> Pending | None:
        """Taken out; None when it is not here."""
        found = self.where.pop(uid, None)
        if found is None:
            return None
        pending = found.members.pop(uid)
        if isinstance(found, Gang):
            if not found.members:
                del self.gangs[pending.waiting.key.namespace, pending.waiting.pods.group]
            return pending
        if found.node:
            on = self._nominated[found.node]
            del on[uid]
            if not on:
                del self._nominated[found.node]
        self._line_up(found)
        return pending

    def _line_up(self, found: Waiters) -> None:
        """Its place in the line of its shape is that of its first pod."""
        first = found.first()
        place = first[0] if first is not None else None
        if found.entry is not None:
            if found.entry[0] == place:
                return
            self._withdraw(found)
        if place is not None:
            if not found.node:
                self._by_class[id(found.needs.pods)] = found
            if found.needs.odd:
                self._odd[found.number] = found
            elif found.needs.symmetry:
                self._symmetric[found.number] = found
            found.entry = (place, found.number, found)
            insort(self._lines.setdefault(found.needs.shape, []), found.entry)

    def _withdraw(self, found: Waiters) -> None:
        if found.entry is not None:
            line = self._lines[found.needs.shape]
            del line[_index(line, found.entry)]
            if not line:
                del self._lines[found.needs.shape]
            found.entry = None
        self._odd.pop(found.number, None)
        self._symmetric.pop(found.number, None)
        if self._by_class.get(id(found.needs.pods)) is found:
            del self._by_class[id(found.needs.pods)]

    # ---- who gets another turn ----
    def hear(self, news: News, window: int, spaces: Mapping[str, Mapping[str, str]]) -> list[str]:
        """Opens the nodes that the news are about; gives the pods that it could help besides those. `window` is that
        of the last plan."""
        if not self.where:
            self._open.clear()
            return []
        for name, classes in news.freed.items():
            self._reopen(name, window, _sum(classes), classes)
        for name, (_, new) in news.nodes.items():
            if new is not None:
                self._reopen(name, window, None, [])
        if self._odd or self._symmetric or self.gangs:
            news.left, news.came = distinct(news.left), distinct(news.came)
        helped = list(self._odd.values())
        if self._symmetric and (news.nodes or news.spaces or any(pods.anti_affinity for pods in news.left)):
            helped += self._symmetric.values()
        woken = [
            first[1]
            for found in helped
            if (first := found.first()) is not None and found.needs.helped(news, spaces, found.tried == window)
        ]
        for key, gang in self.gangs.items():
            if key in news.groups or self._gang_helped(key, gang, news, spaces):
                woken += gang.members
        return woken

    def _gang_helped(
        self, key: tuple[str, str], gang: Gang, news: News, spaces: Mapping[str, Mapping[str, str]]
    ) -> bool:
        if any((pods.namespace, pods.group) == key for pods in (*news.left, *news.came)):
            return True
        if any(old is None or new is None or old.labels != new.labels for old, new in news.nodes.values()):
            return True
        return any(needs.helped(news, spaces) for needs in gang.needs.values())

    def _reopen(self, name: str, window: int, gain: dict[str, int] | None, left: list[PodClass]) -> None:
        before = self._open.get(name)
        if before is not None:
            left = [*before.left, *left]
            if gain is None or before.gain is None:
                gain = None
            else:
                gain = {key: gain.get(key, 0) + before.gain.get(key, 0) for key in gain.keys() | before.gain.keys()}
        self._open[name] = Open(window, gain, left)

    def after(self, placed: Mapping[int, int], window: int) -> list[str]:
        """The next of each class of which pods (`placed`: how many, by the class's id) found a place, unless the same
        window has refused others of it."""
        woken: list[str] = []
        for one, number in placed.items():
            found = self._by_class.get(one)
            if found is not None and found.tried < window:
                woken += [uid for _, uid in found.foremost(2 * number)]
        return woken

    def stalest(self, window: int, limit: int) -> list[str]:
        """Pods that were refused up to that window, those first that were refused first. The nominated wait for their
        room."""
        found: list[str] = []
        for uid, place in self.where.items():  # in the order in which they were parked
            pending = place.members[uid]
            if len(found) == limit or pending.tried > window:
                break
            if not pending.node:
                found.append(uid)
        return found

    def short_of_room(self) -> Iterator[Pending]:
        """The first of each class that nothing keeps waiting but room on single nodes."""
        for line in self._lines.values():
            for _, _, found in line:
                needs = found.needs
                alone = not (found.node or needs.odd or needs.pods.spread or needs.pods.anti_affinity)
                if alone and needs.by_room and (first := found.first()) is not None:
                    yield found.members[first[1]]

    def room(self) -> Iterator[str]:
        """Pods that an open node could take, no more than fit there; whoever is given must `leave` before the next is
        asked for. Closes the nodes that are of no use to anybody."""
        facts = self.snapshot.nodes.facts
        for name, opened in list(self._open.items()):
            row = self.snapshot.row.get(name)
            known = facts.get(name)
            given = 0
            if row is not None and known is not None:
                for uid in self._at(name, row, known, opened):
                    given += 1
                    yield uid
            if not given:
                del self._open[name]

    def _at(self, name: str, row: int, facts: NodeFacts, opened: Open) -> Iterator[str]:
        free = self._free(row)
        for uid, found in list(self._nominated.get(name, {}).items()):
            empty = all(free.get(r, 0) >= 0 for r, _ in found.needs.pods.requests)
            if found.tried <= opened.window and (empty or opened.gain is None):  # the node may not suit it any more
                yield uid
        for gang in [one for one in self.gangs.values() if one.tried <= opened.window]:
            needs = gang.needs.values()
            if any(_times(one.pods.requests, free) and admits(facts, one.pods) for one in needs):
                yield from list(gang.members)
        for (requests, below), line in list(self._lines.items()):
            have = free if below is None else self._free_below(name, below, free)
            left = _times(requests, have)
            if left:
                yield from self._in_line(line, left, (free, have), facts, opened)

    def _in_line(
        self, line: Line, left: int, rooms: tuple[Mapping[str, int], ...], facts: NodeFacts, opened: Open
    ) -> Iterator[str]:
        for _, _, found in list(line):
            if left <= 0:
                return
            if found.tried > opened.window or found.node == facts.name:
                continue
            if not found.needs.plain and not _news_for(found.needs, rooms, opened):
                continue
            if admits(facts, found.needs.pods):
                for _, uid in found.foremost(left if found.needs.plain else 1):
                    left -= 1
                    yield uid

    def _free(self, row: int) -> dict[str, int]:
        snapshot = self.snapshot
        return dict(zip(snapshot.resources, (snapshot.alloc[:, row] - snapshot.used[:, row]).tolist(), strict=True))

    def _free_below(self, name: str, priority: int, free: Mapping[str, int]) -> Mapping[str, int]:
        """With all pods of lower priority taken away."""
        lower = [hold.pods for hold in self.snapshot.pods_on(name).values() if hold.pods.priority < priority]
        if not lower:
            return free
        taken = _sum(lower)
        return {resource: free.get(resource, 0) + taken.get(resource, 0) for resource in free.keys() | taken.keys()}


def _index(line: Line, entry: tuple[Place, int, Waiters]) -> int:
    low, high = 0, len(line)
    while low < high:
        middle = (low + high) // 2
        if line[middle][:2] < entry[:2]:
            low = middle + 1
        else:
            high = middle
    return low


def _sum(classes: Iterable[PodClass]) -> dict[str, int]:
    total: dict[str, int] = {}
    for pods in classes:
        for name, value in pods.requests:
            total[name] = total.get(name, 0) + value
    return total


def _times(requests: Iterable[tuple[str, int]], free: Mapping[str, int]) -> int:
    """How many of them fit."""
    return max(0, min((free.get(name, 0) // value for name, value in requests), default=1))


def _news_for(needs: Needs, rooms: Iterable[Mapping[str, int]], opened: Open) -> bool:
    """Whether what happened to the node is more than what it had room for before, or took away what was in the way.
    `rooms`: what is free there, as it is, and with those taken away that may be evicted."""
    if opened.gain is None or needs.anything or needs.pods.claims:
        return True
    requests = needs.pods.requests
    for free in rooms:
        before = {name: free.get(name, 0) - opened.gain.get(name, 0) for name, _ in requests}
        if _times(requests, free) and not _times(requests, before):
            return True
    return any(needs.met_by(pods) for pods in opened.left)
