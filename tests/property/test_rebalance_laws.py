"""Rebalancing against linear programming, and that each of its prefixes is feasible."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from shoal.master.model import Event, Key, Record, key_of
from shoal.master.scheduler.classes import compile_class
from shoal.master.scheduler.core import Scheduler, Waiting
from shoal.master.scheduler.rebalance import MIN_GAIN, Candidate, Moves, loads, plan_rebalance
from shoal.master.scheduler.snapshot import Hold, Snapshot
from shoal.proto.v1 import objects_pb2 as o
from tests import control_world as w

MIB_PER_MILLI = 2  # the same shape for nodes and pods, so that both shares are one
DISK = "disk"


@dataclass
class Case:
    """`cpu`: of nodes, by name; pods as (milli-CPU, node, whether it may move, whether it wants a disk)."""

    cpu: dict[str, int]
    disks: frozenset[str]
    pods: list[tuple[int, str, bool, bool]]

    def used(self, node: str, movable: bool | None = None) -> int:
        return sum(cpu for cpu, on, moves, _ in self.pods if on == node and movable in (None, moves))


@st.composite
def cases(draw: st.DrawFn, picky: bool = False, most_nodes: int = 6, most_pods: int = 14) -> Case:
    """Nodes that hold what is on them."""
    names = [f"n{number}" for number in range(draw(st.integers(1, most_nodes)))]
    case = Case({name: draw(st.sampled_from([1000, 2000, 4000])) for name in names}, frozenset(), [])
    case.disks = frozenset(draw(st.sets(st.sampled_from(names)))) if picky else frozenset(names)
    for _ in range(draw(st.integers(0, most_pods))):
        node, cpu = draw(st.sampled_from(names)), draw(st.sampled_from([50, 100, 250, 400, 900]))
        wants_disk = picky and node in case.disks and draw(st.booleans())
        if case.used(node) + cpu <= case.cpu[node]:
            case.pods.append((cpu, node, draw(st.sampled_from([True, True, True, False])), wants_disk))
    return case


def event(obj: o.Node) -> Event:
    record = Record(key_of(obj), obj, b"", 1, 1)
    return Event(record.key, 1, None, record)


def built(case: Case) -> tuple[Snapshot, list[Candidate]]:
    snapshot = Snapshot()
    for name, cpu in case.cpu.items():
        node = w.node(name, cpu=f"{cpu}m", memory=f"{cpu * MIB_PER_MILLI}Mi")
        if name in case.disks:
            node.metadata.labels[DISK] = "ssd"
        snapshot.apply([event(node)])
    candidates = []
    for number, (cpu, where, movable, wants_disk) in enumerate(case.pods):
        pod = w.pod(f"p{number}", cpu=f"{cpu}m", memory=f"{cpu * MIB_PER_MILLI}Mi")
        if wants_disk:
            pod.spec.nodeSelector[DISK] = "ssd"
        pods, key = compile_class(pod), Key("Pod", "default", f"p{number}")
        snapshot.commit(f"p{number}", Hold(where, pods, key=key, arrival=(number, "")))
        if movable:
            candidates.append(Candidate(Waiting(f"p{number}", key, pods, (number, "")), where))
    return snapshot, candidates


def planned(snapshot: Snapshot, candidates: list[Candidate], limit: int = 1000) -> Moves:
    steps = plan_rebalance(snapshot, Scheduler(), candidates, limit)
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            moves: Moves = ended.value
            return moves


def program(case: Case) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[tuple[float, float]], int]:
    """Variables: for each movable pod its share on each node, then the highest load t. Rows of A x <= b: what is on a
    node stays below t times its capacity. Bounds keep picky pods off nodes without a disk."""
    nodes = list(case.cpu)
    movable = [(cpu, disk) for cpu, _, moves, disk in case.pods if moves]
    rows = np.zeros((len(nodes), len(movable) * len(nodes) + 1))
    limits = np.zeros(len(nodes))
    bounds: list[tuple[float, float]] = []
    for _, wants_disk in movable:
        bounds += [(0.0, 0.0 if wants_disk and node not in case.disks else 1.0) for node in nodes]
    for index, node in enumerate(nodes):
        for number, (cpu, _) in enumerate(movable):
            rows[index, number * len(nodes) + index] = cpu
        rows[index, -1] = -case.cpu[node]
        limits[index] = -case.used(node, movable=False)
    return rows, limits, [*bounds, (0.0, 1.0)], len(movable)


def once_each(pods: int, nodes: int) -> npt.NDArray[np.float64]:
    rows = np.zeros((pods, pods * nodes + 1))
    for number in range(pods):
        rows[number, number * nodes : (number + 1) * nodes] = 1.0
    return rows


def lower_bound(case: Case) -> float:
    """The highest load when pods may be cut into pieces: no placement is better."""
    rows, limits, bounds, pods = program(case)
    goal = np.zeros(rows.shape[1])
    goal[-1] = 1.0
    equal = once_each(pods, len(case.cpu)) if pods else None
    found = linprog(goal, A_ub=rows, b_ub=limits, A_eq=equal, b_eq=np.ones(pods) if pods else None, bounds=bounds)
    assert found.success, found.message
    return float(found.fun)


def optimum(case: Case) -> float:
    """The highest load of the best placement of whole pods."""
    rows, limits, bounds, pods = program(case)
    goal = np.zeros(rows.shape[1])
    goal[-1] = 1.0
    whole = np.ones(rows.shape[1])
    whole[-1] = 0
    constraints = [LinearConstraint(rows, ub=limits)]
    if pods:
        constraints.append(LinearConstraint(once_each(pods, len(case.cpu)), 1, 1))
    lows, highs = zip(*bounds, strict=True)
    found = milp(goal, constraints=constraints, integrality=whole, bounds=Bounds(lows, highs))
    assert found.success, found.message
    return float(found.fun)


def allowance(case: Case) -> float:
    """What docs/planning.md promises: the least gain and the largest movable pod's share of a mean node."""
    largest = max((cpu for cpu, _, moves, _ in case.pods if moves), default=0)
    return MIN_GAIN + largest * len(case.cpu) / sum(case.cpu.values())


