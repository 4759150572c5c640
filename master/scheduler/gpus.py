"""Shared GPUs on plain arrays: what fits, which devices are taken, and how much a placement fragments a node.

A table is `int64[N, G]`: the milli-GPU left of each device, 0 where there is no device. A request is a share below 1000
milli of one device, or whole devices. The fragmentation of a node is the milli-GPU on it that a pod drawn from the
typical ones could not use ("Beware of Fragmentation", USENIX ATC 2023, section 3). All sums are exact integers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float64]

WHOLE = 1000  # milli of one device
COVER_PERCENT = 95  # of the pods, by the most popular shapes: the paper's typical pods
TYPICAL_LIMIT = 128  # shapes; each costs a comparison per node that is scored
RENEWAL = 8  # the typical shapes are made anew when an eighth of the pods has changed
QUANTUM = 20  # milli of added waste that count as the same
EIGHTHS = 8
RESERVE = (7, 5)  # the CPU that is kept for a milli of GPU, over what the typical pods ask per milli: 7/5
STRANDED = 4  # eighths that milli without such CPU count for
CHUNK = 4096  # nodes looked at together: bounds the memory
CPU_STEP = 1 << 20  # above any node's milli-CPU; more counts as this much
GPU_STEP = 1 << 16  # above any node's milli-GPU


class Want(NamedTuple):
    """`milli` of each of `number` devices: a share (below 1000, one device) or whole devices; (0, 0) for none."""

    milli: int
    number: int

    @staticmethod
    def of(share: int, whole: int) -> Want:
        """Of a class's `gpu_milli` and `gpu_count`, of which one is 0 at least."""
        return Want(WHOLE, whole) if whole else Want(share, 1 if share else 0)


class Shape(NamedTuple):
    """What a typical pod asks for: milli-CPU, devices, and where it may go."""

    cpu: int
    want: Want
    where: Hashable = None  # its selector and required affinity


def fits(left: Ints, want: Want) -> Bools:
    """`bool[N]`: the nodes with enough devices that have that much left."""
    found: Bools = np.count_nonzero(left >= max(want.milli, 1), axis=1) >= want.number
    return found


def choose(devices: Sequence[int], want: Want) -> tuple[int, ...]:
    """The indexes taken on a node that fits: for a share the fitting device with the least left, whole devices from
    the first free one on; the lowest index among equals."""
    possible = [index for index, left in enumerate(devices) if left >= want.milli]
    possible.sort(key=lambda index: devices[index])
    return tuple(possible[: want.number])


def commit(left: Ints, node: int, want: Want, devices: Sequence[int]) -> None:
    left[node, list(devices)] -= want.milli


def undo(left: Ints, node: int, want: Want, devices: Sequence[int]) -> None:
    left[node, list(devices)] += want.milli


def after(left: Ints, want: Want) -> Ints:
    """A copy of the table with one more such pod on each node; a node that it does not fit on stays as it is."""
    result = left.copy()
    if want.number == 0:
        return result
    able = left >= want.milli
    if want.number == 1:
        rows = np.arange(len(left))
        best = np.argmin(np.where(able, left, WHOLE + 1), axis=1)
        result[rows, best] -= np.where(able[rows, best], want.milli, 0)
        return result
    taken = able & (np.cumsum(able, axis=1) <= want.number) & fits(left, want)[:, None]
    result[taken] -= want.milli
    return result


