"""The agent's side of the session with the master: one at a time, found again after every loss.

Pure logic over the `Connector` and `Stream` protocols; `grpc_link.py` and the simulation provide them.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from shoal.agent.assignments import Assembler, Broken, Change, Gap, Stale
from shoal.agent.outbox import Outbox
from shoal.agent.state import Position
from shoal.proto.v1 import session_pb2 as s

log = logging.getLogger("shoal.agent.session")
PROTOCOL = 1
CONNECT_TIMEOUT_S = 10.0  # to connect, and to be welcomed
SEND_TIMEOUT_S = 30.0  # a master that takes nothing for so long is gone
STATUS_INTERVAL_S = 0.1
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 5.0  # about the time that another master needs to become the leader
REFUSED_BACKOFF_S = 30.0  # a person has to act: cloned, wrong certificate, wrong version
TELL_EVERY = 20  # of failures in a row for one reason, one is logged
MAX_HINTS = 3  # leaders' addresses followed in a row without waiting
DEFAULT_PERIOD_S = 5.0


class LinkLost(Exception):
    """The connection ended or could not be made; the message says why. Retryable."""


class Stream(Protocol):
    """One session. Both calls raise LinkLost."""

    async def send(self, up: s.Up) -> None: ...
    async def receive(self) -> s.Down | None:
        """The next message; None when the master has ended the session."""
        ...

    async def close(self) -> None: ...


class TunnelStream(Protocol):
    """One tunnel. Both calls raise LinkLost."""

    async def send(self, frame: s.TunnelFrame) -> None: ...
    async def receive(self) -> s.TunnelFrame | None: ...
    async def close(self) -> None: ...


class Holder(Protocol):
    """What the session brings assignments to: the node's pods."""

    @property
    def position(self) -> Position: ...
    @property
    def incarnation(self) -> str: ...
    def held(self) -> list[s.HeldPod]: ...
    async def welcome(self, welcome: s.Welcome) -> None: ...
    async def apply(self, change: Change) -> None: ...


class Connector(Protocol):
    """Reaches a master at one of its addresses."""

    async def connect(self, address: str) -> Stream: ...
    async def tunnel(self, address: str) -> TunnelStream: ...


