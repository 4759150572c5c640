"""What gangs and preemptions cost the scheduler's core, next to the plain loop: `bench.scheduler` prints
it. Milliseconds of CPU, of `schedule()` with everything committed and explained."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.plain_groups import Evictions, plain_eviction, plain_gang, plain_loop

from shoal.master.model import Event, Key, Record
from shoal.master.scheduler.classes import GROUP_LABEL, PodClass
from shoal.master.scheduler.core import Plan, Scheduler, Waiting
from shoal.master.scheduler.snapshot import Hold, Snapshot
from shoal.proto.v1 import objects_pb2 as o

RACK = "rack"
NODES_PER_RACK = 16
GANGS, GANG_MEMBERS = 20, 4
PREEMPTORS, ALIKE = 20, 500
LOW_PODS = 3  # on each node, besides those that are there
PLAIN_SAMPLE = 2  # gangs, preemptions
GIB = 1 << 30
Make = Callable[[str, int, int], PodClass]  # app, milli-CPU, bytes


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    ms: float
    plain_ms: float

    def __str__(self) -> str:
        return f"{self.what}: {self.ms:.2f} ms, plainly {self.plain_ms:.0f} ms, {self.plain_ms / self.ms:.0f} times"


def rows(base: Snapshot, make: Make) -> list[Row]:
    full = crowded(base, make)
    return [gangs(base.clone(), make), preemptions(full.clone(), make), alike(full.clone(), make)]


def timed(snapshot: Snapshot, kinds: list[PodClass]) -> tuple[Plan, float]:
    """The plan, and milliseconds of CPU."""
    queue = [Waiting(f"pod-{n}", Key("Pod", "default", f"p{n}"), one, (n, f"pod-{n}")) for n, one in enumerate(kinds)]
    started = time.process_time()
    plan = Scheduler().schedule(snapshot, queue)
    return plan, (time.process_time() - started) * 1000


# ---- gangs ----
def member(make: Make, number: int) -> PodClass:
    name = f"gang-{number}"
    pods = make(name, 1000 + number, GIB)
    return replace(pods, group=name, labels=tuple(sorted((*pods.labels, (GROUP_LABEL, name)))))


def gangs(snapshot: Snapshot, make: Make) -> Row:
    """Each is placed within one rack, all racks looked at."""
    loop = plain_loop(snapshot)
    kinds = [member(make, number) for number in range(GANGS)]
    for pods in kinds:
        group = o.PodGroup(kind="PodGroup")
        group.metadata.namespace, group.metadata.name = "default", pods.group
        group.spec.minMember, group.spec.topologyKey = GANG_MEMBERS, RACK
        record = Record(Key("PodGroup", "default", pods.group), group, b"", 1, 1)
        snapshot.apply([Event(record.key, 1, None, record)])
    plan, spent = timed(snapshot, [pods for pods in kinds for _ in range(GANG_MEMBERS)])
    nodes = [binding.node for binding in plan.bindings]
    assert len(nodes) == GANGS * GANG_MEMBERS, "a gang is not whole"
    started = time.process_time()
    wanted = [name for pods in kinds[:PLAIN_SAMPLE] for name in plain_gang(loop, pods, GANG_MEMBERS, RACK)]
    plain = (time.process_time() - started) * 1000
    assert nodes[: len(wanted)] == wanted, f"the plain loop decides otherwise: {nodes[: len(wanted)]} {wanted}"
    return Row(f"a gang of {GANG_MEMBERS} within a rack of {NODES_PER_RACK}", spent / GANGS, plain / PLAIN_SAMPLE)


# ---- preemption ----
def crowded(base: Snapshot, make: Make) -> Snapshot:
    """Every node full of pods of low priority."""
    rng, snapshot = random.Random(3), base.clone()
    cpu = snapshot.resource_row("cpu")
    assert cpu is not None
    for row, name in enumerate(snapshot.names):
        each = int(snapshot.left[cpu, row]) // LOW_PODS // 250 * 250
        for number in range(LOW_PODS):
            pods = replace(make("low", each, GIB), priority=rng.randint(-5, 5))
            uid = f"low-{row}-{number}"
            snapshot.commit(uid, Hold(name, pods, key=Key("Pod", "default", uid), arrival=(row, uid)))
    return snapshot


def preemptions(full: Snapshot, make: Make) -> Row:
    """Each pod is of a class of its own."""
    plain = full.clone()
    kinds = [replace(make(f"high-{n}", 4000 + n, GIB), priority=100) for n in range(PREEMPTORS)]
    return _compared("a preemption", full, plain, kinds)


def alike(full: Snapshot, make: Make) -> Row:
    """One run of identical pods."""
    plain = full.clone()
    kinds = [replace(make("high", 4000, GIB), priority=100)] * ALIKE
    return _compared(f"a preemption, one of {ALIKE} alike", full, plain, kinds)


def _compared(what: str, full: Snapshot, plain: Snapshot, kinds: list[PodClass]) -> Row:
    plan, spent = timed(full, kinds)
    assert len(plan.preemptions) == len(kinds), "some pods found no victims"
    have = [Evictions(one.node, tuple(victim.uid for victim in one.victims)) for one in plan.preemptions]
    started = time.process_time()
    wanted = plain_eviction(plain, kinds[0])
    took = (time.process_time() - started) * 1000
    assert have[0] == wanted, f"the plain loop decides otherwise: {have[0]} {wanted}"
    return Row(what, spent / len(kinds), took)
