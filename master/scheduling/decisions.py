"""What is kept of each decision, and who may listen while decisions are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from shoal.master.model import Event
from shoal.master.scheduler.account import Account
from shoal.master.scheduler.core import Plan, Victim, Waiting
from shoal.master.scheduler.explain import Explanation
from shoal.master.scheduler.snapshot import Hold, Snapshot

KEPT = 100_000  # pods whose last decision is remembered


class Decision(NamedTuple):
    """The last decision about a pod: it got `node`, or was refused with `why`; a nominated pod has both."""

    uid: str
    revision: int  # the newest store revision that the snapshot had taken in
    window: int  # counted in this term
    at: float  # wall clock, seconds
    waited: float  # seconds since it came into the queue
    attempts: int
    node: str = ""
    why: Explanation | None = None
    victims: tuple[Victim, ...] = ()
    committed: bool = False  # the store has taken the binding
    account: Account | None = None  # shared by all of a run


class Decisions:
    """The last decision about each of the pods that were looked at last."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._by_uid: dict[str, Decision] = {}

    def __len__(self) -> int:
        return len(self._by_uid)

    def of(self, uid: str) -> Decision | None:
        return self._by_uid.get(uid)

    def note(self, decisions: Iterable[Decision]) -> None:
        found = self._by_uid
        for decision in decisions:
            before = found.pop(decision.uid, None)  # the newest stands last
            if before is not None and before.victims and before.node == decision.node and not decision.victims:
                decision = decision._replace(victims=before.victims)  # who made room there still belongs to the story
            found[decision.uid] = decision
        while len(found) > self._kept:
            del found[next(iter(found))]

    def commit(self, uid: str) -> None:
        decision = self._by_uid.get(uid)
        if decision is not None:
            self._by_uid[uid] = decision._replace(committed=True)

    def forget(self, uid: str) -> None:
        self._by_uid.pop(uid, None)


class Observer(Protocol):
    """Hears, in order, everything that changes the snapshot and every plan: with it decisions can be repeated. It is
    called in the loop and must be quick; the arguments are shared and never changed."""

    def watch(self, snapshot: Snapshot) -> None:
        """Once, before all else: whose changes these are. Each call below comes after the change."""

    def applied(self, revision: int, events: Sequence[Event]) -> None:
        """The snapshot took these events; the first call of a term brings the whole state."""

    def committed(self, uid: str, hold: Hold) -> None:
        """Outside of a plan: room that is held for a nominated pod."""

    def undone(self, uid: str) -> None:
        """What the pod held was given back."""

    def planned(self, revision: int, window: int, queue: Sequence[Waiting], plan: Plan) -> None:
        """`plan` was made for `queue`, in this order; its bindings and nominations are in the snapshot."""


class NoObserver:
    """Hears nothing."""

    def watch(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def applied(self, revision: int, events: Sequence[Event]) -> None:
        """Nothing."""

    def committed(self, uid: str, hold: Hold) -> None:
        """Nothing."""

    def undone(self, uid: str) -> None:
        """Nothing."""

    def planned(self, revision: int, window: int, queue: Sequence[Waiting], plan: Plan) -> None:
        """Nothing."""
