"""Node lifecycle: heartbeats in, Ready conditions and taints out, and the brake when too many vanish at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from shoal.master.controllers.base import (
    Controller,
    Outcome,
    Said,
    condition,
    instant,
    seconds,
    set_condition,
    terminating,
)
from shoal.master.model import Change, Event, Key, Modify, Object, View, key_of
from shoal.proto.v1 import objects_pb2 as o

NOT_READY = "node.shoal.dev/not-ready"
UNREACHABLE = "node.shoal.dev/unreachable"
MEMORY_PRESSURE = "node.kubernetes.io/memory-pressure"
DISK_PRESSURE = "node.kubernetes.io/disk-pressure"
PID_PRESSURE = "node.kubernetes.io/pid-pressure"
OWN_TAINTS = frozenset({NOT_READY, UNREACHABLE})
MISSED_BEATS = 3  # so many missed heartbeats make a node NotReady
BRAKE_NODES = 2  # the brake needs more nodes than this ...
BRAKE_SHARE = 0.3  # ... and more than this share of all, vanished within one grace period
SWEEP = Key("Node", "", "*")  # all nodes are judged together
SWEEP_SECONDS = 1.0
WATCHED = ("RuntimeReady", "NetworkReady")  # an agent's own conditions; False makes its node not ready


@dataclass(frozen=True, slots=True)
class Pressure:
    """A condition that an agent reports, the taint that follows it, and the events at its beginning and end."""

    condition: str
    taint: str
    what: str
    begun: str
    over: str


PRESSURES = (
    Pressure("MemoryPressure", MEMORY_PRESSURE, "memory", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
    Pressure("DiskPressure", DISK_PRESSURE, "disk space", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
    Pressure("PIDPressure", PID_PRESSURE, "process ids", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
)
PRESSURE_TAINTS = frozenset(pressure.taint for pressure in PRESSURES)


@dataclass(frozen=True, slots=True)
class Beats:
    """What the leader has heard. All times are of one monotonic clock, in seconds."""

    clock: float  # now
    last_seen: Mapping[str, float] = field(default_factory=dict)
    judging_since: float = 0.0  # leadership with time to reconnect, or etcd's return: nobody was silent before
    period: float = 5.0  # of heartbeats

    @property
    def grace(self) -> float:
        return MISSED_BEATS * self.period

    def since(self, node: str) -> float:
        """From when its silence counts."""
        return max(self.last_seen.get(node, self.judging_since), self.judging_since)

    def heard(self, node: str) -> bool:
        """A heartbeat of its own within the grace."""
        return self.clock - self.last_seen.get(node, float("-inf")) <= self.grace

    def silent(self, node: str) -> bool:
        """Nothing for longer than the grace, during which it could have been heard."""
        return self.clock - self.since(node) > self.grace and not self.heard(node)


def controller(beats: Callable[[], Beats]) -> Controller:
    return Controller("node", {"Node": sweep_key}, partial(_call, beats, {}))


def sweep_key(_view: View, _event: Event) -> Iterable[Key]:
    return (SWEEP,)


def _call(beats: Callable[[], Beats], fine: Fine, view: View, _key: Key, now: float) -> Outcome:
    return reconcile(view, SWEEP, now, beats(), fine)


# Nodes that are as they should be while they are heard of, and their names; by identity, as a message never changes.
Fine: TypeAlias = dict[int, tuple[o.Node, str]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a node's Ready condition and taint should be. `key` is empty for "no taint"."""

    status: str
    reason: str
    message: str
    taint: str


HEARD = Verdict("True", "AgentReady", "its agent is heard of", "")


def reconcile(view: View, _key: Key, now: float, beats: Beats, fine: Fine | None = None) -> Outcome:
    """Judges every node; those without enough evidence stay as they are. `fine` is kept from one call to the next."""
    fine = {} if fine is None else fine
    nodes, total = doubtful(view, beats, fine)
    outcome = Outcome(again=SWEEP_SECONDS)
    vanished = brake(nodes, total, now, beats)
    words = []
    for node in nodes:
        mark_pressure(node, now, outcome)
        verdict = judge(node, beats, vanished, total)
        if verdict is None or settled(node, verdict):
            if verdict == HEARD and pressure_taints(node) == sorted(pressed(node)):
                fine[id(node)] = (node, node.metadata.name)
            continue
        outcome.changes.append(pronounce(node, verdict, now))
        before = condition(node.status.conditions, "Ready")
        if before is None or (before.status, before.reason) != (verdict.status, verdict.reason):
            words.append(f"{node.metadata.name} is {describe(verdict)}")
            if before is None and verdict.status != "True":
                continue  # it is joining: the log's line is enough
            grave = "Normal" if verdict.status == "True" else "Warning"
            outcome.said.append(Said(node, grave, verdict.reason, f"Node {words[-1]}"))
    if words:
        outcome.did = "; ".join(words)
    return outcome


def doubtful(view: View, beats: Beats, fine: Fine) -> tuple[list[o.Node], int]:
    """The nodes that have to be looked at, and how many there are. The others are fine, and have not missed a beat."""
    nodes, still, total = list[o.Node](), Fine(), 0
    fresh = beats.clock - beats.grace + beats.period
    for node in view.all("Node"):
        known = fine.get(id(node))
        if known is not None and beats.last_seen.get(known[1], float("-inf")) >= fresh:
            still[id(node)] = known
            total += 1
        elif isinstance(node, o.Node) and not terminating(node):
            nodes.append(node)
            total += 1
    fine.clear()
    fine.update(still)
    return nodes, total


