"""Replays a workload on a cluster, first come, first served, without departures, by the published policies.

Protocol: "Beware of Fragmentation" (USENIX ATC 2023) and its simulator: the pods are shuffled, drawn again at random
until their GPU demand is 130 % of the capacity or dropped at random until it is; nodes carry names in a random order.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from bench.openb import LEVELS, Ask, Machine

from shoal.master.scheduler import gpus
from shoal.master.scheduler.gpus import Bools, Floats, Ints, Shape, Typical

ARRIVAL = 1.30  # demand at the end, of the capacity
MAX_CPU, MAX_GPU = 128_000, 8_000  # BestFit's scale: the simulator's greatest node, milli
SEEDS = tuple(range(42, 52))  # the published table's


def arrivals(pods: Sequence[Ask], capacity: int, rng: random.Random) -> list[Ask]:
    """In their order; `capacity` in milli-GPU."""
    queue = list(pods)
    rng.shuffle(queue)
    demand = sum(ask.milli for ask in queue)
    goal = ARRIVAL * capacity
    while demand > goal:
        demand -= queue.pop(rng.randrange(len(queue))).milli
    while True:
        ask = pods[rng.randrange(len(pods))]
        if demand + ask.milli > goal:
            return queue
        demand += ask.milli
        queue.append(ask)


def shuffled(machines: Sequence[Machine], rng: random.Random) -> list[Machine]:
    """In the order of the names that break ties."""
    order = sorted(machines, key=lambda machine: machine.name)
    rng.shuffle(order)
    return order


@dataclass(slots=True)
class Cluster:
    """What is left on each node, and a journal of the nodes that changed."""

    cpu: Ints
    memory: Ints
    left: Ints
    models: list[str]
    journal: list[int] = field(default_factory=list)
    _access: dict[Hashable, Bools] = field(default_factory=dict)

    @staticmethod
    def of(machines: Sequence[Machine]) -> Cluster:
        left = np.zeros((len(machines), max(machine.gpus for machine in machines)), dtype=np.int64)
        for row, machine in enumerate(machines):
            left[row, : machine.gpus] = gpus.WHOLE
        cpu = np.array([machine.cpu for machine in machines], dtype=np.int64)
        memory = np.array([machine.memory for machine in machines], dtype=np.int64)
        return Cluster(cpu, memory, left, [machine.model for machine in machines])

    def access(self, models: Hashable) -> Bools:
        """The nodes with one of the models, a tuple of names; all for an empty one."""
        assert isinstance(models, tuple)
        found = self._access.get(models)
        if found is None:
            allowed = [not models or model in models for model in self.models]
            found = self._access[models] = np.array(allowed, dtype=np.bool_)
        return found

    def fits(self, ask: Ask, rows: Ints) -> Bools:
        room = (self.cpu[rows] >= ask.cpu) & (self.memory[rows] >= ask.memory) & self.access(ask.models)[rows]
        return room & gpus.fits(self.left[rows], ask.want)

    def take(self, ask: Ask, row: int, devices: Sequence[int]) -> None:
        self.cpu[row] -= ask.cpu
        self.memory[row] -= ask.memory
        gpus.commit(self.left, row, ask.want, devices)
        self.journal.append(row)


class Policy(Protocol):
    def scores(self, cluster: Cluster, ask: Ask, rows: Ints) -> Floats: ...

    def node(self, scores: Floats) -> int:
        """The row of the node that is taken; -inf is a node that does not fit."""

    def devices(self, cluster: Cluster, ask: Ask, row: int) -> tuple[int, ...]: ...


class Random:
    """Any node that fits, any device that fits."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def scores(self, cluster: Cluster, ask: Ask, rows: Ints) -> Floats:
        return np.zeros(len(rows), dtype=np.float64)

    def node(self, scores: Floats) -> int:
        return int(self._rng.choice(np.flatnonzero(np.isfinite(scores))))

    def devices(self, cluster: Cluster, ask: Ask, row: int) -> tuple[int, ...]:
        left = cluster.left[row].tolist()
        if ask.want.milli in (0, gpus.WHOLE):
            return gpus.choose(left, ask.want)
        return (self._rng.choice([index for index, milli in enumerate(left) if milli >= ask.want.milli]),)


class _Best:
    """The highest score, the first name among equals, the tightest device."""

    def node(self, scores: Floats) -> int:
        return int(np.argmax(scores))

    def devices(self, cluster: Cluster, ask: Ask, row: int) -> tuple[int, ...]:
        return gpus.choose(cluster.left[row].tolist(), ask.want)


class BestFit(_Best):
    """The least CPU and GPU left, each as a share of the greatest node, in whole percents."""

    def scores(self, cluster: Cluster, ask: Ask, rows: Ints) -> Floats:
        cpu = (cluster.cpu[rows] - ask.cpu) / MAX_CPU
        gpu = (cluster.left[rows].sum(axis=1) - ask.milli) / MAX_GPU
        value: Floats = np.trunc((1.0 - (cpu * 0.5 + gpu * 0.5)) * 100.0)
        return value


