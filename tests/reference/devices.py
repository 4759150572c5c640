"""Shared devices, plainly: what is left of each, which ones a pod gets, what a placement breaks up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shoal.master.scheduler.classes import PodClass
from tests.reference.nodes import Node, lets_in

GPU, WHOLE = "shoal.dev/gpu", 1000  # milli of a device


def choose(free: list[int], what: PodClass) -> tuple[int, ...] | None:
    """The device with the least left on which a share fits, or the first free ones; None when it does not fit."""
    if what.gpu_milli:
        fitting = [(amount, device) for device, amount in enumerate(free) if amount >= what.gpu_milli]
        return (min(fitting)[1],) if fitting else None
    whole = [device for device, amount in enumerate(free) if amount == WHOLE]
    return tuple(whole[: what.gpu_count]) if len(whole) >= what.gpu_count else None


# ---- fragmentation ----
@dataclass(frozen=True)
class Shape:
    """What a typical pod asks for."""

    what: PodClass  # its cpu, devices, selector and required node affinity count
    cpu: int
    milli: int  # of each of `number` devices
    number: int

    @staticmethod
    def of(what: PodClass) -> Shape:
        same = PodClass((), what.selector, (), (0, 0), "", node_terms=what.node_terms)
        share = (what.gpu_milli, 1) if what.gpu_milli else (WHOLE, what.gpu_count)
        return Shape(same, dict(what.requests).get("cpu", 0), *share)


@dataclass
class Typical:
    """The shapes that are taken as typical, by the pods that there were when they were counted."""

    shapes: list[tuple[Shape, int]] = field(default_factory=list)
    counted: Counter[Shape] = field(default_factory=Counter)

    def renew(self, pods: Iterable[PodClass]) -> None:
        """When the numbers of pods per shape have changed by more than an eighth of all that were counted."""
        now = Counter(Shape.of(what) for what in pods if what.gpu_milli or what.gpu_count)
        differ = sum(abs(now[shape] - self.counted[shape]) for shape in now | self.counted)
        if differ * 8 <= self.counted.total():
            return
        self.counted, self.shapes = now, []
        for shape, number in sorted(now.items(), key=_popularity):
            if 100 * sum(n for _, n in self.shapes) >= 95 * now.total() or len(self.shapes) == 128:
                break
            self.shapes.append((shape, number))

    def pods(self) -> int:
        return sum(number for _, number in self.shapes)


def _popularity(pair: tuple[Shape, int]) -> tuple[int, int, int, int, str]:
    shape, number = pair
    return -number, shape.cpu, shape.milli, shape.number, repr((shape.what.selector, shape.what.node_terms))


def unusable(typical: Typical, node: Node, free: Sequence[int], cpu: int) -> int:
    """Milli that typical pods could not use, summed over them."""
    total = 0
    for shape, number in typical.shapes:
        enough = [amount for amount in free if amount >= shape.milli]
        takes = len(enough) >= shape.number and cpu >= shape.cpu and lets_in(shape.what, node)
        total += number * (sum(free) - sum(enough) if takes else sum(free))
    return total


def wasted(typical: Typical, node: Node, free: Sequence[int], cpu: int) -> int:
    """In eighths: seven of what typical pods could not use, one of what would be left if they filled the node, four of
    what is stranded."""
    total = 7 * unusable(typical, node, free, cpu) + 4 * stranded(typical, free, cpu) * typical.pods()
    for shape, number in typical.shapes:
        total += number * sum(free)
        if lets_in(shape.what, node) and cpu >= shape.cpu:
            fit = sum(max(amount, 0) // shape.milli for amount in free) // shape.number
            fit = min(fit, cpu // shape.cpu) if shape.cpu else fit
            total -= number * fit * shape.milli * shape.number
    return total


def stranded(typical: Typical, free: Sequence[int], cpu: int) -> int:
    """Milli for which there is less than 7/5 of the CPU that typical pods ask for per milli, all taken together."""
    milli = sum(number * shape.milli * shape.number for shape, number in typical.shapes)
    asked = sum(number * min(shape.cpu, 2**20) for shape, number in typical.shapes)
    served = min(max(cpu, 0), 2**20) * 5 * milli // (7 * asked) if asked else sum(free)
    return max(sum(free) - served, 0)


def packing(typical: Typical, node: Node, free: Sequence[int], cpu: int, what: PodClass) -> float:
    """Minus the steps of 20 milli by which the waste grows, then the milli and, for a pod with devices, the milli-CPU
    that are left."""
    taken = choose(list(free), what)
    wanted = dict(what.requests).get("cpu", 0)
    if taken is None or 0 < wanted > cpu:
        return 0.0  # as where the pod does not fit
    rest = [amount - (what.gpu_milli or WHOLE) if i in taken else amount for i, amount in enumerate(free)]
    growth = wasted(typical, node, rest, cpu - wanted) - wasted(typical, node, free, cpu)
    steps = growth // (20 * 8 * typical.pods()) if typical.shapes else 0
    last = min(max(cpu, 0), 2**20 - 1) if taken else 0
    return -((steps * 2**16 + min(sum(free), 2**16 - 1)) * 2**20 + last) / 2**36
