"""The fence: what each transaction of a leader compares, what it advances, and what a refused one means.

A transaction holds only while the leader key still has the create revision under which this leader was elected *and*
the commit record is still the last that it knows. The record's bytes name epoch and sequence, so no two groups ever
write the same ones: finding ours there proves that an unanswered transaction was committed.
"""

from __future__ import annotations

from typing import NamedTuple

from shoal.master.store import keys
from shoal.master.store.port import Compare, KeyValue, TxnResult
from shoal.proto.v1 import store_pb2 as s


class Committed(NamedTuple):
    revision: int


class Refused(NamedTuple):
    """Another leader writes now. `certain`: the transaction was not committed and never will be."""

    certain: bool
    why: str


class Fence:
    """The position of one leader's writes. `record` is the newest commit record, None before the first ever."""

    READS = (keys.LEADER, keys.COMMIT)

    def __init__(self, epoch: int, commit: KeyValue | None) -> None:
        self.epoch = epoch
        self.record = s.CommitRecord.FromString(commit.value) if commit else s.CommitRecord()
        self._bytes = commit.value if commit else None

    def compares(self) -> tuple[Compare, Compare]:
        leader = Compare(keys.LEADER, "create", self.epoch)
        if self._bytes is None:
            return leader, Compare(keys.COMMIT, "create", 0)
        return leader, Compare(keys.COMMIT, "value", self._bytes)

    def next(self, now: float, changes: int) -> s.CommitRecord:
        """The record that a group of so many changes writes. `now` is the wall clock in seconds."""
        return s.CommitRecord(
            sequence=self.record.sequence + 1,
            epoch=self.epoch,
            time_ms=max(int(now * 1000), self.record.time_ms),
            changes=self.record.changes + changes,
        )

    def advance(self, record: s.CommitRecord) -> None:
        """The group with this record is committed."""
        self.record = record
        self._bytes = encode(record)

    def judge(self, attempted: s.CommitRecord, result: TxnResult, in_doubt: bool) -> Committed | Refused:
        """What an answer says. `in_doubt`: an earlier sending of the same transaction got no answer."""
        if result.succeeded:
            return Committed(result.revision)
        leader, commit = result.found
        if commit is not None and commit.value == encode(attempted):
            return Committed(commit.mod_revision)
        moved = (commit.value if commit else None) != self._bytes
        if leader is None:
            why = "the leader key is gone from etcd"
        elif leader.create_revision != self.epoch:
            why = f"another leader was elected at revision {leader.create_revision}"
        else:
            why = "another process writes under this leader's key"
        return Refused(certain=not (in_doubt and moved), why=why)


def encode(record: s.CommitRecord) -> bytes:
    return record.SerializeToString(deterministic=True)
