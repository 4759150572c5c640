"""The snapshot, and who hears of each change to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shoal.master.model import Event
from shoal.master.scheduler.core import Preemption
from shoal.master.scheduler.snapshot import Applied, Hold, Snapshot
from shoal.master.scheduling.decisions import NoObserver, Observer


class Books:
    """Every change of the snapshot outside of a plan goes through here."""

    def __init__(self, snapshot: Snapshot, observer: Observer | None = None) -> None:
        self.snapshot = snapshot
        self.revision = 0  # the newest of the store that the snapshot has taken in
        self.observer: Observer = observer or NoObserver()
        self.observer.watch(snapshot)

    def apply(self, revision: int, events: Sequence[Event]) -> Applied:
        self.revision = max(self.revision, revision)
        applied = self.snapshot.apply(events)
        self.observer.applied(self.revision, events)
        return applied

    def commit(self, uid: str, hold: Hold) -> None:
        self.snapshot.commit(uid, hold)
        self.observer.committed(uid, hold)

    def undo(self, uid: str) -> Hold | None:
        """What it held."""
        hold = self.snapshot.held(uid)
        if hold is None:
            return None
        self.snapshot.undo(uid)
        self.observer.undone(uid)
        return hold

    def spare(self, preemptions: Iterable[Preemption]) -> list[Hold]:
        """Nominations that came to nothing: their room is free again, and their victims stay. What was given back."""
        given: list[Hold] = []
        for one in preemptions:
            hold = self.snapshot.held(one.waiting.uid)
            if hold is not None and hold.nominated:
                self.undo(one.waiting.uid)
                given.append(hold)
            for victim in one.victims:
                found = self.snapshot.held(victim.uid)
                if found is not None and found.leaving:
                    self.undo(victim.uid)
                    self.commit(victim.uid, found._replace(leaving=False))
        return given
