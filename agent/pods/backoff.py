"""How long to wait before a container is started again, and before a failed step is tried again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

CRASH_FIRST_S = 10.0
CRASH_MAX_S = 300.0
CRASH_RESET_S = 600.0  # a run this long proves the container healthy
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 30.0
PULL_FIRST_S = 10.0
PULL_MAX_S = 300.0
_MAX_DOUBLINGS = 10  # keeps 2**n small; both series are at their maximum long before


@dataclass(slots=True)
class CrashBackoff:
    """The kubelet's: the first restart is at once, then 10 s doubling to 300 s, from the end of the last run."""

    ends: int = 0  # in a row, without a run of ten minutes between them

    def ended(self, ran_for: float) -> None:
        """Counts a run that lasted `ran_for` seconds."""
        self.ends = 1 if ran_for >= CRASH_RESET_S else self.ends + 1

    @property
    def delay(self) -> float:
        """Seconds between the end of the last run and the next start."""
        if self.ends <= 1:
            return 0.0
        return float(min(CRASH_FIRST_S * 2 ** min(self.ends - 2, _MAX_DOUBLINGS), CRASH_MAX_S))


def retry_delay(failures: int) -> float:
    """Seconds before a step that failed `failures` times in a row is tried again."""
    return float(min(RETRY_FIRST_S * 2 ** min(max(failures - 1, 0), _MAX_DOUBLINGS), RETRY_MAX_S))


def pull_delay(failures: int, retry_after: float = 0.0) -> float:
    """Seconds before an image that could not be pulled `failures` times in a row is tried again; the registry may ask
    for more."""
    own = min(PULL_FIRST_S * 2 ** min(max(failures - 1, 0), _MAX_DOUBLINGS), PULL_MAX_S)
    return float(max(own, min(retry_after, PULL_MAX_S)))
