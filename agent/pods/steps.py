"""Which steps of a pod are in flight, and which wait after a failure. Pure."""

from __future__ import annotations

from shoal.agent.pods import instructions as i
from shoal.agent.pods.backoff import retry_delay

RETRY = "retry "


class Steps:
    """A step has one key; while one with that key is in flight, or rests after a failure, it is not given again."""

    def __init__(self) -> None:
        self._busy: set[str] = set()
        self._blocked: set[str] = set()
        self._failures: dict[str, int] = {}

    def free(self, key: str) -> bool:
        return key not in self._busy and key not in self._blocked

    def busy(self, *besides: str) -> bool:
        """Whether any step is in flight, but for those whose keys begin so."""
        return any(not key.startswith(besides) for key in self._busy)

    def in_flight(self, start: str) -> bool:
        """Whether a step is whose key is these words, or begins with them."""
        return any(key == start or key.startswith(start + " ") for key in self._busy)

    def give(self, step: i.Step) -> list[i.Instruction]:
        if not self.free(step.key):
            return []
        self._busy.add(step.key)
        return [step]

    def done(self, step: i.Step) -> None:
        self._busy.discard(step.key)
        self._failures.pop(step.key, None)

    def ended(self, step: i.Step) -> None:
        """It failed in a way that is not tried again by itself."""
        self._busy.discard(step.key)

    def failed(self, step: i.Step) -> i.SetTimer:
        """It failed: it is tried again when the timer rings."""
        key = step.key
        self._busy.discard(key)
        self._failures[key] = self._failures.get(key, 0) + 1
        self._blocked.add(key)
        return i.SetTimer(RETRY + key, retry_delay(self._failures[key]))

    def rested(self, key: str) -> None:
        self._blocked.discard(key)
