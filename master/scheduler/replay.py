"""Makes the decisions of a journal again and compares them, one plan at a time.

Each plan starts from the state that was recorded: where one comes out otherwise the recorded outcome is put in its
place, so that every difference is one of that plan alone.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from shoal.master.model import KINDS, Event, Key, Record
from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.core import Plan, Scheduler, Waiting
from shoal.master.scheduler.journal import FORMAT, JournalError, outcome
from shoal.master.scheduler.nodes import NodeFacts
from shoal.master.scheduler.plain import Json, PlainError, decode
from shoal.master.scheduler.profiles import Profile
from shoal.master.scheduler.snapshot import Hold, Snapshot

Said = Mapping[str, Json]


class Decided(NamedTuple):
    """About one pod: its node with devices, or why it waits and for whose going."""

    node: str = ""
    devices: tuple[int, ...] = ()
    why: str = ""
    nominated: str = ""
    victims: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.node:
            on = f" (devices {', '.join(map(str, self.devices))})" if self.devices else ""
            return self.node + on
        if self.nominated:
            number = len(self.victims)
            return f"nominated to {self.nominated} for {number} victim{'' if number == 1 else 's'}"
        return f"pending: {self.why}" if self.why else "not decided"


class Difference(NamedTuple):
    line: int
    window: int
    pod: Key
    recorded: Decided
    replayed: Decided


@dataclass(slots=True)
class Report:
    """Of a whole journal. `plans` and `decisions` count what was compared."""

    version: str = ""
    plans: int = 0
    decisions: int = 0
    placed: int = 0  # as recorded
    placed_again: int = 0
    preempting: int = 0
    nodes: set[str] = field(default_factory=set)  # that pods were placed on, as recorded
    nodes_again: set[str] = field(default_factory=set)
    differences: list[Difference] = field(default_factory=list)


class Replay:
    """Feeds the records of one journal to a snapshot of its own. `profile` takes the place of all that were in use."""

    def __init__(self, profile: Profile | None = None) -> None:
        self.report = Report()
        self._profile = profile
        self._snapshot = Snapshot()
        self._scheduler = Scheduler()
        self._classes: list[PodClass] = []
        self._begun = False
        self._takers: dict[str, Callable[[int, Said], None]] = {
            "head": self._head, "class": self._class, "node": self._node, "policy": self._policy,
            "space": self._space, "volume": self._volume, "hold": self._hold, "free": self._free,
            "begin": self._begin, "plan": self._plan,
        }  # fmt: skip

    def run(self, records: Iterable[tuple[int, Said]]) -> Report:
        """Raises JournalError."""
        number = 0
        for number, said in records:
            taker = self._takers.get(str(said.get("t")))
            if taker is None or (number == 1) != (said["t"] == "head"):
                raise JournalError(f"line {number}: a record of kind {said.get('t')!r} has no place here")
            try:
                taker(number, said)
            except (PlainError, DecodeError, binascii.Error, KeyError, IndexError, TypeError, ValueError) as error:
                if isinstance(error, JournalError):
                    raise
                raise JournalError(f"line {number}: cannot be understood: {error}") from error
        if not self._begun:
            raise JournalError(f"line {number}: the file ends before the state is complete: nothing was decided in it")
        return self.report

    # ---- what was ----
    def _head(self, number: int, said: Said) -> None:
        if said["format"] != FORMAT:
            raise JournalError(f"line {number}: format {said['format']}; this version reads format {FORMAT}")
        self.report.version = said["version"]
        profiles: dict[str, Profile] = {name: decode(one) for name, one in said["profiles"].items()}
        if self._profile is not None:
            profiles = dict.fromkeys(profiles, self._profile)
        self._scheduler = Scheduler(profiles)

    def _class(self, number: int, said: Said) -> None:
        if said["number"] != len(self._classes):
            raise JournalError(f"line {number}: class {said['number']} comes out of its turn")
        self._classes.append(decode(said["class"]))

    def _node(self, _: int, said: Said) -> None:
        facts: NodeFacts | None = decode(said["facts"])
        self._snapshot.take_nodes({said["name"]: facts})

    def _policy(self, _: int, said: Said) -> None:
        table: dict[tuple[str, str], Any] = (
            self._snapshot.groups if said["kind"] == "PodGroup" else self._snapshot.budgets
        )
        name = said["namespace"], said["name"]
        if said["policy"] is None:
            table.pop(name, None)
        else:
            table[name] = decode(said["policy"])

    def _space(self, _: int, said: Said) -> None:
        self._snapshot.counts.take_space(said["name"], said["labels"])

    def _volume(self, _: int, said: Said) -> None:
        key = Key(*said["key"])
        record = None
        if said["body"] is not None:
            body = base64.b64decode(said["body"], validate=True)
            record = Record(key, KINDS[key.kind].FromString(body), body, 0, 0)
        self._snapshot.volumes.apply(Event(key, 0, None, record))

    def _hold(self, _: int, said: Said) -> None:
        pods = self._classes[said["class"]]
        key = None if said["key"] is None else Key(*said["key"])
        leaving, nominated = map(bool, said["flags"])
        revision, uid = said["arrival"]
        hold = Hold(said["node"], pods, tuple(said["devices"]), key, leaving, nominated, (revision, uid))
        self._put(said["uid"], hold)

    def _put(self, uid: str, hold: Hold) -> None:
        self._snapshot.undo(uid)
        self._snapshot.commit(uid, hold)

    def _free(self, _: int, said: Said) -> None:
        self._snapshot.undo(said["uid"])

    def _begin(self, _: int, said: Said) -> None:
        self._snapshot.workload.restore({decode(shape): number for shape, number in said["typical"]})
        self._begun = True

    # ---- what was decided ----
    def _plan(self, number: int, said: Said) -> None:
        if not self._begun:
            raise JournalError(f"line {number}: a plan before the state is complete")
        queue = [
            Waiting(uid, Key(kind, space, name), self._classes[pods], (revision, arrival))
            for uid, kind, space, name, pods, revision, arrival in said["queue"]
        ]
        plan = self._scheduler.schedule(self._snapshot, queue)
        devices = self._devices(plan)
        again = decided(len(queue), outcome(queue, plan, devices))
        recorded = decided(len(queue), said)
        self._count(recorded, again)
        if again != recorded:
            for one, have, want in zip(queue, again, recorded, strict=True):
                if have != want:
                    self.report.differences.append(Difference(number, said["window"], one.key, want, have))
            self._correct(queue, plan, recorded)

    def _devices(self, plan: Plan) -> dict[str, tuple[int, ...]]:
        holds = ((one.waiting.uid, self._snapshot.held(one.waiting.uid)) for one in plan.bindings)
        return {uid: hold.devices for uid, hold in holds if hold is not None and hold.devices}

    def _count(self, recorded: list[Decided], again: list[Decided]) -> None:
        report = self.report
        report.plans += 1
        report.decisions += len(recorded)
        report.placed += sum(bool(one.node) for one in recorded)
        report.placed_again += sum(bool(one.node) for one in again)
        report.preempting += sum(bool(one.nominated) for one in recorded)
        report.nodes |= {one.node for one in recorded} - {""}
        report.nodes_again |= {one.node for one in again} - {""}

    def _correct(self, queue: list[Waiting], plan: Plan, recorded: list[Decided]) -> None:
        """The snapshot as it was after the recorded plan."""
        for preemption in plan.preemptions:
            self._mark((victim.uid for victim in preemption.victims), leaving=False)
        for one in queue:
            self._snapshot.undo(one.uid)
        for one, want in zip(queue, recorded, strict=True):
            if want.node:
                self._put(one.uid, Hold(want.node, one.pods, want.devices, one.key, False, False, one.arrival))
            elif want.nominated:
                self._put(one.uid, Hold(want.nominated, one.pods, (), one.key, False, True, one.arrival))
            self._mark(want.victims, leaving=True)

    def _mark(self, uids: Iterable[str], leaving: bool) -> None:
        for uid in uids:
            hold = self._snapshot.held(uid)
            if hold is not None:
                self._put(uid, hold._replace(leaving=leaving))


def decided(number: int, said: Said) -> list[Decided]:
    """For each place of the queue, from what `outcome` says."""
    found = [Decided()] * number
    stories = ["" if not told else told[0] for told in said["stories"]]
    for at, node, devices in said["bound"]:
        found[at] = Decided(node, tuple(devices))
    for at, story in said["refused"]:
        found[at] = Decided(why=stories[story])
    for at, node, _, victims in said["preempting"]:
        found[at] = found[at]._replace(nominated=node, victims=tuple(victims))
    return found


def replay(records: Iterator[tuple[int, Said]], profile: Profile | None = None) -> Report:
    """Raises JournalError."""
    return Replay(profile).run(records)
