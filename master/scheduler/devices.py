"""The part of a score that looks at devices, kept per class: a placement changes its own node's only."""

from __future__ import annotations

from typing import cast

import numpy as np

from shoal.master.scheduler import gpus
from shoal.master.scheduler.filters import Frame, Packed, let_in
from shoal.master.scheduler.gpus import Bools, Floats, Ints, Typical
from shoal.master.scheduler.snapshot import Snapshot, Where, shape_of


def part(snapshot: Snapshot, known: Frame) -> Floats:
    """float64[N]. A pod without devices keeps away from idle ones."""
    if not known.device.number:
        return gpus.idle(snapshot.gpu_left)
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


def _packing(snapshot: Snapshot, known: Frame, typical: Typical, access: Bools, rows: Ints) -> Floats:
    shape = shape_of(known.pods)
    left, cpu = snapshot.gpu_left[rows], snapshot.left[0, rows]
    return gpus.packing(typical, shape.cpu, shape.want, left, cpu, access[:, rows])
