"""schedule(snapshot, queue) -> Plan: the whole decision, without a clock and without I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.explain import Explanation, explain
from shoal.master.scheduler.filters import Frame, feasible, frame
from shoal.master.scheduler.gang import place_gang
from shoal.master.scheduler.place import place
from shoal.master.scheduler.preempt import Preemption as Preemption
from shoal.master.scheduler.preempt import Preemptor
from shoal.master.scheduler.preempt import Victim as Victim
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
        self.before_run: Callable[[Snapshot, Frame, Run], None] | None = None  # hears of each; must change nothing
        self._frames: dict[PodClass, Frame] = {}
        self._snapshot: Snapshot | None = None
        self._made_for: tuple[int, int, int] = (-1, -1, -1)
        self._preemptor = Preemptor()

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
        """In the order of the queue (see `order`); each run is judged anew. When it raises, nobody is evicted."""
        plan = Plan()
        snapshot.counts.tidy()
        self._preemptor.begin(snapshot)
        try:
            self._plan(snapshot, queue, plan)
        except Exception:
            self._preemptor.take_back(snapshot)
            raise
        return plan

    def _plan(self, snapshot: Snapshot, queue: Sequence[Waiting], plan: Plan) -> None:
        for run in runs(queue, snapshot.nominated):
            snapshot.workload.refresh()
            for one in run.waiting if snapshot.nominated else ():
                if one.uid in snapshot.nominated:
                    snapshot.undo(one.uid)  # gives up its room when its turn comes
            self._run(snapshot, run, plan)

    def _run(self, snapshot: Snapshot, run: Run, plan: Plan) -> None:
        """A gang's members are one run."""
        if run.group:
            outcome = place_gang(snapshot, lambda pods: self.frame(snapshot, pods), run)
            plan.bindings += [Binding(one, node) for one, node in outcome.placed]
            plan.refusals += [Refusal(one, story) for one, story in outcome.refused]
            return
        known = self.frame(snapshot, run.pods)
        if self.before_run is not None:
            self.before_run(snapshot, known, run)
        placed = place(snapshot, known, run.waiting)
        plan.bindings += map(Binding, run.waiting, placed)
        if len(placed) < len(run.waiting):
            self._evict(snapshot, known, run.waiting[len(placed) :], plan)

    def _evict(self, snapshot: Snapshot, known: Frame, waiting: Sequence[Waiting], plan: Plan) -> None:
        """No node takes the first of these. Each has others evicted, if that helps; the next one is judged anew. Once
        nobody can be evicted, the rest waits for the same reason."""
        search = self._preemptor.search(snapshot, known)
        for number, one in enumerate(waiting):
            if number and (placed := self._fits(snapshot, known, one)):
                plan.bindings += placed
                continue
            story = explain(snapshot, known)
            found = search.nominate(one) if search is not None else None
            if found is None:
                plan.refusals += [Refusal(other, story) for other in waiting[number:]]
                return
            plan.refusals.append(Refusal(one, story))
            plan.preemptions.append(found)

    def _fits(self, snapshot: Snapshot, known: Frame, one: Waiting) -> list[Binding]:
        """After a preemption a node may take the next pod as it is."""
        if not known.pods.claims and not feasible(snapshot, known).any():
            return []
        return [Binding(one, node) for node in place(snapshot, known, [one])]


def schedule(snapshot: Snapshot, queue: Sequence[Waiting]) -> Plan:
    """One decision without anything kept from before."""
    return Scheduler().schedule(snapshot, queue)