@dataclass(frozen=True, slots=True)
class Typical:
    """The most popular shapes of GPU pods, as arrays of length T; `total` is the sum of the weights."""

    cpu: Ints
    number: Ints  # of devices
    weight: Ints
    sizes: Ints  # the distinct milli of the shapes, ascending
    size: Ints  # each shape's index in `sizes`
    places: tuple[Hashable, ...]  # the distinct `where` of the shapes: the rows of the access table
    place: Ints  # each shape's index in `places`
    total: int
    asked: tuple[int, int]  # milli-GPU and milli-CPU of all of them

    @staticmethod
    def of(seen: Mapping[Shape, int]) -> Typical:
        """Of how often each shape was seen: the most popular that make up 95 % of the pods with GPUs."""
        popular = sorted(((shape, n) for shape, n in seen.items() if shape.want.number and n > 0), key=_popularity)
        goal = sum(n for _, n in popular) * COVER_PERCENT
        kept: list[tuple[Shape, int]] = []
        covered = 0
        while covered * 100 < goal and len(kept) < TYPICAL_LIMIT:
            kept.append(popular[len(kept)])
            covered += kept[-1][1]
        return Typical.every(kept)

    @staticmethod
    def every(kept: Sequence[tuple[Shape, int]]) -> Typical:
        """Of just these shapes with their weights."""
        shapes = [shape for shape, _ in kept]
        sizes = sorted({shape.want.milli for shape in shapes})
        places = list(dict.fromkeys(shape.where for shape in shapes))
        return Typical(
            cpu=_ints(shape.cpu for shape in shapes),
            number=_ints(shape.want.number for shape in shapes),
            weight=_ints(n for _, n in kept),
            sizes=_ints(sizes),
            size=_ints(sizes.index(shape.want.milli) for shape in shapes),
            places=tuple(places),
            place=_ints(places.index(shape.where) for shape in shapes),
            total=sum(n for _, n in kept),
            asked=(
                sum(n * shape.want.milli * shape.want.number for shape, n in kept),
                sum(n * min(shape.cpu, CPU_STEP) for shape, n in kept),
            ),
        )


def _popularity(pair: tuple[Shape, int]) -> tuple[int, int, Want, str]:
    shape, number = pair
    return -number, shape.cpu, shape.want, repr(shape.where)


def _ints(values: Iterable[int]) -> Ints:
    return np.array(list(values), dtype=np.int64)


class Workload:
    """Counts the shapes of the pods that hold GPUs now: the estimate of what will be asked for next."""

    def __init__(self) -> None:
        self.typical = Typical.of({})
        self._now: dict[Shape, int] = {}
        self._then: dict[Shape, int] = {}  # as `typical` was made from
        self._differ = 0  # sum of the differences between the two
        self._total = 0  # of `_then`

    def clone(self) -> Workload:
        made = Workload()
        made.typical, made._then, made._differ, made._total = self.typical, self._then, self._differ, self._total
        made._now = dict(self._now)
        return made

    def count(self, shape: Shape, sign: int) -> None:
        """One pod of the shape more, or less."""
        before, then = self._now.get(shape, 0), self._then.get(shape, 0)
        number = before + sign
        self._differ += abs(number - then) - abs(before - then)
        if number:
            self._now[shape] = number
        else:
            del self._now[shape]

    def made_from(self) -> dict[Shape, int]:
        """What `typical` was made from."""
        return dict(self._then)

    def restore(self, then: Mapping[Shape, int]) -> None:
        """`typical` as it was made from these numbers of pods."""
        self._then, self._total, self.typical = dict(then), sum(then.values()), Typical.of(then)
        shapes = self._now.keys() | self._then.keys()
        self._differ = sum(abs(self._now.get(shape, 0) - self._then.get(shape, 0)) for shape in shapes)

    def refresh(self) -> bool:
        """True when `typical` was made anew: every score of devices is another one then. It is once the numbers of
        pods per shape differ from those it was made from by more than an eighth of their sum."""
        if self._differ * RENEWAL <= self._total:
            return False
        self._then, self._differ = dict(self._now), 0
        self._total = sum(self._then.values())
        self.typical = Typical.of(self._then)
        return True


def fragmentation(typical: Typical, left: Ints, cpu: Ints, access: Bools) -> Ints:
    """`int64[N]`: the unusable milli-GPU of each node, summed over the typical pods by weight (divide by `total` for
    the expectation). What is left is unusable for a pod that the node cannot take, and otherwise on the devices with
    less than the pod asks of one. `access` is `bool[P, N]`: where each of `places` lets a pod go."""
    return _by_chunks(_fragmentation, typical, left, cpu, access)


def waste(typical: Typical, left: Ints, cpu: Ints, access: Bools) -> Ints:
    """`int64[N]`, in eighths: seven of the fragmentation, one of what would stay unused if the node were filled with
    pods of the typical shape alone, as many as its devices and its CPU take, and four of what is stranded."""
    return _by_chunks(_waste, typical, left, cpu, access)