@given(cases())
def test_the_fullest_node_ends_near_the_linear_program_s_bound(case: Case) -> None:
    snapshot, candidates = built(case)
    before = float(loads(snapshot).max())
    moves = planned(snapshot, candidates)
    after, bound = float(loads(snapshot).max()), lower_bound(case)
    assert bound - 1e-9 <= after <= before
    assert after <= max(bound, 0.0) + allowance(case) + 1e-9, (after, bound, moves)


@given(cases(most_nodes=3, most_pods=7))
def test_nothing_beats_the_integer_program(case: Case) -> None:
    snapshot, candidates = built(case)
    planned(snapshot, candidates)
    after, best = float(loads(snapshot).max()), optimum(case)
    assert best - 1e-6 <= after <= best + allowance(case) + 1e-6


@given(cases(picky=True), st.integers(1, 5))
def test_each_prefix_is_feasible_and_makes_things_better(case: Case, limit: int) -> None:
    snapshot, candidates = built(case)
    moves = planned(snapshot, candidates, limit).moves
    assert len(moves) <= limit
    assert len({move.uid for move in moves}) == len(moves)
    movable = {one.waiting.uid: one for one in candidates}
    replay, _ = built(case)
    for move in moves:
        waiting, source = movable[move.uid]
        before = loads(replay)
        assert source == move.source
        assert abs(before[replay.row[source]] - move.before) < 1e-12
        replay.undo(move.uid)
        (binding,) = Scheduler().schedule(replay, [waiting]).bindings
        assert binding.node == move.target != move.source
        after = loads(replay)
        assert all((replay.free(name) >= 0).all() for name in replay.resources)
        assert max(after[replay.row[source]], after[replay.row[move.target]]) <= move.before - MIN_GAIN + 1e-12
        assert sorted(after, reverse=True) < sorted(before, reverse=True)
        if (DISK, "ssd") in waiting.pods.selector:
            assert move.target in case.disks
    assert lower_bound(case) <= float(loads(replay).max()) + 1e-9
    assert (loads(replay) == loads(snapshot)).all()


@given(cases(picky=True))
def test_looking_for_moves_leaves_no_trace(case: Case) -> None:
    snapshot, candidates = built(case)
    moves = planned(snapshot, candidates).moves
    other, _ = built(case)
    for move in moves:
        hold = other.held(move.uid)
        assert hold is not None
        other.undo(move.uid)
        other.commit(move.uid, hold._replace(node=move.target))
    for name in snapshot.resources:
        assert (snapshot.free(name) == other.free(name)).all()
    assert {uid: hold.node for node in case.cpu for uid, hold in snapshot.pods_on(node).items()} == {
        uid: hold.node for node in case.cpu for uid, hold in other.pods_on(node).items()
    }