@dataclass(frozen=True, slots=True)
class SessionConfig:
    node: str
    masters: Sequence[str]
    instance_id: str
    boot_id: str
    version: str
    labels: dict[str, str] = field(default_factory=dict)
    routes: bool = True  # the table of the other nodes is of use here


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended: when to come back, and where to."""

    why: str
    welcomed: bool = False
    retry_after: float = 0.0
    leader: str = ""
    refused: bool = False


class Session:
    """Keeps one session with the leading master for as long as the agent runs."""

    def __init__(
        self,
        config: SessionConfig,
        connector: Connector,
        sync: Holder,
        outbox: Outbox,
        report: Callable[[], s.NodeReport],
        opened: Callable[[s.Open, str], None],
        rng: random.Random,
    ) -> None:
        """`report` builds the node's report; `opened` takes each Open with the master's address."""
        self.connected = False
        self.sessions = 0
        self.last_contact = 0.0  # of the loop's clock
        self._config = config
        self._connector = connector
        self._sync = sync
        self._outbox = outbox
        self._report = report
        self._opened = opened
        self._rng = rng
        self._wake = asyncio.Event()
        self._reported = s.NodeReport()
        self._report_due = False
        self._resync = ""
        self._removed: set[str] = set()  # persistent volumes whose folders are gone
        self._last_why, self._told = "", 0
        outbox.wake = self._wake.set

    def node_changed(self) -> None:
        """The node's report may be another one now."""
        self._report_due = True
        self._wake.set()

    def volumes_removed(self, names: Iterable[str]) -> None:
        """Told once; a master that has not heard it assigns the volumes again."""
        self._removed.update(names)
        self._wake.set()

    # ---- finding the master ----
    async def run(self) -> None:
        """Connects, serves, and connects again; never returns."""
        failures = hints = turn = 0
        address = ""
        while True:
            target = address or self._config.masters[turn % len(self._config.masters)]
            turn += not address
            ended = await self._attempt(target)
            self.connected = False
            failures = 0 if ended.welcomed else failures + 1
            self._tell(target, ended)
            hints = hints + 1 if ended.leader and ended.leader != target else 0
            address = ended.leader if 0 < hints <= MAX_HINTS else ""
            untried = turn % len(self._config.masters) and not (ended.welcomed or ended.refused)
            if ended.retry_after or not (address or untried):  # a pause comes when every master has been asked
                await asyncio.sleep(self._pause(failures, ended))

    def _pause(self, failures: int, ended: Ended) -> float:
        """Full jitter, never less than the master asked for."""
        if ended.refused:
            return max(ended.retry_after, REFUSED_BACKOFF_S) * self._rng.uniform(1.0, 1.5)
        cap = min(BACKOFF_FIRST_S * 2 ** min(failures, 10), BACKOFF_MAX_S)
        if ended.retry_after:
            return ended.retry_after * self._rng.uniform(1.0, 1.5)
        return self._rng.uniform(0.0, cap)

    def _tell(self, address: str, ended: Ended) -> None:
        self._told = 0 if ended.why != self._last_why else self._told + 1
        self._last_why = ended.why
        if self._told % TELL_EVERY:
            return  # the same again: a master that is away for an hour does not fill the log
        level = logging.ERROR if ended.refused else logging.WARNING if ended.welcomed else logging.INFO
        log.log(level, "no session with the master at %s: %s", address, ended.why)

    async def _attempt(self, address: str) -> Ended:
        """One session from connect to end; its stream is closed before this returns."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                stream = await self._connector.connect(address)
        except (LinkLost, TimeoutError) as fault:
            return Ended(f"it cannot be reached: {fault or 'no answer'}")
        try:
            return await self._serve(stream, address)
        finally:
            await stream.close()

    async def _serve(self, stream: Stream, address: str) -> Ended:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await stream.send(s.Up(hello=self._hello()))
                first = await stream.receive()
        except (LinkLost, TimeoutError) as fault:
            return Ended(f"it did not welcome this node: {fault or 'no answer'}")
        if first is None:
            return Ended("it closed the session at once")
        match first.WhichOneof("message"):
            case "reject":
                return self._rejected(first.reject)
            case "welcome":
                return await self._welcomed(stream, first.welcome, address)
            case other:
                return Ended(f"it began with {other} instead of a welcome")

    def _hello(self) -> s.Hello:
        config = self._config
        self._reported, self._report_due = self._report(), False
        return s.Hello(
            protocol_min=PROTOCOL,
            protocol_max=PROTOCOL,
            node=config.node,
            instance_id=config.instance_id,
            boot_id=config.boot_id,
            agent_version=config.version,
            report=self._reported,
            pods=self._sync.held(),
            position=s.Position(epoch=self._sync.position.epoch, revision=self._sync.position.revision),
            cluster_incarnation=self._sync.incarnation,
            labels=config.labels,
        )

    def _rejected(self, reject: s.Reject) -> Ended:
        """Cloned, WrongIdentity and Protocol need a person; NotLeader and Busy only time or another address."""
        needs_person = reject.reason not in ("NotLeader", "Busy")
        why = f"refused ({reject.reason}): {reject.message}"
        if reject.reason == "Cloned":
            why += (
                "; another machine answers for this node: if this one is the copy, stop its agent, delete its data "
                "folder and let it join under its own name"
            )
        return Ended(why, retry_after=reject.retry_after_ms / 1000, leader=reject.leader, refused=needs_person)

    async def _welcomed(self, stream: Stream, welcome: s.Welcome, address: str) -> Ended:
        position = self._sync.position
        if welcome.cluster_incarnation == self._sync.incarnation and welcome.epoch < position.epoch:
            return Ended(f"it leads in epoch {welcome.epoch}, but this node has heard epoch {position.epoch} already")
        await self._sync.welcome(welcome)
        self._outbox.new_session()
        self.connected, self._resync = True, ""
        self._removed.clear()
        self.sessions += 1
        log.info("session %s with the master at %s, epoch %d", welcome.session_id, address, welcome.epoch)
        assembler = Assembler(self._sync.position, self._config.routes)
        talk = _Talk(stream, welcome, assembler, (welcome.heartbeat_period_ms / 1000) or DEFAULT_PERIOD_S)
        return await self._talk(talk, address)

    async def _talk(self, talk: _Talk, address: str) -> Ended:
        """Sends and receives until either side fails; both have ended when this returns."""
        receiver = asyncio.create_task(self._receive_all(talk, address))
        sender = asyncio.create_task(self._send_all(talk))
        try:
            done, _ = await asyncio.wait({receiver, sender}, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(sorted(done, key=lambda task: task is sender))).result()
        finally:
            for task in (receiver, sender):
                task.cancel()
            await asyncio.gather(receiver, sender, return_exceptions=True)

    # ---- down ----
    async def _receive_all(self, talk: _Talk, address: str) -> Ended:
        while (ended := await self._receive(talk, address)) is None:
            pass
        return ended

    async def _receive(self, talk: _Talk, address: str) -> Ended | None:
        """One message; nothing of it is kept while the next one is waited for."""
        try:
            down = await talk.stream.receive()
        except LinkLost as fault:
            return Ended(f"the session was lost: {fault}", welcomed=True)
        if down is None:
            return Ended("the master ended the session", welcomed=True)
        self.last_contact = asyncio.get_running_loop().time()
        return await self._take(down, talk, address)

    async def _take(self, down: s.Down, talk: _Talk, address: str) -> Ended | None:
        if down.HasField("acknowledged"):
            self._outbox.acknowledge(down.acknowledged.sequence)
        match down.WhichOneof("message"):
            case "assignments":
                return await self._assigned(down.assignments, talk)
            case "status_ack":
                self._outbox.acknowledge(down.status_ack.sequence)
            case "open":
                self._opened(down.open, address)
            case "heartbeat_ack":
                pass  # a leader that cannot renew keeps its sessions without acknowledging: silence judges nobody
            case "reject":  # a session can also be refused later: superseded, or the leader is another one now
                return replace(self._rejected(down.reject), welcomed=True)
            case other:
                log.warning("the master sent %s, which this agent does not know in a session", other)
        return None

    async def _assigned(self, message: s.Assignments, talk: _Talk) -> Ended | None:
        taken = talk.assembler.take(message)
        match taken:
            case Change():
                await self._sync.apply(taken)
            case Gap(why):
                log.warning("assignments have a gap (%s): asking for all of them", why)
                self._resync = why
                self._wake.set()
            case Stale(why) | Broken(why):
                return Ended(f"its assignments were refused: {why}")
            case None:
                pass
        return None

    # ---- up ----
    async def _send_all(self, talk: _Talk) -> Ended:
        loop = asyncio.get_running_loop()
        talk.last_sent = loop.time()
        while True:
            up = self._next_up(talk, loop.time())
            if up is None:
                await self._sleep_until(self._due(talk))
                continue
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await talk.stream.send(up)
            except LinkLost as fault:
                return Ended(f"the session was lost: {fault}", welcomed=True)
            except TimeoutError:
                return Ended(f"it took nothing for {SEND_TIMEOUT_S:.0f} s", welcomed=True)
            talk.last_sent = loop.time()

    def _next_up(self, talk: _Talk, now: float) -> s.Up | None:
        """What to send next, most urgent first; None when nothing is due."""
        if self._resync:
            why, self._resync = self._resync, ""
            return s.Up(resync=s.Resync(why=why))
        if self._outbox.dirty and now >= self._status_due(talk, now):
            talk.last_status = now if self._outbox.urgent else talk.last_status
            talk.dirty_since = None
            return s.Up(status=self._outbox.take())
        if self._report_due:
            self._report_due = False
            report = self._report()
            if report != self._reported:
                self._reported = report
                return s.Up(node=report)
        if self._removed:
            names, self._removed = sorted(self._removed), set()
            return s.Up(volumes_removed=s.VolumesRemoved(names=names))
        if now >= talk.last_sent + talk.period:
            talk.number += 1
            return s.Up(heartbeat=s.Heartbeat(number=talk.number))
        return None

    def _due(self, talk: _Talk) -> float:
        heartbeat = talk.last_sent + talk.period
        return min(heartbeat, self._status_due(talk, heartbeat)) if self._outbox.dirty else heartbeat

    def _status_due(self, talk: _Talk, now: float) -> float:
        """News go at once, unless the last went less than the interval ago; what can wait for news waits that long."""
        if self._outbox.urgent:
            return talk.last_status + STATUS_INTERVAL_S
        if talk.dirty_since is None:
            talk.dirty_since = now
        return talk.dirty_since + STATUS_INTERVAL_S

    async def _sleep_until(self, when: float) -> None:
        try:
            async with asyncio.timeout_at(when):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()


@dataclass(slots=True)
class _Talk:
    """One welcomed session."""

    stream: Stream
    welcome: s.Welcome
    assembler: Assembler
    period: float
    number: int = 0
    last_sent: float = 0.0
    last_status: float = float("-inf")
    dirty_since: float | None = None  # since when only reports wait that can
