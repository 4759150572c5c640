"""Statuses on their way to the master: the newest of each pod, sent until acknowledged. Pure."""

from __future__ import annotations

from collections.abc import Callable

from shoal.proto.v1 import session_pb2 as s

MAX_PODS = 200  # per report: below 1 MiB with room to spare
PENDING, CREATING = "Pending", "ContainerCreating"


class Outbox:
    """Holds one report per pod. `agent_start` and a counter number what is sent; the numbers only grow."""

    def __init__(self, agent_start: int, wake: Callable[[], None] = lambda: None) -> None:
        self.wake = wake
        self._start = agent_start
        self._counter = 0
        self._waiting: dict[str, s.PodReport] = {}  # to be sent, oldest first
        self._urgent: set[str] = set()
        self._sent: dict[str, tuple[int, s.PodReport]] = {}  # not acknowledged yet

    @property
    def dirty(self) -> bool:
        return bool(self._waiting)

    @property
    def urgent(self) -> bool:
        """Something waits that is worth a message at once."""
        return bool(self._urgent)

    @property
    def unacknowledged(self) -> int:
        return len(self._waiting.keys() | self._sent.keys())

    def put(self, report: s.PodReport) -> None:
        """A newer report of a pod replaces the one that waits."""
        self._waiting[report.uid] = report
        if _is_urgent(report):
            self._urgent.add(report.uid)
        self.wake()

    def take(self) -> s.StatusReport | None:
        """The next report to send; what it holds counts as sent."""
        if not self._waiting:
            return None
        self._counter += 1
        uids = list(self._waiting)[:MAX_PODS]
        pods = [self._waiting.pop(uid) for uid in uids]
        self._urgent.difference_update(uids)
        self._sent.update({pod.uid: (self._counter, pod) for pod in pods})
        return s.StatusReport(sequence=s.Sequence(agent_start=self._start, counter=self._counter), pods=pods)

    def acknowledge(self, sequence: s.Sequence) -> None:
        """Everything up to this sequence is kept by the master."""
        if sequence.agent_start != self._start:
            return
        self._sent = {uid: entry for uid, entry in self._sent.items() if entry[0] > sequence.counter}

    def new_session(self) -> None:
        """What the last session did not acknowledge is sent again, before what waits."""
        again = {uid: report for uid, (_, report) in self._sent.items()}
        self._waiting = {**again, **self._waiting}
        self._urgent = {uid for uid, report in self._waiting.items() if _is_urgent(report)}
        self._sent = {}


def _is_urgent(report: s.PodReport) -> bool:
    """All but a start under way without trouble: mostly it runs a moment later, and one report then says it all."""
    status = report.status
    if report.ended or status.phase != PENDING:
        return True
    return any(container.state.waiting.reason != CREATING for container in status.containerStatuses)
