"""What the node keeps of its dead: certificates until the master has them, and what was healthy before.

On disk through `State`, so that neither a crash of the agent nor an absence of the master loses any.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from shoal.agent.outbox import Outbox
from shoal.agent.pods.healthy import Baseline, from_bytes, to_bytes
from shoal.agent.state import DEATHS, HEALTHY, State, StateFault
from shoal.proto.v1 import objects_pb2 as o

log = logging.getLogger("shoal.agent.deaths")
MOST_BASELINES = 500  # containers of workloads; those that were healthy longest ago go first


class DeathBook:
    """`outbox` gives the one in use: it takes the certificates, and says which are acknowledged or dropped."""

    def __init__(self, state: State, outbox: Callable[[], Outbox]) -> None:
        self._state = state
        self._outbox = outbox
        self._baselines: dict[str, Baseline] = {}
        self._unwritten: dict[str, None] = {}
        self._writing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def restore(self) -> None:
        """Takes up what the last agent left."""
        outbox = self._outbox()
        outbox.buried = self._let_go
        for name, body in (await self._state.notes(DEATHS)).items():
            try:
                outbox.put_death(o.Death.FromString(body))
            except DecodeError as fault:
                log.error("the death certificate %s cannot be read and is dropped: %s", name, fault)
                self._let_go([name])
        for name, body in (await self._state.notes(HEALTHY)).items():
            try:
                key, baseline = from_bytes(body)
                self._baselines[key] = baseline
            except ValueError as fault:
                log.error("%s/%s cannot be read and is dropped: %s", HEALTHY, name, fault)

    async def bury(self, death: o.Death) -> None:
        """Kept on disk, then told. A full disk costs the safety, not the certificate."""
        try:
            await self._state.put_note(DEATHS, death.metadata.name, death.SerializeToString(deterministic=True))
        except StateFault as fault:
            log.error("%s; it is told without being kept", fault)
        self._outbox().put_death(death)

    def _let_go(self, names: Sequence[str]) -> None:
        self._begin(self._remove(names), "acknowledged deaths")

    async def _remove(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                await self._state.remove_note(DEATHS, name)
            except StateFault as fault:
                log.error("%s", fault)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- what was healthy ----
    def kept(self, key: str) -> Baseline | None:
        return self._baselines.get(key)

    def remember(self, key: str, baseline: Baseline) -> None:
        """Known at once; on the disk soon, which may fail: then the next agent knows less."""
        self._baselines.pop(key, None)
        self._baselines[key] = baseline
        gone = list(self._baselines)[: max(len(self._baselines) - MOST_BASELINES, 0)]
        for one in gone:
            del self._baselines[one]
        self._unwritten[key] = None
        self._unwritten.update(dict.fromkeys(gone))
        if self._writing is None:
            self._writing = self._begin(self._write(), "healthy runs")

    async def _write(self) -> None:
        """One after the other; what changes meanwhile is written once."""
        while self._unwritten:
            key, _ = self._unwritten.popitem()
            try:
                if (baseline := self._baselines.get(key)) is None:
                    await self._state.remove_note(HEALTHY, note_name(key))
                else:
                    await self._state.put_note(HEALTHY, note_name(key), to_bytes(key, baseline), sure=False)
            except StateFault as fault:
                log.error("%s", fault)
        self._writing = None

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def note_name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:40]
