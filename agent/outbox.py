"""Statuses, death certificates and happenings on their way to the master. Pure.

Of each pod the newest status and every certificate are sent until acknowledged, happenings once. Statuses never wait
for certificates, but a pod's last word leaves with or after its certificates: the master forgets the pod with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

log = logging.getLogger("shoal.agent.outbox")
MAX_PODS = 200  # per report: below 1 MiB with room to spare
MAX_DEATHS = 20  # per report; a certificate has about 20 KiB at most
MAX_HAPPENINGS = 100  # per report
KEPT_HAPPENINGS = 500  # unsent; the oldest go first
KEPT_DEATHS = 200  # unacknowledged; the oldest go first
PENDING, CREATING = "Pending", "ContainerCreating"


class Outbox:
    """Holds one report per pod. `agent_start` and a counter number what is sent; the numbers only grow."""

    def __init__(self, agent_start: int, wake: Callable[[], None] = lambda: None) -> None:
        self.wake = wake
        self.buried: Callable[[Sequence[str]], None] = lambda names: None  # told which certificates need not be kept
        self.dropped_deaths = 0
        self._start = agent_start
        self._counter = 0
        self._waiting: dict[str, s.PodReport] = {}  # to be sent, oldest first
        self._urgent: set[str] = set()
        self._sent: dict[str, tuple[int, s.PodReport]] = {}  # not acknowledged yet
        self._deaths: dict[str, o.Death] = {}  # by name: the same, of certificates
        self._sent_deaths: dict[str, tuple[int, o.Death]] = {}
        self._happenings: dict[tuple[str, str, str], s.Happening] = {}  # by pod, container and reason

    @property
    def dirty(self) -> bool:
        return bool(self._waiting or self._deaths or self._happenings)

    @property
    def urgent(self) -> bool:
        """Something waits that is worth a message at once."""
        return bool(self._urgent)

    @property
    def unacknowledged(self) -> int:
        return len(self._waiting.keys() | self._sent.keys())

    @property
    def unacknowledged_deaths(self) -> int:
        return len(self._deaths.keys() | self._sent_deaths.keys())

    def put(self, report: s.PodReport) -> None:
        """A newer report of a pod replaces the one that waits."""
        self._waiting[report.uid] = report
        if _is_urgent(report):
            self._urgent.add(report.uid)
        self.wake()

    def put_death(self, death: o.Death) -> None:
        self._deaths[death.metadata.name] = death
        while self.unacknowledged_deaths > KEPT_DEATHS:
            self._drop_oldest()
        self.wake()

    def put_happening(self, happening: s.Happening) -> None:
        """One that says the same as one that waits is counted."""
        key = (happening.uid, happening.container, happening.reason)
        before = self._happenings.pop(key, None)
        happening.count += before.count if before is not None else 0
        self._happenings[key] = happening
        if len(self._happenings) > KEPT_HAPPENINGS:
            del self._happenings[next(iter(self._happenings))]
        self.wake()

    def _drop_oldest(self) -> None:
        held = self._sent_deaths or self._deaths
        oldest = next(iter(held))
        self._sent_deaths.pop(oldest, None)
        self._deaths.pop(oldest, None)
        self.dropped_deaths += 1
        log.warning(
            "more than %d death certificates wait for the master: %s is dropped, the %dth",
            KEPT_DEATHS,
            oldest,
            self.dropped_deaths,
        )
        self.buried([oldest])

    def take(self) -> s.StatusReport | None:
        """The next report to send; what it holds counts as sent."""
        if not self.dirty:
            return None
        self._counter += 1
        deaths = self._next_deaths()
        left = {death.pod.uid for name, death in self._deaths.items() if name not in deaths}
        uids = [uid for uid, report in self._waiting.items() if not (report.ended and uid in left)][:MAX_PODS]
        pods = [self._waiting.pop(uid) for uid in uids]
        self._urgent.difference_update(uids)
        self._sent.update({pod.uid: (self._counter, pod) for pod in pods})
        for name in deaths:
            self._sent_deaths[name] = (self._counter, self._deaths.pop(name))
        sequence = s.Sequence(agent_start=self._start, counter=self._counter)
        told = [self._happenings.pop(key) for key in list(self._happenings)[:MAX_HAPPENINGS]]
        return s.StatusReport(sequence=sequence, pods=pods, deaths=deaths.values(), happenings=told)

    def _next_deaths(self) -> dict[str, o.Death]:
        """Those of pods whose last word waits come first."""
        last = {uid for uid, report in self._waiting.items() if report.ended}
        names = sorted(self._deaths, key=lambda name: self._deaths[name].pod.uid not in last)
        return {name: self._deaths[name] for name in names[:MAX_DEATHS]}

    def acknowledge(self, sequence: s.Sequence) -> None:
        """Everything up to this sequence is kept by the master."""
        if sequence.agent_start != self._start:
            return
        self._sent = {uid: entry for uid, entry in self._sent.items() if entry[0] > sequence.counter}
        known = [name for name, (counter, _) in self._sent_deaths.items() if counter <= sequence.counter]
        for name in known:
            del self._sent_deaths[name]
        if known:
            self.buried(self._gone(known))

    def _gone(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self._deaths]

    def new_session(self) -> None:
        """What the last session did not acknowledge is sent again, before what waits."""
        again = {uid: report for uid, (_, report) in self._sent.items()}
        self._waiting = {**again, **self._waiting}
        self._urgent = {uid for uid, report in self._waiting.items() if _is_urgent(report)}
        self._sent = {}
        self._deaths = {**{name: death for name, (_, death) in self._sent_deaths.items()}, **self._deaths}
        self._sent_deaths = {}


def _is_urgent(report: s.PodReport) -> bool:
    """All but a start under way without trouble: mostly it runs a moment later, and one report then says it all."""
    status = report.status
    if report.ended or status.phase != PENDING:
        return True
    return any(container.state.waiting.reason != CREATING for container in status.containerStatuses)
