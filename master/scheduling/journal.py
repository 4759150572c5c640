"""Listens to the scheduling loop and hands what decisions were made from to the decision log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from shoal.master.model import Event
from shoal.master.scheduler.core import Plan, Waiting
from shoal.master.scheduler.journal import Entry, Held, NodeIs, Planned, PolicyIs, SpaceIs, State, VolumeIs, state_of
from shoal.master.scheduler.nodes import NodeFacts
from shoal.master.scheduler.profiles import Profile
from shoal.master.scheduler.snapshot import Hold, Snapshot
from shoal.master.scheduler.volumes import KINDS as VOLUME_KINDS

POLICIES = ("PodDisruptionBudget", "PodGroup")


class Sink(Protocol):
    """Where entries go, in order. None of this blocks."""

    def begin(self, state: State) -> None:
        """A new file, with everything."""

    def put(self, entry: Entry) -> bool:
        """False when it cannot keep up: this and what follows is lost until the next `begin`."""

    def wants_state(self) -> bool:
        """Whether the next thing must be a `begin`: the file is full, or something was lost."""


class Journal:
    """An Observer: it knows what it has told of each pod and tells only what is new."""

    def __init__(self, sink: Sink, profiles: Mapping[str, Profile], now: Callable[[], float]) -> None:
        self._sink, self._profiles, self._now = sink, profiles, now
        self._snapshot = Snapshot()
        self._told: dict[str, Hold] = {}
        self._nodes: dict[str, NodeFacts] = {}
        self._begun = False  # what is put now reaches a file that has the whole state
        self._first = True
        self._revision = 0

    def watch(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def applied(self, revision: int, events: Sequence[Event]) -> None:
        self._revision = revision
        if self._first or self._sink.wants_state():
            self._begin()
            return
        for event in events if self._begun else ():
            key = event.key
            if key.kind == "Pod":
                for record in (event.old, event.new):
                    if record is not None:
                        self._pod(record.message.metadata.uid)
            elif key.kind == "Node":
                self._node(key.name)
            elif key.kind == "Namespace":
                self._put(SpaceIs(key.name, self._snapshot.counts.spaces.get(key.name, {})))
            elif key.kind in VOLUME_KINDS:
                self._put(VolumeIs(key, event.new.message if event.new else None))
            elif key.kind in POLICIES:
                table = self._snapshot.groups if key.kind == "PodGroup" else self._snapshot.budgets
                self._put(PolicyIs(key.kind, key.namespace, key.name, table.get((key.namespace, key.name))))

    def committed(self, uid: str, hold: Hold) -> None:
        self._pod(uid)

    def undone(self, uid: str) -> None:
        self._pod(uid)

    def planned(self, revision: int, window: int, queue: Sequence[Waiting], plan: Plan) -> None:
        held = self._snapshot.held
        devices = {}
        placed = [one.waiting.uid for one in plan.bindings] + [one.waiting.uid for one in plan.preemptions]
        for uid in placed:
            hold = held(uid)
            if hold is not None:
                self._told[uid] = hold
                if hold.devices:
                    devices[uid] = hold.devices
        for preemption in plan.preemptions:
            for victim in preemption.victims:
                if (hold := held(victim.uid)) is not None:
                    self._told[victim.uid] = hold
        self._put(Planned(revision, window, self._now(), tuple(queue), plan, devices))
        if self._sink.wants_state():
            self._begin()

    def _pod(self, uid: str) -> None:
        hold = self._snapshot.held(uid)
        if hold == self._told.get(uid):
            return
        if hold is None:
            del self._told[uid]
        else:
            self._told[uid] = hold
        self._put(Held(uid, hold))

    def _node(self, name: str) -> None:
        """Most events of a node say that it is still there."""
        old, facts = self._nodes.get(name), self._snapshot.nodes.facts.get(name)
        if facts is None:
            self._nodes.pop(name, None)
        elif old == facts and old.images == facts.images:
            return
        else:
            self._nodes[name] = facts
        self._put(NodeIs(name, facts))

    def _put(self, entry: Entry) -> None:
        if self._begun and not self._sink.put(entry):
            self._begun = False

    def _begin(self) -> None:
        self._first = False
        self._told, self._nodes = self._snapshot.all_holds(), dict(self._snapshot.nodes.facts)
        self._sink.begin(state_of(self._snapshot, self._profiles, self._now(), self._revision))
        self._begun = True
