"""One container's logs through a tunnel: one run's, or with `follow` run after run, until the container is over."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from shoal.agent.answers import Refusal
from shoal.agent.logs import LogFiles, LogOptions, Position, PositionLost, read_logs
from shoal.agent.pods.facts import ENDED, RUNNING, ContainerFacts
from shoal.agent.pods.machine import PodMachine
from shoal.agent.pods.spec import log_path
from shoal.agent.pods.status import TERMINAL
from shoal.agent.session import TunnelStream
from shoal.proto.v1 import session_pb2 as s

POLL_S = 0.1
LOST = "note: the log has been rotated away since: lines may be missing here"


class Enough(Exception):
    """As many bytes as were asked for have been sent."""


class PodLogs:
    """Answers one LogsOpen."""

    def __init__(
        self, files: LogFiles, root: str, machine: PodMachine, facts: ContainerFacts, request: s.LogsOpen
    ) -> None:
        self._files, self._root = files, root
        self._machine, self._facts, self._request = machine, facts, request
        self._where = f"container {facts.spec.name} of pod {machine.pod.metadata.name}"
        self._follow = request.follow and not request.previous
        self._left = request.limit_bytes if request.HasField("limit_bytes") else None

    async def send(self, stream: TunnelStream) -> s.TunnelEnd:
        """Raises Refusal, LinkLost."""
        attempt: int | None = await self._first(stream)
        options = options_of(self._request, follow=self._follow)
        try:
            while attempt is not None:
                await self._send_run(attempt, options, stream)
                options = replace(options, tail_lines=None, resume=None)
                attempt = await self._next(attempt) if self._follow else None
        except Enough:
            pass
        return s.TunnelEnd()

    async def _send_run(self, attempt: int, options: LogOptions, stream: TunnelStream) -> None:
        path = log_path(self._root, self._machine.uid, self._facts.spec.name, attempt)
        try:
            await self._pieces(path, attempt, options, stream)
        except PositionLost:
            await stream.send(s.TunnelFrame(progress=LOST))
            await self._pieces(path, attempt, replace(options, resume=None), stream)

    async def _pieces(self, path: str, attempt: int, options: LogOptions, stream: TunnelStream) -> None:
        async for piece in read_logs(self._files, path, options, lambda: self._run_over(attempt)):
            data = piece.data if self._left is None else piece.data[: self._left]
            position = None if piece.position is None else position_message(attempt, piece.position)
            if data or position is not None:
                await stream.send(s.TunnelFrame(data=data, position=position))
            if self._left is not None:
                self._left -= len(data)
                if self._left <= 0:
                    raise Enough

    # ---- runs ----
    def _run_over(self, attempt: int) -> bool:
        run = self._facts.run
        return run is None or run.attempt != attempt or run.state != RUNNING or self._machine.forgotten

    async def _first(self, stream: TunnelStream) -> int:
        if self._request.HasField("resume"):
            return self._request.resume.attempt
        if self._follow and not self._begun():
            await stream.send(s.TunnelFrame(progress=f"note: {self._where} has not started yet: waiting for it"))
            while not self._begun():
                if self._over():
                    raise Refusal(f"{self._where} ended before it had started: see `shoal describe pod`")
                await asyncio.sleep(POLL_S)
        return self._attempt()

    def _begun(self) -> bool:
        return any(run is not None and run.started_at for run in (self._facts.run, self._facts.previous))

    def _attempt(self) -> int:
        started = [run for run in (self._facts.run, self._facts.previous) if run is not None and run.started_at]
        if not started:
            raise Refusal(
                f"{self._where} has not started yet: see its state with `shoal describe pod`, or wait with -f"
            )
        if not self._request.previous:
            return started[0].attempt
        before = [run for run in (self._facts.previous, self._facts.run) if run is not None and run.started_at]
        if before[0] is started[0]:
            raise Refusal(f"{self._where} has no previous run: it has not been restarted")
        return before[0].attempt

    async def _next(self, attempt: int) -> int | None:
        """The run after this one, once it has started; None when there will be none."""
        while True:
            run = self._facts.run
            if run is not None and run.attempt > attempt and (run.started_at or run.attempt > attempt + 1):
                return attempt + 1
            if self._over():
                return None
            await asyncio.sleep(POLL_S)

    def _over(self) -> bool:
        """The container will not run again."""
        machine, run = self._machine, self._facts.run
        if machine.forgotten or machine.ended or machine.phase in TERMINAL:
            return True
        if run is None or run.state != ENDED:
            return machine.stopping and run is None
        return machine.stopping or not self._facts.restartable(machine.pod.spec.restartPolicy or "Always")


def options_of(request: s.LogsOpen, *, follow: bool) -> LogOptions:
    place = request.resume
    return LogOptions(
        follow=follow,
        tail_lines=request.tail_lines if request.HasField("tail_lines") else None,
        since_ns=request.since.seconds * 10**9 + request.since.nanos if request.HasField("since") else None,
        timestamps=request.timestamps,
        resume=Position(place.file, place.head, max(place.offset, 0), max(place.skip_bytes, 0))
        if request.HasField("resume")
        else None,
    )


def position_message(attempt: int, position: Position) -> s.LogPosition:
    return s.LogPosition(
        attempt=attempt,
        file=position.file,
        head=position.head,
        offset=position.offset,
        skip_bytes=position.skip,
    )