def _by_chunks(
    amount: Callable[[Typical, Ints, Ints, Bools], Ints], typical: Typical, left: Ints, cpu: Ints, access: Bools
) -> Ints:
    starts = range(0, max(len(left), 1), CHUNK)
    ends = [slice(at, at + CHUNK) for at in starts]
    return np.concatenate([amount(typical, left[rows], cpu[rows], access[:, rows]) for rows in ends])


def _taking(typical: Typical, able: Bools, cpu: Ints, access: Bools) -> Bools:
    """bool[N, T]: the node can take a pod of the shape; `able` is bool[N, G, S]: the device has that size left."""
    takes: Bools = np.count_nonzero(able, axis=1)[:, typical.size] >= typical.number
    takes &= cpu[:, None] >= typical.cpu
    takes &= access[typical.place].T
    return takes


def _fragmentation(typical: Typical, left: Ints, cpu: Ints, access: Bools) -> Ints:
    able = left[:, :, None] >= typical.sizes
    usable = np.einsum("ng,ngs->ns", left, able)
    used = np.where(_taking(typical, able, cpu, access), usable[:, typical.size], 0) @ typical.weight
    result: Ints = left.sum(axis=1) * typical.total - used
    return result


def _waste(typical: Typical, left: Ints, cpu: Ints, access: Bools) -> Ints:
    able = left[:, :, None] >= typical.sizes
    takes = _taking(typical, able, cpu, access)
    usable = np.einsum("ng,ngs->ns", left, able)[:, typical.size]
    slots = (np.maximum(left, 0)[:, :, None] // typical.sizes).sum(axis=1)[:, typical.size] // typical.number
    by_cpu = np.where(typical.cpu > 0, cpu[:, None] // np.maximum(typical.cpu, 1), slots)
    filled = np.minimum(slots, by_cpu) * (typical.sizes[typical.size] * typical.number)
    used = np.where(takes, (EIGHTHS - 1) * usable + filled, 0) @ typical.weight
    result: Ints = left.sum(axis=1) * (typical.total * EIGHTHS) - used
    result += stranded(typical, left, cpu) * (typical.total * STRANDED)
    return result


def stranded(typical: Typical, left: Ints, cpu: Ints) -> Ints:
    """`int64[N]`: the idle milli-GPU for which a node lacks CPU, when each needs 7/5 of what the typical pods ask for
    on average: CPU is kept where devices are idle, and what is above that is free for others."""
    unused = left.sum(axis=1)
    gpu, asked = typical.asked
    if asked == 0:
        return np.zeros_like(unused)
    served = np.clip(cpu, 0, CPU_STEP) * (gpu * RESERVE[1]) // (asked * RESERVE[0])
    result: Ints = np.maximum(unused - served, 0)
    return result


def packing(typical: Typical, cpu_wanted: int, want: Want, left: Ints, cpu: Ints, access: Bools) -> Floats:
    """`float64[N]`, the higher the better: minus the steps of 20 milli by which a pod's placement makes the node's
    waste grow; as fractions of a step the GPU and then, for a pod with devices, the CPU that is left, so that among
    equals the fullest node is best. Exact: a whole number below 2^48 over 2^36. 0 where the pod does not fit."""
    value = np.zeros(len(left), dtype=np.float64)
    room = fits(left, want)
    rows = np.flatnonzero(room & (cpu >= cpu_wanted) if cpu_wanted else room)
    left, cpu, access = left[rows], cpu[rows], access[:, rows]
    growth = np.zeros(len(rows), dtype=np.int64)
    if typical.total and len(rows):
        both = np.concatenate([left, after(left, want)])
        spare = np.concatenate([cpu, cpu - cpu_wanted])
        amounts = waste(typical, both, spare, np.concatenate([access, access], axis=1))
        growth = (amounts[len(left) :] - amounts[: len(left)]) // (QUANTUM * EIGHTHS * typical.total)
    unused = np.minimum(left.sum(axis=1), GPU_STEP - 1)
    last = np.clip(cpu, 0, CPU_STEP - 1 if want.number else 0)
    value[rows] = -((growth * GPU_STEP + unused) * CPU_STEP + last) / (GPU_STEP * CPU_STEP)
    return value
