"""How many pods of each controlling owner every node holds: replicas of one owner are spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from shoal.master.scheduler.counts import count_up
from shoal.master.scheduler.nodes import Ints

Floats = npt.NDArray[np.float64]
BUDGET_BYTES = 64 << 20  # for the dense counts of all owners together
KEEP_AT_LEAST = 16


class Owners:
    """By the names of nodes; dense counts are made when they are asked for, kept up to date, and dropped, the least
    recently used first, when they take too much memory."""

    def __init__(self) -> None:
        self._on: dict[str, dict[str, int]] = {}  # owner uid -> node -> pods
        self._dense: dict[str, Floats] = {}

    def clone(self) -> Owners:
        made = Owners()
        made._on = {owner: dict(on) for owner, on in self._on.items()}
        return made

    def resize(self) -> None:
        """Rows have moved."""
        self._dense.clear()

    def add(self, owner: str, node: str, row: int | None, sign: int) -> None:
        """One pod more (1) or less (-1)."""
        on = self._on.setdefault(owner, {})
        on[node] = number = on.get(node, 0) + sign
        if not number:
            del on[node]
            if not on:
                del self._on[owner]
        if row is not None and (dense := self._dense.get(owner)) is not None:
            dense[row] += sign

    def add_many(self, owner: str, nodes: Sequence[str], rows: Ints, numbers: Ints) -> None:
        """One pod more on each of `nodes`; `rows` are distinct, with their numbers of pods."""
        count_up(self._on.setdefault(owner, {}), nodes)
        if (dense := self._dense.get(owner)) is not None:
            dense[rows] += numbers

    def on(self, owner: str) -> Mapping[str, int]:
        """Node -> pods."""
        return self._on.get(owner, {})

    def counts(self, owner: str, row: Mapping[str, int]) -> Floats | None:
        """float64[N], exact; None when the owner has no pods. It changes with what is committed."""
        on = self._on.get(owner)
        if on is None:
            return None
        dense = self._dense.pop(owner, None)
        if dense is None:
            limit = max(KEEP_AT_LEAST, BUDGET_BYTES // (8 * max(1, len(row))))
            while len(self._dense) >= limit:
                del self._dense[next(iter(self._dense))]
            dense = np.zeros(len(row))
            for node, number in on.items():
                index = row.get(node)
                if index is not None:
                    dense[index] = number
        self._dense[owner] = dense
        return dense
