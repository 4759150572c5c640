"""Shared GPUs on arrays against a loop over nodes and devices that says the same plainly."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.master.scheduler import gpus
from shoal.master.scheduler.gpus import QUANTUM, WHOLE, Shape, Typical, Want

MILLI = st.sampled_from([0, 1, 100, 330, 460, 540, 670, 999, 1000])
GPU_WANTS = st.one_of(
    st.sampled_from([1, 100, 330, 460, 500, 999]).map(lambda milli: Want(milli, 1)),
    st.integers(1, 5).map(lambda number: Want(WHOLE, number)),
)
WANTS = st.just(Want(0, 0)) | GPU_WANTS
CPU_LEFT = st.sampled_from([-500, 0, 100, 4000, 8000, 64000, 2_000_000])  # negative: more is bound than there is
CPU = st.sampled_from([0, 100, 4000, 8000, 64000, 2_000_000])
PLACES = ("", "a100", "t4")


@st.composite
def tables(draw: st.DrawFn) -> tuple[gpus.Ints, gpus.Ints, list[list[bool]]]:
    """Devices left, CPU left, and by node which of PLACES it belongs to."""
    width = draw(st.integers(1, 5))
    nodes = draw(st.lists(st.lists(MILLI, min_size=width, max_size=width), min_size=1, max_size=8))
    cpu = draw(st.lists(CPU_LEFT, min_size=len(nodes), max_size=len(nodes)))
    inside = draw(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=len(nodes), max_size=len(nodes)))
    return np.array(nodes, dtype=np.int64), np.array(cpu, dtype=np.int64), inside


SHAPES = st.dictionaries(st.builds(Shape, CPU, WANTS, st.sampled_from(PLACES)), st.integers(1, 50), max_size=12)


def takes(devices: list[int], want: Want) -> bool:
    if want.number == 0:
        return True
    return sum(1 for left in devices if left >= want.milli) >= want.number


def chosen(devices: list[int], want: Want) -> list[int]:
    """One after the other: the fitting device with the least left, the lowest index among equals."""
    free = list(range(len(devices)))
    picked = []
    for _ in range(want.number):
        best = min((index for index in free if devices[index] >= want.milli), key=lambda index: (devices[index], index))
        free.remove(best)
        picked.append(best)
    return picked


def popular(seen: dict[Shape, int]) -> list[tuple[Shape, int]]:
    """Shapes with GPUs, most popular first, until 95 % of their pods are covered."""
    counted = [(shape, number) for shape, number in seen.items() if shape.want.number and number]
    counted.sort(key=lambda pair: (-pair[1], pair[0].cpu, pair[0].want, repr(pair[0].where)))
    total = sum(number for _, number in counted)
    kept: list[tuple[Shape, int]] = []
    while 100 * sum(number for _, number in kept) < 95 * total:
        kept.append(counted[len(kept)])
    return kept


def unusable(devices: list[int], cpu: int, allowed: dict[str, bool], pods: list[tuple[Shape, int]]) -> int:
    """Milli-GPU that each typical pod could not use, summed by weight."""
    total = 0
    for shape, weight in pods:
        assert isinstance(shape.where, str)
        usable = allowed[shape.where] and cpu >= shape.cpu and takes(devices, shape.want)
        total += weight * sum(left for left in devices if not usable or left < shape.want.milli)
    return total


def wasted(devices: list[int], cpu: int, allowed: dict[str, bool], pods: list[tuple[Shape, int]]) -> int:
    """In eighths: seven of what is unusable, one of what is left when pods of the shape have filled the node, four of
    what lacks 7/5 of the CPU that such pods ask for per milli."""
    total = 7 * unusable(devices, cpu, allowed, pods)
    milli = sum(weight * shape.want.milli * shape.want.number for shape, weight in pods)
    asked = sum(weight * min(shape.cpu, 2**20) for shape, weight in pods)
    if asked:
        served = int(Fraction(min(max(cpu, 0), 2**20) * milli * 5, asked * 7))
        total += 4 * sum(weight for _, weight in pods) * max(sum(devices) - served, 0)
    for shape, weight in pods:
        rest, spare = list(devices), cpu
        assert isinstance(shape.where, str)
        while allowed[shape.where] and spare >= shape.cpu and takes(rest, shape.want):
            spare -= shape.cpu
            for index in chosen(rest, shape.want):
                rest[index] -= shape.want.milli
        total += weight * sum(rest)
    return total


@given(tables(), WANTS)
def test_same_nodes_same_devices(table: tuple[gpus.Ints, gpus.Ints, list[list[bool]]], want: Want) -> None:
    left = table[0]
    mask = gpus.fits(left, want)
    whole = gpus.after(left, want)
    for node, devices in enumerate(left.tolist()):
        assert mask[node] == takes(devices, want)
        if not mask[node]:
            assert whole[node].tolist() == devices
            continue
        taken = gpus.choose(devices, want)
        assert list(taken) == chosen(devices, want)
        gpus.commit(left, node, want, taken)
        assert left[node].tolist() == whole[node].tolist()
        assert left[node].min() >= 0
        assert sum(devices) - left[node].sum() == want.milli * want.number
        gpus.undo(left, node, want, taken)
        assert left[node].tolist() == devices


@given(tables(), WANTS, CPU, SHAPES)
def test_same_scores(
    table: tuple[gpus.Ints, gpus.Ints, list[list[bool]]], want: Want, cpu_wanted: int, seen: dict[Shape, int]
) -> None:
    left, cpu, inside = table
    typical = Typical.of(seen)
    pods = popular(seen)
    access = np.array([[row[PLACES.index(str(place))] for row in inside] for place in typical.places], dtype=np.bool_)
    access = access.reshape(len(typical.places), len(left))
    value = gpus.packing(typical, cpu_wanted, want, left, cpu, access)
    amounts = gpus.fragmentation(typical, left, cpu, access) if pods else np.zeros(len(left))
    for node, devices in enumerate(left.tolist()):
        allowed = dict(zip(PLACES, inside[node], strict=True))
        before = unusable(devices, int(cpu[node]), allowed, pods)
        assert amounts[node] == before
        if 0 < cpu_wanted > cpu[node] or not takes(devices, want):
            assert value[node] == 0
            continue
        rest = list(devices)
        for index in chosen(devices, want):
            rest[index] -= want.milli
        growth = wasted(rest, int(cpu[node]) - cpu_wanted, allowed, pods)
        growth -= wasted(devices, int(cpu[node]), allowed, pods)
        steps = growth // (QUANTUM * 8 * sum(n for _, n in pods)) if pods else 0
        last = min(max(int(cpu[node]), 0), 2**20 - 1) if want.number else 0
        assert value[node] == -(steps + sum(devices) / 2**16 + last / 2**36)


@given(st.lists(st.tuples(st.booleans(), st.builds(Shape, CPU, GPU_WANTS, st.sampled_from(PLACES))), max_size=60))
def test_a_workload_forgets_what_went(steps: list[tuple[bool, Shape]]) -> None:
    """Whatever came and went: the typical pods are those that were there when an eighth had changed."""
    workload = gpus.Workload()
    there, then = Counter[Shape](), Counter[Shape]()
    for comes, shape in steps:
        if not comes and not there[shape]:
            continue
        there[shape] += 1 if comes else -1
        workload.count(shape, 1 if comes else -1)
        workload = workload.clone()
        differ = sum(abs(there[one] - then[one]) for one in there | then)
        before = workload.typical
        assert workload.refresh() == (differ * 8 > then.total())
        if differ * 8 > then.total():
            then = Counter(there)
            expected = popular(then)
            assert workload.typical.weight.tolist() == [number for _, number in expected]
            assert workload.typical.cpu.tolist() == [one.cpu for one, _ in expected]
        else:
            assert workload.typical is before
