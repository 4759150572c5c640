"""A copy of the cluster's objects that can be written to, by the store's own rules and in its groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shoal.master.model import KINDS, Change, Event, Fault, Key, Record, View
from shoal.master.store.apply import Applied, Cache
from shoal.master.store.decide import Removal, Wanted, decide, key_of_change

GROUP = 127  # changes that share a revision, as the store's writer groups them
SKIPPED = frozenset({"Event", "Death"})  # nothing that is planned depends on them
STEP = 500  # objects that are copied between two breaths


class Overlay(Cache):
    """`events` are what its writes have told since somebody took them."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    @property
    def view(self) -> View:
        return self

    def capture(self, view: View) -> Iterator[None]:
        """Takes over what there is. The list is made at once, so that the copy is of one moment; indexing it goes on
        in steps."""
        records = list(_records(view))
        revision = view.revision
        for start in range(0, len(records), STEP):
            self.apply(0, [Applied(record.key, record) for record in records[start : start + STEP]])
            yield
        self.apply(revision, ())

    async def write(self, changes: Sequence[Change], *, low_priority: bool = False) -> Sequence[Record | Fault | None]:
        """The store's face, for those who write by it."""
        return self.commit(changes)

    def commit(self, changes: Sequence[Change]) -> list[Record | Fault | None]:
        """One result per change, as the store gives them."""
        results: list[Record | Fault | None] = []
        for start in range(0, len(changes), GROUP):
            revision = self.revision + 1
            results += [self._one(change, revision) for change in changes[start : start + GROUP]]
        return results

    def _one(self, change: Change, revision: int) -> Record | Fault | None:
        try:
            key = key_of_change(change)
        except Fault as fault:
            return fault
        wanted = decide(change, self.record(key))
        if isinstance(wanted, Wanted):
            record = Record(key, wanted.message, wanted.body, revision, wanted.created or revision)
            self.events += self.apply(revision, [Applied(key, record)])
            return record
        if isinstance(wanted, Removal):
            self.events += self.apply(revision, [Applied(key, None)])
            return None
        return wanted

    def take_events(self) -> list[Event]:
        taken, self.events = self.events, []
        return taken


def _records(view: View) -> Iterator[Record]:
    for kind in KINDS:
        for found in view.all(kind) if kind not in SKIPPED else ():
            record = view.record(Key(kind, found.metadata.namespace, found.metadata.name))
            if record is not None:
                yield record
