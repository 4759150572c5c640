"""What the scheduling loop counts."""

from __future__ import annotations

from typing import Protocol


class Meter(Protocol):
    """In the names of Kubernetes' scheduler: scheduler_schedule_attempts_total and its like (metrics.py)."""

    def observe_schedule(self, result: str, pods: int, seconds: float) -> None:
        """`result`: scheduled, unschedulable, error; `seconds` of deciding, for all of them."""

    def observe_bound(self, seconds: float) -> None:
        """From a pod's creation, or the end of its gates, to its committed binding."""

    def pending_pods(self, active: int, backoff: int, unschedulable: int, gated: int) -> None:
        """How many wait, and for what."""

    def incoming(self, event: str, pods: int) -> None:
        """So many pods got another turn because of this event."""

    def preempted(self, victims: int) -> None:
        """One pod had so many others evicted."""


class NoMeter:
    """Counts nothing."""

    def observe_schedule(self, result: str, pods: int, seconds: float) -> None:
        """Nothing."""

    def observe_bound(self, seconds: float) -> None:
        """Nothing."""

    def pending_pods(self, active: int, backoff: int, unschedulable: int, gated: int) -> None:
        """Nothing."""

    def incoming(self, event: str, pods: int) -> None:
        """Nothing."""

    def preempted(self, victims: int) -> None:
        """Nothing."""
