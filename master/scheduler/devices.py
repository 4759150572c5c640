"""The part of a score that looks at devices, kept per class: a placement changes its own node's only."""

from __future__ import annotations

from typing import cast

import numpy as np

from shoal.master.scheduler import gpus
from shoal.master.scheduler.filters import Frame, Packed, let_in
from shoal.master.scheduler.gpus import Bools, Floats, Ints, Typical
from shoal.master.scheduler.snapshot import Snapshot, Where, shape_of


def part(snapshot: Snapshot, known: Frame) -> Floats:
    """float64[N]. 0 for a pod without devices where none is idle: it takes nothing from anybody there."""
    typical = snapshot.workload.typical
    kept = known.packed
    touched = snapshot.touched(kept.version) if kept is not None and kept.typical is typical else None
    if kept is None or touched is None:
        access = access_of(snapshot, typical)
        value = _packing(snapshot, known, typical, access, np.arange(len(snapshot)))
        known.packed = Packed(typical, access, snapshot.version, value)
        return value
    if touched:
        rows = np.unique(np.array(touched, dtype=np.int64))
        kept.value[rows] = _packing(snapshot, known, typical, kept.access, rows)
        kept.version = snapshot.version
    return kept.value


def access_of(snapshot: Snapshot, typical: Typical) -> Bools:
    """bool[places, N]: the nodes that the selectors of typical pods let in."""
    access = np.ones((len(typical.places), len(snapshot)), dtype=np.bool_)
    for row, place in enumerate(typical.places):
        inside = let_in(snapshot, *cast(Where, place))
        if inside is not None:
            access[row] = inside
    return access


def run(snapshot: Snapshot, known: Frame, rows: Ints, j: Ints) -> Floats:
    """float64[rows, ...]: for the j-th pod without devices on each row when the others are there, j from 0 on:
    int64[1 or rows, ...]."""
    assert known.packed is not None
    cpu = snapshot.left[0, rows][:, None] - shape_of(known.pods).cpu * j
    rows = np.broadcast_to(rows[:, None], cpu.shape).ravel()
    return _score(snapshot, known, known.packed.typical, known.packed.access, rows, cpu.ravel()).reshape(cpu.shape)


def _packing(snapshot: Snapshot, known: Frame, typical: Typical, access: Bools, rows: Ints) -> Floats:
    return _score(snapshot, known, typical, access, rows, snapshot.left[0, rows])


def _score(snapshot: Snapshot, known: Frame, typical: Typical, access: Bools, rows: Ints, cpu: Ints) -> Floats:
    """Of nodes as they are, save for the CPU left."""
    shape = shape_of(known.pods)
    if shape.want.number:
        return gpus.packing(typical, shape.cpu, shape.want, snapshot.gpu_left[rows], cpu, access[:, rows])
    value = np.zeros(rows.size, dtype=np.float64)
    left = snapshot.gpu_left[rows]
    some = np.flatnonzero(left.any(axis=1))
    if some.size:
        value[some] = gpus.packing(typical, shape.cpu, shape.want, left[some], cpu[some], access[:, rows[some]])
    return value
