"""The plain data that the master's parts hand to each other: keys, records, changes and the view.

Controllers and the scheduler are pure: they read a `View` and return `Change`s; the store carries them out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from shoal.proto import known
from shoal.proto.kinds import CLASSES
from shoal.proto.kinds import Object as Object
from shoal.proto.v1 import objects_pb2 as o

KINDS: Mapping[str, type[Object]] = CLASSES
CLUSTER_SCOPED = known.CLUSTER_SCOPED
FINAL_PHASES = frozenset({"Succeeded", "Failed"})  # of a pod: it never runs again


class Key(NamedTuple):
    kind: str
    namespace: str  # "" for cluster-scoped kinds
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def key_of(obj: Object) -> Key:
    """The key of any object; its `kind` field must be set."""
    return Key(obj.kind, obj.metadata.namespace, obj.metadata.name)


@dataclass(frozen=True, slots=True)
class Record:
    """A committed object. `message` is shared by everybody and never changed: clone() first.
    `body` is the message's bytes as stored, without the format tag; metadata.resourceVersion is in neither."""

    key: Key
    message: Object
    body: bytes
    revision: int  # etcd's mod revision
    created: int  # etcd's create revision


# ---- changes ----
@dataclass(frozen=True, slots=True)
class Create:
    """Fails with AlreadyExists, unless what is there has the same uid (then it is a retry, and a success)."""

    object: Object


@dataclass(frozen=True, slots=True)
class Modify:
    """Read-modify-write, run on committed state when its group is built. `edit` gets a clone, changes it in place and
    returns True, or returns False for "nothing to do". It must be pure: it may run more than once."""

    key: Key
    edit: Callable[[Object], bool]
    uid: str = ""  # precondition: the object must still be this one
    revision: int = 0  # precondition: the object must be at this revision; 0: any


@dataclass(frozen=True, slots=True)
class Delete:
    """Takes the key away at once. (Graceful deletion is a Modify that sets deletionTimestamp.)"""

    key: Key
    uid: str = ""
    revision: int = 0


Change: TypeAlias = Create | Modify | Delete


@dataclass(frozen=True, slots=True)
class Event:
    """What a watch tells: `old` is None for an added object, `new` for a deleted one (whose `revision` is that of
    the deletion)."""

    key: Key
    revision: int
    old: Record | None
    new: Record | None


class View(Protocol):
    """Committed state with its indexes; no method scans a kind, save `all`."""

    @property
    def revision(self) -> int: ...
    def get(self, kind: str, namespace: str, name: str) -> Object | None: ...
    def record(self, key: Key) -> Record | None: ...
    def all(self, kind: str, namespace: str | None = None) -> Iterable[Object]: ...
    def owned(self, uid: str) -> Collection[Object]:
        """Objects with an owner reference to this uid."""
        ...

    def by_uid(self, uid: str) -> Object | None: ...
    def pods_on(self, node: str) -> Collection[o.Pod]: ...
    def labelled(self, kind: str, namespace: str, key: str, value: str) -> Collection[Object]: ...
    def referring(self, kind: str, namespace: str, name: str, node: str = "") -> Collection[o.Pod]:
        """The pods that have not ended and name this ConfigMap, Secret or claim; with `node` those bound to it."""
        ...

    def claims_on(self, volume: str) -> Collection[o.PersistentVolumeClaim]:
        """The claims that name this volume."""
        ...

    def claims_waiting(self, storage_class: str) -> Collection[o.PersistentVolumeClaim]:
        """The claims of a class ("": of none) that are not bound."""
        ...

    def volumes_on(self, node: str) -> Collection[o.PersistentVolume]:
        """The volumes that live on this node."""
        ...

    def volumes_of(self, claim_uid: str) -> Collection[o.PersistentVolume]:
        """The volumes that have been given to this claim: one, save for moments."""
        ...

    def volumes_free(self, storage_class: str) -> Collection[o.PersistentVolume]:
        """The volumes of a class ("": of none) that no claim has."""
        ...


# ---- errors of the store and the API ----
class Fault(Exception):
    """Base. `reason` is one of cluster.proto's Failure reasons; `retryable` says whether asking again can help."""

    reason = "Internal"
    retryable = False


class AlreadyExists(Fault):
    reason = "AlreadyExists"


class NotFound(Fault):
    reason = "NotFound"


class Conflict(Fault):
    """The precondition (uid or resourceVersion) does not hold."""

    reason = "Conflict"


class Invalid(Fault):
    """The change itself makes no sense, whatever is stored."""

    reason = "Invalid"


class TooLarge(Fault):
    reason = "TooLarge"


class Expired(Fault):
    """The revision asked for has been compacted away: list again."""

    reason = "Expired"


class Unavailable(Fault):
    """The store did not answer. outcome="none": nothing was written; "unknown": it may have been."""

    reason = "Unavailable"
    retryable = True

    def __init__(self, message: str, outcome: str = "none") -> None:
        super().__init__(message)
        self.outcome = outcome
        if outcome == "unknown":
            self.reason = "UnknownOutcome"


class NotLeader(Fault):
    reason = "NotLeader"
    retryable = True


class NoSpace(Fault):
    """etcd's quota is used up (its NOSPACE alarm)."""

    reason = "NoSpace"
    retryable = True
