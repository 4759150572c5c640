"""A view in which some objects are there already: what a dry run would have made by then (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, cast

from shoal.master.model import KINDS, Change, Fault, Key, Object, Record, View, key_of
from shoal.proto.v1 import cluster_pb2 as c


class Foreseen:
    """A store's face for rehearsals of several objects that need each other: nothing is ever written to it."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._made: dict[Key, Object] = {}

    @property
    def view(self) -> View:
        return cast(View, self)

    async def write(self, changes: Sequence[Change], *, low_priority: bool = False) -> Sequence[Record | Fault | None]:
        raise AssertionError("a dry run must not write")

    def add(self, results: Iterable[c.WriteResult]) -> None:
        """Those that would be created."""
        for result in results:
            if result.action == "created":
                made = KINDS[result.object.kind].FromString(result.object.body)
                self._made[key_of(made)] = made

    # ---- the view ----
    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        return self._made.get(Key(kind, namespace, name)) or self._view.get(kind, namespace, name)

    def all(self, kind: str, namespace: str | None = None) -> Iterable[Object]:
        made = (found for key, found in self._made.items() if key.kind == kind and namespace in (None, key.namespace))
        return chain(self._view.all(kind, namespace), made)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)
