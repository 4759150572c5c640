"""Asks the core for a plan, and when it fails finds the pods that it fails on: the others go on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shoal.master.scheduler.account import Account, account
from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.core import Plan, Scheduler, Waiting
from shoal.master.scheduler.filters import Frame
from shoal.master.scheduler.queue import Run
from shoal.master.scheduler.snapshot import Hold, Snapshot

log = logging.getLogger("shoal.scheduler")

FAILURES_LIMIT = 64  # failed calls of one window: then the rest of it waits too
ACCOUNTS_LIMIT = (
    32  # classes of one window whose decisions are accounted for; of the others it is worked out when asked
)


class Failed(NamedTuple):
    """A pod on which the core failed."""

    waiting: Waiting
    error: str


@dataclass(slots=True)
class Judged:
    plan: Plan = field(default_factory=Plan)
    failed: list[Failed] = field(default_factory=list)
    accounts: dict[PodClass, Account] = field(default_factory=dict)  # of the first run of each class


class Judge:
    """The core, with its failures kept to the pods that cause them."""

    def __init__(self, snapshot: Snapshot, scheduler: Scheduler | None = None) -> None:
        self.snapshot = snapshot
        self.scheduler = scheduler or Scheduler()

    def decide(self, queue: Sequence[Waiting]) -> Judged:
        """A plan for those on which the core does not fail; the failed ones hold nothing."""
        judged = Judged()

        def tell(snapshot: Snapshot, known: Frame, run: Run) -> None:
            if run.pods not in judged.accounts and len(judged.accounts) < ACCOUNTS_LIMIT:
                judged.accounts[run.pods] = account(snapshot, known, len(run.waiting))

        self.scheduler.before_run = tell
        self._decide(queue, judged, [FAILURES_LIMIT])
        self.scheduler.before_run = None
        return judged

    def _decide(self, queue: Sequence[Waiting], judged: Judged, left: list[int]) -> None:
        """Halves what fails, so that one odd pod in thousands costs a dozen more calls."""
        before = {one.uid: hold for one in queue if (hold := self.snapshot.held(one.uid)) is not None}
        try:
            plan = self.scheduler.schedule(self.snapshot, queue)
        except Exception as error:
            self._give_back(queue, before)
            left[0] -= 1
            middle = split(queue)
            if not middle or left[0] <= 0:
                log.exception("the scheduler failed on %d pods, the first is %s", len(queue), queue[0].key)
                judged.failed += [Failed(one, f"{type(error).__name__}: {error}") for one in queue]
                return
            self._decide(queue[:middle], judged, left)
            self._decide(queue[middle:], judged, left)
            return
        judged.plan.bindings += plan.bindings
        judged.plan.refusals += plan.refusals
        judged.plan.preemptions += plan.preemptions

    def _give_back(self, queue: Sequence[Waiting], before: dict[str, Hold]) -> None:
        """What a failed call has committed; what was held before stays held."""
        for one in queue:
            held = before.get(one.uid)
            if self.snapshot.held(one.uid) == held:
                continue
            self.snapshot.undo(one.uid)
            if held is not None:
                self.snapshot.commit(one.uid, held)


def split(queue: Sequence[Waiting]) -> int:
    """Where to halve: not inside a gang; 0 when it cannot be."""
    starts = [at for at in range(1, len(queue)) if not _together(queue[at - 1], queue[at])]
    return min(starts, key=lambda at: abs(at - len(queue) // 2)) if starts else 0


def _together(first: Waiting, second: Waiting) -> bool:
    group = first.pods.group
    return bool(group) and group == second.pods.group and first.key.namespace == second.key.namespace
