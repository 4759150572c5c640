"""Sessions with the agents: who may have one, assignments down, status up, tunnels on demand.

Heartbeats live here, in memory; nothing of them reaches etcd.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from shoal.master.controllers.base import Said
from shoal.master.controllers.eviction import give_up
from shoal.master.dispatcher import deliveries, happenings, nodes, statuses
from shoal.master.dispatcher.acks import Acks
from shoal.master.dispatcher.admission import Admission
from shoal.master.dispatcher.session import Peer, Session
from shoal.master.dispatcher.status_writer import Counters, StatusWriter
from shoal.master.dispatcher.table import Spreader, Table
from shoal.master.dispatcher.tunnels import Tunnel, Tunnels
from shoal.master.model import Change, Event, Fault, Key, Object, Unavailable, View
from shoal.master.ports import Authority, Stream, StreamClosed, TunnelStream
from shoal.master.stores import StoreFace
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

log = logging.getLogger("shoal.dispatcher")

PROTOCOL = 1
MISSED_BEATS = 3
NAME_BYTES = 253
CHECK_SECONDS = 1.0  # how often a regained leadership is noticed


@dataclass(frozen=True, slots=True)
class Config:
    """Seconds, and per second, where not said otherwise."""

    cluster_cidr: str = "10.244.0.0/16"
    incarnation: str = ""
    heartbeat_period: float = 5.0  # the least; grows with the number of nodes
    beats_per_second: float = 500.0  # of all nodes together
    admissions_per_second: float = 250.0
    admission_burst: float = 50.0
    hello_patience: float = 10.0
    tunnel_patience: float = 10.0
    busy_retry: float = 1.0


Report = Callable[[Key, str, str], None]  # object, reason, message: becomes an Event
Tell = Callable[[Said], None]  # what an agent says of a pod: becomes an Event


class Dispatcher:
    """Lives as long as one leadership; `run` feeds the sessions, `serve` holds one of them."""

    def __init__(
        self,
        store: StoreFace,
        authority: Authority,
        config: Config,
        now: Callable[[], float],
        rng: random.Random,
        report: Report = lambda key, reason, message: None,
        joined: Callable[[str], None] = lambda node: None,
        counters: Counters | None = None,
        told: Tell = lambda said: None,
    ) -> None:
        self._told = told
        self._store = store
        self._authority = authority
        self._config = config
        self._now = now
        self._rng = rng
        self._report = report
        self._joined = joined
        self._clock = asyncio.get_running_loop().time
        self._ranges = nodes.Ranges(config.cluster_cidr)
        self._admission = Admission(config.admissions_per_second, config.admission_burst)
        self._tunnels = Tunnels(rng, config.tunnel_patience)
        self.counters = counters or Counters()
        self._writer = StatusWriter(store, self.counters, now)
        self._sessions: dict[str, Session] = {}
        self._touched: dict[Session, None] = {}  # by the events that are being told; in their order, not by address
        self._joining: dict[str, object] = {}
        self._last_seen: dict[str, float] = {}
        self._started = self._clock()
        self._changes = store.subscribe({"Pod", "Node", *deliveries.DELIVERED})  # from here on nothing is missed
        self._fed = store.view.revision
        self.table = Table(n for n in store.view.all("Node") if isinstance(n, o.Node))
        self.acks = Acks(lambda: len(self.table))
        self._spreader = Spreader(self.table, self._sessions.values, self._clock)
        for found in store.view.all("Node"):
            if isinstance(found, o.Node):
                self._ranges.learn(found.metadata.name, found.spec.podCIDR)
        self._leader_hint = ""
        self._stopped = False
        self._held_back = False

    # ---- what sessions and others look at ----
    @property
    def view(self) -> View:
        return self._store.view

    @property
    def fed(self) -> int:
        return self._fed

    @property
    def authority(self) -> Authority:
        return self._authority

    @property
    def last_seen(self) -> Mapping[str, float]:
        """When each node was last heard of, in seconds of the loop's monotonic clock."""
        return self._last_seen

    @property
    def started(self) -> float:
        """When this leader began to listen, by the same clock: nothing can be judged by silence before."""
        return self._started

    @property
    def connected(self) -> Mapping[str, Session]:
        return self._sessions

    def period(self) -> float:
        """Seconds between two heartbeats of one node: all of them together stay under a fixed rate, also once those
        are back that have no session now."""
        return max(self._config.heartbeat_period, len(self.table) / self._config.beats_per_second)

    # ---- life ----
    async def run(self) -> None:
        """Feeds the sessions and writes statuses until cancelled; then every session is dropped."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed())
                group.create_task(self._writer.run())
                group.create_task(self._spreader.run())
                group.create_task(self._notice_regained())
        finally:
            self.stop()

    def stop(self, leader: str = "") -> None:
        """Another leads: agents are to go there."""
        self._stopped = True
        self._leader_hint = leader
        self.acks.close()
        close = getattr(self._changes, "close", None)
        if close is not None:
            close()
        for session in list(self._sessions.values()):
            session.close()

    async def _feed(self) -> None:
        async for revision, events in self._changes:
            for event in events:
                self._tell(event)
            self._fed = max(self._fed, revision)
            touched, self._touched = self._touched, {}
            for session in touched:
                session.wake()

    def _tell(self, event: Event) -> None:
        old = event.old.message if event.old else None
        new = event.new.message if event.new else None
        if event.key.kind == "Pod":
            pod_old, pod_new = (m if isinstance(m, o.Pod) else None for m in (old, new))
            if not any(pod is not None and pod.spec.nodeName for pod in (pod_old, pod_new)):
                return  # no node has anything to do with it
            for uid, node in _assignment_changes(pod_old, pod_new):
                session = self._sessions.get(node)
                if session is not None and uid in session.over:
                    self._end_for(session, new)
                elif session is not None:
                    session.dirty.add_pod(uid, event.revision)
                    self._touched[session] = None
        elif event.key.kind == "Node":
            self._tell_node(event, new if isinstance(new, o.Node) else None)
        if event.key.kind != "Node":
            self._tell_objects(event)

    def _tell_objects(self, event: Event) -> None:
        for node, key in deliveries.concerned(self.view, event):
            if (session := self._sessions.get(node)) is not None:
                session.dirty.add_object(key, event.revision)
                self._touched[session] = None
        if event.new is None and (lost := deliveries.unreachable(event)):
            for session in self._sessions.values():
                for key in lost & session.volumes:
                    session.dirty.add_object(key, event.revision)
                    self._touched[session] = None

    def _end_for(self, session: Session, pod: Object | None) -> None:
        """Says for the agent that a deleted pod, of which it holds nothing, has ended."""
        if isinstance(pod, o.Pod) and pod.metadata.uid in session.over and pod.metadata.HasField("deletionTimestamp"):
            meta = pod.metadata
            report = s.PodReport(uid=meta.uid, namespace=meta.namespace, name=meta.name, status=pod.status, ended=True)
            self._writer.submit_for(session, report)

    def _tell_node(self, event: Event, new: o.Node | None) -> None:
        name = event.key.name
        if new is None and (session := self._sessions.get(name)) is not None:
            log.info("node %s was deleted: its session ends", name)
            session.close()
        if new is None and self.view.get("Node", "", name) is None:  # it may have come again meanwhile
            self._last_seen.pop(name, None)
            if name not in self._joining:
                self._ranges.release(name)
        if new is not None:
            self._ranges.learn(name, new.spec.podCIDR)
        changed = self.table.drop(name) if new is None else self.table.put(new)
        if changed:
            self._spreader.changed()

    def nodes_told(self, session: Session) -> None:
        self._spreader.told(session)

    def held_back(self) -> None:
        """A session has something to say that needs a valid leadership."""
        self._held_back = True

    async def _notice_regained(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if self._held_back and self._authority.valid():
                self._held_back = False
                for session in self._sessions.values():
                    session.wake()

    # ---- one agent ----
    async def serve(self, stream: Stream, node: str, address: str = "") -> None:
        """Holds the session of the agent whose certificate names `node`; returns when it is over."""
        admitted = await self._admit(stream, node, address)
        if isinstance(admitted, s.Reject):
            await self._refuse(stream, node, admitted)
            return
        await self._hold(stream, *admitted)

    async def _admit(self, stream: Stream, node: str, address: str) -> tuple[Peer, frozenset[str]] | s.Reject:
        """Who has come, and the pods that it holds; its Node is written. Nothing else of its Hello is kept."""
        try:
            async with asyncio.timeout(self._config.hello_patience):
                first = await stream.receive()
        except TimeoutError:
            first = None
        if first is None or first.WhichOneof("message") != "hello":
            return _reject("Protocol", "the first message of a session must be Hello")
        hello = first.hello
        peer = Peer(node, hello.instance_id, hello.boot_id, address)
        rejection = self._objection(hello, peer)
        if rejection is None:
            self._last_seen[node] = self._clock()  # before its Node is there to be judged by silence
            token = self._joining[node] = object()
            rejection = await self._join(hello)
            if rejection is None and (self._joining.get(node) is not token or self._stopped):
                rejection = _reject("Busy", "a newer session of this node came first", self._config.busy_retry)
            if self._joining.get(node) is token:
                del self._joining[node]
            if rejection is None and self.view.get("Node", "", node) is None:
                rejection = _reject("Busy", "the node was deleted as it joined", self._config.busy_retry)
        return rejection or (peer, frozenset(pod.uid for pod in hello.pods))

    async def _hold(self, stream: Stream, peer: Peer, held: Collection[str]) -> None:
        over = statuses.over_without(self.view, peer.node, held)
        session = Session(stream, peer, f"{self._rng.getrandbits(64):016x}", self, over)
        if (older := self._sessions.get(peer.node)) is not None:
            log.info("node %s: a newer session supersedes the older", peer.node)
            self._end(older)
        self._sessions[peer.node] = session
        for uid in over:
            self._end_for(session, self.view.by_uid(uid))
        self.counters.accepted += 1
        self._joined(peer.node)
        log.info("node %s: session %s from %s", peer.node, session.id, peer.address or "unknown")
        try:
            await session.run(self._welcome(session))
        finally:
            self._end(session)
            log.info("node %s: session %s is over", peer.node, session.id)

    def _welcome(self, session: Session) -> s.Welcome:
        node = self.view.get("Node", "", session.peer.node)
        assert isinstance(node, o.Node), "joined a moment ago"
        jitter = self._rng.uniform(0.9, 1.0)
        return s.Welcome(
            protocol=PROTOCOL,
            session_id=session.id,
            epoch=self._authority.epoch,
            cluster_incarnation=self._config.incarnation,
            heartbeat_period_ms=max(1, int(self.period() * jitter * 1000)),
            pod_cidr=node.spec.podCIDR,
            cluster_cidr=self._config.cluster_cidr,
        )

    def _end(self, session: Session) -> None:
        session.close()
        self._writer.forget(session)
        self._spreader.told(session)
        if self._sessions.get(session.peer.node) is session:
            del self._sessions[session.peer.node]
            gone = Unavailable(f"the session with node {session.peer.node} ended: try again when it is back")
            self._tunnels.fail(session.peer.node, gone)

    def _objection(self, hello: s.Hello, peer: Peer) -> s.Reject | None:
        """Why this Hello cannot have a session, in the order in which the agent can help it."""
        if hello.node != peer.node:
            text = f"the certificate is of node {peer.node!r}, the message says {hello.node!r}: use that node's own one"
            return _reject("WrongIdentity", text)
        if not hello.instance_id or not hello.boot_id or len(hello.node) > NAME_BYTES:
            return _reject("Protocol", "Hello needs instance_id and boot_id")
        if not hello.protocol_min <= PROTOCOL <= hello.protocol_max:
            spoken = f"{hello.protocol_min} to {hello.protocol_max}"
            return _reject("Protocol", f"this master speaks protocol {PROTOCOL}, the agent {spoken}: upgrade the older")
        if self._stopped or not self._authority.valid():
            return _reject("NotLeader", "this master does not lead now", self._config.busy_retry, self._leader_hint)
        if (clone := self._clone_of(peer)) is not None:
            return clone
        wait = self._admission.ask(self._clock())
        if wait:
            return _reject("Busy", "many agents come back at once: wait for your turn", wait)
        return None

    def _clone_of(self, peer: Peer) -> s.Reject | None:
        """Another copy of this node that still beats, or may still beat somewhere as far as a new leader knows."""
        grace = MISSED_BEATS * self.period()
        first = self._sessions.get(peer.node)
        if first is not None and not first.closed.is_set():
            silent = self._clock() - self._last_seen.get(peer.node, 0.0)
            if first.peer.same_machine(peer) or silent > grace:
                return None
            text = (
                f"two machines call themselves node {peer.node}: {first.peer.address or 'one'} (instance "
                f"{first.peer.instance}, boot {first.peer.boot}) still beats, {peer.address or 'another'} (instance "
                f"{peer.instance}, boot {peer.boot}) is refused; stop one of them, or join it under a name of its own"
            )
            self._report(Key("Node", "", peer.node), "Cloned", text)
            return _reject("Cloned", text, grace)
        known = self.view.get("Node", "", peer.node)
        left = self._started + grace - self._clock()
        unheard = peer.node not in self._last_seen
        if unheard and isinstance(known, o.Node) and _another_was_ready(known, peer) and left > 0:
            text = f"node {peer.node} was ready as another instance or boot: wait until that is known to be gone"
            return _reject("Busy", text, left)
        return None

    async def _join(self, hello: s.Hello) -> s.Reject | None:
        """Makes or updates the Node object and gives it a pod range."""
        known = self.view.get("Node", "", hello.node)
        try:
            has_range = isinstance(known, o.Node) and known.spec.podCIDR
            cidr = "" if has_range else self._ranges.allot(hello.node)
            change: Change
            if isinstance(known, o.Node):
                change = nodes.joined(hello, cidr, known.metadata.uid)
            else:
                uid = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
                change = nodes.created(hello, cidr, uid, self._now())
            why = f"node {hello.node} came back without its disk, so without this pod"
            lost = [give_up(pod, why, self._now()) for pod in statuses.vanished(self.view, hello)]
            [result, *_] = await self._store.write([change, *lost])
        except nodes.RangesUsedUp as error:
            log.error("node %s cannot join: %s", hello.node, error)
            return _reject("Busy", str(error), 10 * self._config.busy_retry)
        except Fault as fault:
            return _reject("Busy", f"the store did not take the node: {fault}", self._config.busy_retry)
        if isinstance(result, Fault):
            if self.view.get("Node", "", hello.node) is None:
                self._ranges.release(hello.node)
            return _reject("Busy", f"the store did not take the node: {result}", self._config.busy_retry)
        return None

    async def _refuse(self, stream: Stream, node: str, rejection: s.Reject) -> None:
        reasons = self.counters.rejected
        reasons[rejection.reason] = reasons.get(rejection.reason, 0) + 1
        level = logging.DEBUG if rejection.reason in ("Busy", "NotLeader") else logging.WARNING
        log.log(level, "node %s: session refused (%s): %s", node, rejection.reason, rejection.message)
        try:
            await stream.send(s.Down(reject=rejection))
        except StreamClosed:
            pass
        stream.close()

    # ---- what agents say ----
    def heard(self, session: Session, message: s.Up) -> None:
        """Any message counts as a sign of life."""
        self._last_seen[session.peer.node] = self._clock()
        which = message.WhichOneof("message")
        if which == "heartbeat":
            if self._authority.valid():
                session.ack_heartbeat(message.heartbeat.number)
        elif which == "status":
            self._take(session, message.status)
        elif which == "node":
            self._writer.submit_node(session, message.node)
        elif which == "volumes_removed":
            self._writer.submit_freed(session, message.volumes_removed.names)
        elif which == "resync":
            log.info("node %s asks for everything anew: %r", session.peer.node, message.resync.why[:200])
            session.request_complete()
        else:
            log.warning("node %s: a second Hello or an unknown message ends its session", session.peer.node)
            session.close()

    def _take(self, session: Session, report: s.StatusReport) -> None:
        self.counters.reports += 1
        sequence = (report.sequence.agent_start, report.sequence.counter)
        if sequence <= session.last_sequence:
            log.debug("node %s: report %s came again", session.peer.node, sequence)
            self._writer.submit_repeat(session, report.sequence)
            return
        session.last_sequence = sequence
        for said in happenings.judge(self.view, session.peer.node, report.happenings):
            self._told(said)
        self._writer.submit(session, report)

    # ---- tunnels ----
    async def open(self, node: str, request: s.Open) -> Tunnel:
        """A tunnel to the agent of `node`. Raises Unavailable."""
        session = self._sessions.get(node)
        if session is None or session.closed.is_set():
            raise Unavailable(f"node {node} is not connected: its agent must be running and reach the master")
        return await self._tunnels.open(node, request, session.open)

    async def accept_tunnel(self, stream: TunnelStream, node: str) -> None:
        """Serves the agent's Tunnel call."""
        await self._tunnels.accept(stream, node)


def _assignment_changes(old: o.Pod | None, new: o.Pod | None) -> list[tuple[str, str]]:
    """(uid, node) pairs that have something to hear. A status that came from the node is no news to it."""
    same_pod = old is not None and new is not None and old.metadata.uid == new.metadata.uid
    if same_pod:
        assert old is not None and new is not None
        node = new.spec.nodeName
        unchanged = old.metadata == new.metadata and old.spec == new.spec
        if unchanged and statuses.assigned(old, node) == statuses.assigned(new, node):
            return []
    touched = {(p.metadata.uid, p.spec.nodeName) for p in (old, new) if p is not None and p.spec.nodeName}
    return sorted(touched)


def _another_was_ready(node: o.Node, peer: Peer) -> bool:
    same = (node.status.instanceID, node.status.nodeInfo.bootID) == (peer.instance, peer.boot)
    ready = any(c.type == nodes.READY and c.status == "True" for c in node.status.conditions)
    return ready and not same


def _reject(reason: str, message: str, retry_after: float = 0.0, leader: str = "") -> s.Reject:
    return s.Reject(reason=reason, message=message, retry_after_ms=int(retry_after * 1000), leader=leader)
