"""How fast agents may come back: a token bucket that tells the surplus when to try again (pure)."""

from __future__ import annotations


class Admission:
    """Admits `rate` sessions a second, `burst` at once; times in seconds of the caller's clock."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = 0.0
        self._promised = 0

    def ask(self, now: float) -> float:
        """0 when admitted, else the seconds after which to come back: later for each one that is told to wait."""
        elapsed = max(now - self._at, 0.0)
        self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
        self._promised = max(0, self._promised - int(elapsed * self._rate))
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        self._promised += 1
        return (1 - self._tokens + self._promised) / self._rate
