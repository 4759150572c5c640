"""A pod that has no node yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from shoal.master.scheduler.core import Waiting

Place: TypeAlias = tuple[int, int, str]  # in the queue: minus its priority, and its arrival


@dataclass(slots=True, eq=False)
class Pending:
    """`place` orders the queue."""

    waiting: Waiting
    place: Place
    since: float = 0.0  # the loop's time when it came
    node: str = ""  # nominated: the room is held for it there
    tried: int = 0  # the window that refused it last
    attempts: int = 0
    failures: int = 0  # of the store or the core, not refusals

    @property
    def gang(self) -> tuple[str, str] | None:
        """Namespace and name of its PodGroup."""
        group = self.waiting.pods.group
        return (self.waiting.key.namespace, group) if group else None
