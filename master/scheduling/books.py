"""The snapshot, and who hears of each change to it."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.master.model import Event
from shoal.master.scheduler.snapshot import Applied, Hold, Snapshot
from shoal.master.scheduling.decisions import NoObserver, Observer


class Books:
    """Every change of the snapshot outside of a plan goes through here."""

    def __init__(self, observer: Observer | None = None) -> None:
        self.snapshot = Snapshot()
        self.revision = 0  # the newest of the store that the snapshot has taken in
        self.observer: Observer = observer or NoObserver()

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
