"""schedule(snapshot, queue) -> Plan: the whole decision, without a clock and without I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shoal.master.model import Key
from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.explain import Explanation, explain
from shoal.master.scheduler.filters import Frame, frame
from shoal.master.scheduler.gang import place_gang
from shoal.master.scheduler.place import place
from shoal.master.scheduler.profiles import BUILT_IN, Profile
from shoal.master.scheduler.queue import Run, runs
from shoal.master.scheduler.queue import Waiting as Waiting
from shoal.master.scheduler.queue import order as order
from shoal.master.scheduler.snapshot import Snapshot

FRAMES_LIMIT = 4096  # classes; each costs some bytes per node


class Binding(NamedTuple):
    waiting: Waiting
    node: str


class Refusal(NamedTuple):
    waiting: Waiting
    explanation: Explanation


class Victim(NamedTuple):
    uid: str
    key: Key
    priority: int


class Preemption(NamedTuple):
    """The pod is nominated to the node: it holds the room there, and the victims are to go. No victims: it waits for
    pods of lower priority that are leaving already. `breaks`: victims whose eviction no budget allows."""

    waiting: Waiting
    node: str
    victims: tuple[Victim, ...]
    breaks: int


@dataclass(slots=True)
class Plan:
    """Bindings and nominations are committed in the snapshot already: `undo` those that the store refuses."""

    bindings: list[Binding] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)  # nominated pods among them
    preemptions: list[Preemption] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{len(self.bindings)} pods placed, {len(self.refusals)} wait"


class Scheduler:
    """Keeps what was compiled for a snapshot between calls; the same plan comes out without it."""

    def __init__(self, profiles: Mapping[str, Profile] = BUILT_IN) -> None:
        self.profiles = profiles
        self._frames: dict[PodClass, Frame] = {}
        self._snapshot: Snapshot | None = None
        self._made_for: tuple[int, int, int] = (-1, -1, -1)

    def frame(self, snapshot: Snapshot, pods: PodClass) -> Frame:
        """What is known of a class as long as the nodes' facts and the namespaces' labels stay as they are."""
        now = (snapshot.epoch, snapshot.counts.version, len(snapshot.resources))
        if snapshot is not self._snapshot or now != self._made_for or len(self._frames) >= FRAMES_LIMIT:
            self._frames, self._snapshot, self._made_for = {}, snapshot, now
        state = snapshot.counts.state(pods)
        found = self._frames.get(pods)
        if found is None:
            found = self._frames[pods] = frame(snapshot, pods, self.profiles.get(pods.profile), state)
        found.state = state  # idle ones are forgotten now and then
        return found

    def schedule(self, snapshot: Snapshot, queue: Sequence[Waiting]) -> Plan:
        """In the order of the queue (see `order`); each run is judged anew."""
        plan = Plan()
        snapshot.counts.tidy()
        for run in runs(queue, snapshot.nominated):
            for one in run.waiting if snapshot.nominated else ():
                if one.uid in snapshot.nominated:
                    snapshot.undo(one.uid)  # gives up its room when its turn comes
            self._run(snapshot, run, plan)
        return plan

    def _run(self, snapshot: Snapshot, run: Run, plan: Plan) -> None:
        """A gang's members are one run."""
        snapshot.workload.refresh()
        if run.group:
            outcome = place_gang(snapshot, lambda pods: self.frame(snapshot, pods), run)
            plan.bindings += [Binding(one, node) for one, node in outcome.placed]
            plan.refusals += [Refusal(one, story) for one, story in outcome.refused]
            return
        known = self.frame(snapshot, run.pods)
        placed = place(snapshot, known, run.waiting)
        plan.bindings += map(Binding, run.waiting, placed)
        if len(placed) < len(run.waiting):
            self._refuse(snapshot, known, run.waiting[len(placed) :], plan)

    def _refuse(self, snapshot: Snapshot, known: Frame, waiting: Sequence[Waiting], plan: Plan) -> None:
        """No node takes the first of these, and so none of them: preempt.py is to look for victims here."""
        story = explain(snapshot, known)
        plan.refusals += [Refusal(one, story) for one in waiting]


def schedule(snapshot: Snapshot, queue: Sequence[Waiting]) -> Plan:
    """One decision without anything kept from before."""
    return Scheduler().schedule(snapshot, queue)