def describe(verdict: Verdict) -> str:
    return "ready" if verdict.status == "True" else f"not ready: {verdict.message}"


# ---- pressure ----
def pressed(node: o.Node) -> list[str]:
    """The taints that its agent's conditions ask for, in the order of PRESSURES."""
    return [p.taint for p in PRESSURES if (c := condition(node.status.conditions, p.condition)) and c.status == "True"]


def pressure_taints(node: o.Node) -> list[str]:
    """Those that it has."""
    return sorted(t.key for t in node.spec.taints if t.key in PRESSURE_TAINTS)


def mark_pressure(node: o.Node, now: float, outcome: Outcome) -> None:
    """Keeps new pods away from a node while it is short of something; those that are there stay."""
    before, wanted = pressure_taints(node), pressed(node)
    if before == sorted(wanted):
        return
    outcome.changes.append(Modify(key_of(node), partial(_mark_pressure, now=now), uid=node.metadata.uid))
    for pressure in PRESSURES:
        if (pressure.taint in wanted) != (pressure.taint in before):
            begun = pressure.taint in wanted
            grave, reason = ("Warning", pressure.begun) if begun else ("Normal", pressure.over)
            what = "is short of" if begun else "has enough of"
            outcome.said.append(Said(node, grave, reason, f"Node {node.metadata.name} {what} {pressure.what}"))


def _mark_pressure(found: Object, now: float) -> bool:
    if not isinstance(found, o.Node) or pressure_taints(found) == sorted(pressed(found)):
        return False
    wanted, there = pressed(found), pressure_taints(found)
    kept = [t for t in found.spec.taints if t.key not in PRESSURE_TAINTS or t.key in wanted]
    kept += [o.Taint(key=key, effect="NoSchedule", timeAdded=instant(now)) for key in wanted if key not in there]
    del found.spec.taints[:]
    found.spec.taints.extend(kept)
    return True


# ---- judging ----
def judge(node: o.Node, beats: Beats, vanished: int, total: int) -> Verdict | None:
    name = node.metadata.name
    if beats.silent(name):
        if vanished:
            why = (
                f"its agent is not heard of; its pods stay, because {vanished} of {total} nodes vanished at once "
                "and the master may be the one that is cut off"
            )
            return Verdict("Unknown", "EvictionStopped", why, "")
        return Verdict("Unknown", "NodeStatusUnknown", "its agent is not heard of", UNREACHABLE)
    if not beats.heard(name):
        return None
    for type_ in WATCHED:
        found = condition(node.status.conditions, type_)
        if found is not None and found.status == "False":
            return Verdict("False", type_.replace("Ready", "NotReady"), found.message, NOT_READY)
    return HEARD


def brake(nodes: Sequence[o.Node], total: int, now: float, beats: Beats) -> int:
    """How many nodes of so many vanished within one grace period, when that is too many; else 0.
    A node that has missed all but one beat counts already: when the first is given up, the others must show."""
    early = beats.grace - beats.period
    times = []
    for node in nodes:
        name = node.metadata.name
        if beats.clock - beats.last_seen.get(name, float("-inf")) <= early:
            continue
        found = condition(node.status.conditions, "Ready")
        if found is not None and found.status == "Unknown":
            # Given up before, perhaps by an earlier leader: it vanished one grace before its condition says so.
            times.append(beats.clock - max(0.0, now - seconds(found.lastTransitionTime)) - beats.grace)
        elif beats.clock - beats.since(name) > early:
            times.append(beats.since(name))
    times.sort()
    # A whole number of beats' jitter and one sweep may lie between the verdicts on nodes that vanished together.
    window = beats.grace + beats.period
    worst = max((bisect_right(times, at + window) - index for index, at in enumerate(times)), default=0)
    return worst if worst > BRAKE_NODES and worst > BRAKE_SHARE * total else 0


# ---- writing ----
def settled(node: o.Node, verdict: Verdict) -> bool:
    """True when the node says so already. Counts in the brake's message may age: they are not worth a write."""
    found = condition(node.status.conditions, "Ready")
    if found is None or (found.status, found.reason) != (verdict.status, verdict.reason):
        return False
    return taints_right(node, verdict.taint)


def taints_right(node: o.Node, key: str) -> bool:
    own = [t.key for t in node.spec.taints if t.key in OWN_TAINTS]
    return own == ([key] if key else [])


def pronounce(node: o.Node, verdict: Verdict, now: float) -> Change:
    wanted = o.Condition(type="Ready", status=verdict.status, reason=verdict.reason, message=verdict.message)

    def edit(found: Object) -> bool:
        if not isinstance(found, o.Node):
            return False
        changed = set_condition(found.status.conditions, wanted, now)
        if not taints_right(found, verdict.taint):
            kept = [t for t in found.spec.taints if t.key not in OWN_TAINTS]
            if verdict.taint:
                kept.append(o.Taint(key=verdict.taint, effect="NoExecute", timeAdded=instant(now)))
            del found.spec.taints[:]
            found.spec.taints.extend(kept)
            changed = True
        return changed

    return Modify(key_of(node), edit, uid=node.metadata.uid)