class Fgd(_Best):
    """The steepest descent of fragmentation, in whole percents of a sigmoid; a share takes the device that gives it."""

    def __init__(self, cluster: Cluster, pods: Sequence[Ask]) -> None:
        shapes = Counter(Shape(ask.cpu, ask.want, ask.models) for ask in pods)
        self._typical, self._total = _typical_of_all(shapes)
        self._access = np.array([cluster.access(models) for models in self._typical.places])

    def scores(self, cluster: Cluster, ask: Ask, rows: Ints) -> Floats:
        best: Floats = self._options(cluster, ask, rows).max(axis=0)
        return best

    def devices(self, cluster: Cluster, ask: Ask, row: int) -> tuple[int, ...]:
        if ask.want.milli in (0, gpus.WHOLE):
            return gpus.choose(cluster.left[row].tolist(), ask.want)
        return (int(np.argmax(self._options(cluster, ask, np.array([row]))[:, 0])),)

    def _options(self, cluster: Cluster, ask: Ask, rows: Ints) -> Floats:
        """By device and node for a share, in one row for all else."""
        left, cpu, access = cluster.left[rows], cluster.cpu[rows], self._access[:, rows]
        before = self._amount(left, cpu, access)
        if ask.want.milli in (0, gpus.WHOLE):
            return self._percent(before - self._amount(gpus.after(left, ask.want), cpu - ask.cpu, access))[None, :]
        found = np.full((left.shape[1], len(rows)), -np.inf)
        for device in range(left.shape[1]):
            able = np.flatnonzero(left[:, device] >= ask.want.milli)
            changed = left[able]
            changed[:, device] -= ask.want.milli
            amount = self._amount(changed, cpu[able] - ask.cpu, access[:, able])
            found[device, able] = self._percent(before[able] - amount)
        return found

    def _amount(self, left: Ints, cpu: Ints, access: Bools) -> Floats:
        """Milli; to a typical pod without GPUs all that is left is a fragment."""
        without = self._total - self._typical.total
        whole = gpus.fragmentation(self._typical, left, cpu, access) + without * left.sum(axis=1)
        amount: Floats = whole / self._total
        return amount

    @staticmethod
    def _percent(gain: Floats) -> Floats:
        value: Floats = np.trunc(100.0 / (1.0 + np.exp(-gain / 1000.0)))
        return value


def _typical_of_all(shapes: Counter[Shape]) -> tuple[Typical, int]:
    """The most popular shapes that make up 95 % of the pods, those without GPUs included: the table of those with, and
    the number of all of them."""
    goal = math.fsum(shapes.values()) * gpus.COVER_PERCENT / 100
    kept: dict[Shape, int] = {}
    for shape, number in sorted(shapes.items(), key=lambda pair: (-pair[1], pair[0])):
        if sum(kept.values()) >= goal:
            break
        kept[shape] = number
    return Typical.every([(shape, n) for shape, n in kept.items() if shape.want.number]), sum(kept.values())


@dataclass(slots=True)
class Meter:
    """The allocated share of the GPUs while the arrived demand rounds to each level, in %."""

    capacity: int
    arrived: list[int] = field(default_factory=lambda: [0])
    taken: list[int] = field(default_factory=lambda: [0])

    def note(self, ask: Ask, placed: bool) -> None:
        self.arrived.append(self.arrived[-1] + ask.milli)
        self.taken.append(self.taken[-1] + (ask.milli if placed else 0))

    def levels(self) -> dict[int, float]:
        at = np.rint(np.array(self.arrived[1:]) * 100 / self.capacity)
        taken = np.array(self.taken[1:]) * 100 / self.capacity
        return {level: float(taken[at == level].mean()) for level in LEVELS if (at == level).any()}


def replay(cluster: Cluster, queue: Sequence[Ask], policy: Policy) -> dict[int, float]:
    """The allocated share at each level. A class of pods keeps its scores; a placement spoils those of one node."""
    meter = Meter(int(cluster.left.sum()))
    kept: dict[Ask, tuple[Floats, int]] = {}
    everywhere = np.arange(len(cluster.cpu))
    for ask in queue:
        scores, seen = kept.get(ask) or (np.empty(len(everywhere)), -1)
        rows = everywhere if seen < 0 else np.unique(np.array(cluster.journal[seen:], dtype=np.int64))
        if rows.size:
            scores[rows] = np.where(cluster.fits(ask, rows), policy.scores(cluster, ask, rows), -np.inf)
        kept[ask] = scores, len(cluster.journal)
        placed = bool(np.isfinite(scores).any())
        if placed:
            row = policy.node(scores)
            cluster.take(ask, row, policy.devices(cluster, ask, row))
        meter.note(ask, placed)
    return meter.levels()
