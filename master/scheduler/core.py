"""schedule(snapshot, queue) -> Plan: the whole decision, without a clock and without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from shoal.master.model import Key
from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.explain import Explanation, explain
from shoal.master.scheduler.filters import Static, VolumeFilter, static
from shoal.master.scheduler.place import place_batch
from shoal.master.scheduler.snapshot import Snapshot

STATIC_CACHE_LIMIT = 4096  # classes; each costs 9 bytes per node


class Waiting(NamedTuple):
    """A pod in the queue."""

    uid: str
    key: Key
    pods: PodClass


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

    def __init__(self) -> None:
        self._statics: dict[PodClass, Static] = {}
        self._epoch = -1

    def static(self, snapshot: Snapshot, pods: PodClass) -> Static:
        if self._epoch != snapshot.epoch or len(self._statics) >= STATIC_CACHE_LIMIT:
            self._statics, self._epoch = {}, snapshot.epoch
        found = self._statics.get(pods)
        if found is None:
            found = self._statics[pods] = static(snapshot, pods)
        return found

    def schedule(self, snapshot: Snapshot, queue: Sequence[Waiting]) -> Plan:
        """In the order of the queue; neighbours of one class are placed together. Room only shrinks within a plan,
        so that a class that was refused once is refused for the same reason until its end."""
        plan = Plan()
        refused: dict[PodClass, Explanation] = {}
        for pods, run in groupby(queue, key=lambda waiting: waiting.pods):
            batch = list(run)
            placed: list[str] = []
            if pods not in refused:
                fixed = self.static(snapshot, pods)
                uids = [waiting.uid for waiting in batch]
                place = _place_with_claims if pods.claims else place_batch
                placed = place(snapshot, pods, fixed, uids)
            plan.bindings += map(Binding, batch, placed)
            if len(placed) < len(batch):
                story = refused.get(pods) or refused.setdefault(pods, explain(snapshot, pods))
                plan.refusals += _refuse(batch[len(placed) :], story)
        return plan


def _place_with_claims(snapshot: Snapshot, pods: PodClass, fixed: Static, uids: list[str]) -> list[str]:
    """One by one: where the first goes, its claims go, and the others with them."""
    placed: list[str] = []
    for uid in uids:
        volumes = VolumeFilter.of(snapshot, pods)
        here = place_batch(snapshot, pods, Static(volumes.mask(fixed.mask), fixed.soft), [uid])
        if not here:
            break
        placed += here
    return placed


def _refuse(waiting: Iterable[Waiting], story: Explanation) -> list[Refusal]:
    return [Refusal(one, story) for one in waiting]


def schedule(snapshot: Snapshot, queue: Sequence[Waiting]) -> Plan:
    """One decision without anything kept from before."""
    return Scheduler().schedule(snapshot, queue)
