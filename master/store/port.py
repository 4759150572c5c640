"""The port to etcd: its own model over bytes. Two adapters, `etcd.py` and `memory.py`, share one contract suite.

Every method raises `Unavailable` when no answer came. For `txn` its `outcome` tells whether the transaction may have
been committed ("unknown") or certainly was not ("none").
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

from shoal.master.model import Fault

MAX_TXN_OPS = 128  # etcd's --max-txn-ops
MAX_REQUEST_BYTES = 1_572_864  # etcd's --max-request-bytes, 1.5 MiB


class KeyValue(NamedTuple):
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


class Page(NamedTuple):
    revision: int  # of the store when it answered, also when an older revision was read
    items: Sequence[KeyValue]  # ordered by key
    more: bool


class Compare(NamedTuple):
    """Holds when the key's create or mod revision (0: no such key) or its value equals `value`.
    A value never equals that of a missing key."""

    key: bytes
    target: Literal["create", "mod", "value"]
    value: int | bytes


class Put(NamedTuple):
    key: bytes
    value: bytes
    lease: int = 0


class DeleteKey(NamedTuple):
    key: bytes


Write: TypeAlias = Put | DeleteKey


class TxnResult(NamedTuple):
    succeeded: bool
    revision: int  # that of the writes when it succeeded and wrote anything
    found: Sequence[KeyValue | None]  # what the `otherwise` keys held; empty when it succeeded


class HistoryEvent(NamedTuple):
    key: bytes
    value: bytes | None  # None: deleted
    create_revision: int  # 0 when deleted
    mod_revision: int
    lease: int = 0


class WatchBatch(NamedTuple):
    """All events of one revision. Without events it is a sign of life."""

    revision: int
    events: Sequence[HistoryEvent]


class Lease(NamedTuple):
    id: int
    ttl: float  # seconds, as granted


class Status(NamedTuple):
    revision: int
    version: str
    db_size: int  # bytes
    db_size_in_use: int  # bytes
    no_space: bool  # the NOSPACE alarm is on


class Compacted(Fault):
    """The revision asked for is gone. `compacted` is the oldest one that is left, or 0 when etcd did not say."""

    reason = "Expired"

    def __init__(self, message: str, compacted: int = 0) -> None:
        super().__init__(message)
        self.compacted = compacted


class Port(Protocol):
    async def range(self, start: bytes, end: bytes = b"", *, limit: int = 0, revision: int = 0) -> Page:
        """Keys in [start, end), or the one key `start`; linearizable at revision 0. Raises Compacted."""
        ...

    async def txn(
        self, compares: Sequence[Compare], writes: Sequence[Write], otherwise: Sequence[bytes] = ()
    ) -> TxnResult:
        """Writes when all compares hold, else reads the keys `otherwise`. At most MAX_TXN_OPS of each, no key twice.
        Raises NoSpace, TooLarge, Invalid: nothing was written."""
        ...

    def watch(self, start: bytes, end: bytes, from_revision: int) -> AsyncGenerator[WatchBatch]:
        """Whole revisions in order, starting at this one, which must be above the compacted one. Raises Compacted,
        or Unavailable when the stream breaks: resume at the last revision + 1. Close the generator after use."""
        ...

    async def grant(self, ttl: float) -> Lease:
        """A lease; keys put under it are deleted when it ends. Raises NoSpace."""
        ...

    async def keepalive(self, lease: int) -> float:
        """Renews. Gives the seconds it now has, 0 when it is gone."""
        ...

    async def revoke(self, lease: int) -> None:
        """Ends a lease at once; one that is gone already is fine."""
        ...

    async def compact(self, revision: int) -> None:
        """Forgets history older than `revision`; a revision that is compacted already is fine."""
        ...

    async def status(self) -> Status: ...

    async def defragment(self) -> None:
        """Gives unused space back, on every member in turn; a member does not answer meanwhile."""
        ...

    async def disarm(self) -> None:
        """Takes the NOSPACE alarm back; etcd raises it again when there is still no room."""
        ...

    async def close(self) -> None: ...


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that start with `prefix` (which ends in no 0xff byte)."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
