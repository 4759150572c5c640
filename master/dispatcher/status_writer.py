"""Writes what agents report, in groups: a group is whatever came while the last write was in flight.

A report is acknowledged when etcd has it, or when there is nothing to write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoal.master.dispatcher import deaths, deliveries, nodes, statuses
from shoal.master.dispatcher.session import Session
from shoal.master.model import Change, Conflict, Fault, NotFound, Record
from shoal.master.stores import StoreFace
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

log = logging.getLogger("shoal.dispatcher")

GROUP_REPORTS = 1000
RETRY_SECONDS = 1.0


@dataclass(slots=True)
class Counters:
    """For metrics: totals since the start of the process."""

    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    reports: int = 0
    refused_reports: int = 0


@dataclass(slots=True)
class _Item:
    session: Session
    sequence: s.Sequence | None
    pods: list[s.PodReport]
    node: s.NodeReport | None = None
    deaths: Sequence[o.Death] = ()
    freed: Sequence[str] = ()  # volumes whose folders are gone


class StatusWriter:
    """One loop for all sessions."""

    def __init__(self, store: StoreFace, counters: Counters, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now
        self._items: list[_Item] = []
        self._wake = asyncio.Event()
        self._counters = counters

    def submit(self, session: Session, report: s.StatusReport) -> None:
        session.taken()
        self._add(_Item(session, report.sequence, list(report.pods), deaths=report.deaths))

    def submit_repeat(self, session: Session, sequence: s.Sequence) -> None:
        """Acknowledged again, after what is still on its way."""
        session.taken()
        self._add(_Item(session, sequence, []))

    def submit_node(self, session: Session, report: s.NodeReport) -> None:
        session.taken()
        self._add(_Item(session, None, [], report))

    def submit_freed(self, session: Session, names: Sequence[str]) -> None:
        session.taken()
        self._add(_Item(session, None, [], freed=names))

    def submit_for(self, session: Session, report: s.PodReport) -> None:
        """What the master knows in the agent's place."""
        session.taken()
        self._add(_Item(session, None, [report]))

    def _add(self, item: _Item) -> None:
        self._items.append(item)
        self._wake.set()

    def forget(self, session: Session) -> None:
        """The session is over: its agent says all that is unacknowledged again on the next."""
        self._items = [item for item in self._items if item.session is not session]

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._items:
                batch, self._items = self._items[:GROUP_REPORTS], self._items[GROUP_REPORTS:]
                await self._settle(batch)

    async def _settle(self, batch: list[_Item]) -> None:
        while True:
            changes = self._changes([item for item in batch if not item.session.closed.is_set()])
            if await self._written(changes):
                break
            await asyncio.sleep(RETRY_SECONDS)
        for item in batch:
            item.session.written(item.sequence)

    def _changes(self, batch: list[_Item]) -> list[Change]:
        """One change per pod and node at most: an agent's later report holds all of the earlier."""
        latest: dict[tuple[str, ...], Change | None] = {}
        for item in batch:
            try:
                self._judge(item, latest)
            except Exception:  # what one node says must not end the statuses of all
                log.exception("node %s: a report cannot be read", item.session.peer.node)
                self._counters.refused_reports += 1
        return [change for change in latest.values() if change is not None]

    def _judge(self, item: _Item, latest: dict[tuple[str, ...], Change | None]) -> None:
        node = item.session.peer.node
        if item.node is not None:
            latest[(node, "")] = nodes.reported(node, item.node)
        for report in item.pods:
            verdict = statuses.judge(self._store.view, node, report)
            if verdict.refused:
                self._refused(node, verdict.refused)
            else:
                latest[(node, report.uid)] = verdict.change
        for death in item.deaths:
            judged = deaths.judge(self._store.view, node, death, self._now())
            if judged.refused:
                self._refused(node, judged.refused)
            latest[(node, death.pod.uid, death.metadata.name)] = judged.change
        for name in item.freed:
            change = deliveries.freed(self._store.view, node, name)
            if isinstance(change, str):
                self._refused(node, change)
            else:
                latest[(node, "volume", name)] = change

    def _refused(self, node: str, why: str) -> None:
        self._counters.refused_reports += 1
        log.warning("node %s: report refused: %s", node, why)

    async def _written(self, changes: list[Change]) -> bool:
        """False when it must be tried again: also without leadership, which may come back or end this loop."""
        if not changes:
            return True
        try:
            results = await self._store.write(changes)
        except Fault as fault:
            log.warning("statuses of %d objects wait for the store: %s", len(changes), fault)
            return False
        return not any(self._must_repeat(result) for result in results)

    @staticmethod
    def _must_repeat(result: Record | Fault | None) -> bool:
        if not isinstance(result, Fault) or isinstance(result, NotFound | Conflict):
            return False  # the pod is gone meanwhile: accepted and ignored
        log.warning("a status was not written: %s", result)
        return result.retryable
