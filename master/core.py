"""One master, composed for given ports: election, store, controllers, scheduler, dispatcher, API.

No I/O of its own: `main` gives it etcd, grpc and the clock, the simulation gives it memory and virtual time.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import shoal
from shoal.master import volumes
from shoal.master.api.admission import DEFAULT_NAMESPACE, SYSTEM_NAMESPACE
from shoal.master.api.service import ClusterService
from shoal.master.controllers.base import Said
from shoal.master.controllers.deaths import KEPT_SECONDS
from shoal.master.controllers.node import SWEEP, Beats
from shoal.master.controllers.priorities import system_classes
from shoal.master.controllers.registry import all_controllers
from shoal.master.dispatcher.dispatcher import Config as DispatcherConfig
from shoal.master.dispatcher.dispatcher import Dispatcher
from shoal.master.dispatcher.status_writer import Counters
from shoal.master.dispatcher.tunnels import Tunnel
from shoal.master.election import Election, Leadership, Renewer, ensure_incarnation
from shoal.master.loop import ControllerLoop
from shoal.master.metrics import Meters
from shoal.master.model import Change, Create, Fault, Key, Modify, NotLeader, Object
from shoal.master.ports import Stream, StreamClosed, TunnelStream
from shoal.master.recorder import Recorder
from shoal.master.scheduler.core import Scheduler
from shoal.master.scheduler.profiles import BUILT_IN, Profile
from shoal.master.scheduling import SchedulingLoop
from shoal.master.scheduling.journal import Journal, Sink
from shoal.master.store.port import Port
from shoal.master.store.store import Store
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

log = logging.getLogger("shoal.master")

RETRY_SECONDS = 0.5
WATCH_LEASE_SECONDS = 0.5
BLIND_SECONDS = 2.0  # a loop that stood still for longer has heard nobody meanwhile
RECONNECT_SECONDS = 6.0  # an agent's longest pause before it asks all masters again (5 s), and the asking
STORAGE_MADE = "shoal.dev/storage-class-made"  # on the system's namespace
NODE_CONTROLLER = "node"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a master is told. `advertise` is where others reach it, host:port."""

    name: str
    advertise: str
    dispatcher: DispatcherConfig = field(default_factory=DispatcherConfig)
    loops: bool = True  # controllers and scheduler; without them the API alone is measured
    deaths_kept_s: float = KEPT_SECONDS
    profiles: Mapping[str, Profile] = field(default_factory=lambda: BUILT_IN)  # of the scheduler
    decisions: Sink | None = None  # where the scheduler's decisions are logged


class Master:
    """`run` campaigns, leads and follows for ever; the adapters ask it who answers."""

    def __init__(
        self,
        settings: Settings,
        port: Port,
        renewer: Renewer,
        now: Callable[[], float],
        clock: Callable[[], float],
        rng: random.Random,
        meters: Meters,
        loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.store = Store(port, now)
        self.meters = meters
        self._port, self._now, self._clock, self._rng = port, now, clock, rng
        self._identity = f"{settings.name}-{rng.getrandbits(64):016x}"
        self.election = Election(port, renewer, settings.advertise, self._identity, clock)
        self.service = ClusterService(
            self.store,
            self,
            now,
            self.version,
            settings.profiles,
            lambda: self._term.scheduling if self._term else None,
        )
        self._incarnation = ""
        self._etcd_version = ""
        self._term: Term | None = None
        self._following = False
        self._loaded = loaded  # called once, when the cluster's state is in memory
        self._counters = Counters()

    # ---- life ----
    async def run(self) -> None:
        """Until cancelled; then the leadership is given back."""
        await self._get_ready()
        while True:
            await self.store.follow()
            if not self._following:
                self._following = True
                self._loaded()
            leadership = await self.election.campaign()
            try:
                await self._lead(leadership)
            except Fault as fault:
                log.warning("this term is over: %s", fault)
            except Exception:
                log.exception("this term is over, a part of the master failed")
            finally:
                self._term = None
                await asyncio.shield(self.election.resign(leadership))
            await asyncio.sleep(RETRY_SECONDS)  # another may be luckier

    async def close(self) -> None:
        """After run has ended."""
        await self.store.close()

    async def _get_ready(self) -> None:
        made = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        while not self._incarnation:
            try:
                self._etcd_version = (await self._port.status()).version
                self._incarnation = await ensure_incarnation(self._port, lambda: made)
            except Fault as fault:
                log.warning("etcd is asked again in %g s: %s", RETRY_SECONDS, fault)
                await asyncio.sleep(RETRY_SECONDS)

    async def _lead(self, leadership: Leadership) -> None:
        await self.store.open(leadership)
        await self._ensure_namespaces()
        term = Term(self, leadership, replace(self.settings.dispatcher, incarnation=self._incarnation), self._counters)
        self._term = term
        log.info("leads: epoch %d, %d objects", leadership.epoch, term.size())
        try:
            await term.run()
        finally:
            self._term = None
            term.dispatcher.stop()

    async def _ensure_namespaces(self) -> None:
        changes = self._storage_class()
        for name in (DEFAULT_NAMESPACE, SYSTEM_NAMESPACE):
            if self.store.view.get("Namespace", "", name) is None:
                namespace = o.Namespace(apiVersion="v1", kind="Namespace")
                namespace.metadata.name = name
                namespace.metadata.uid = self._new_uid()
                namespace.metadata.generation = 1
                namespace.metadata.creationTimestamp.seconds = int(self._now())
                namespace.status.phase = "Active"
                changes.append(Create(namespace))
        changes.append(Modify(Key("Namespace", "", SYSTEM_NAMESPACE), _mark_storage_made))
        changes += [Create(found) for found in system_classes(self.store.view, self._new_uid, int(self._now()))]
        for result in await self.store.write(changes):
            if isinstance(result, Fault):
                raise result

    def _new_uid(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))

    def _storage_class(self) -> list[Change]:
        """The class of local volumes, made once in a cluster's life: who deletes it does not want it."""
        system = self.store.view.get("Namespace", "", SYSTEM_NAMESPACE)
        if system is not None and STORAGE_MADE in system.metadata.annotations:
            return []
        if self.store.view.get("StorageClass", "", volumes.LOCAL_CLASS) is not None:
            return []
        return [Create(volumes.local_class(self._new_uid(), int(self._now())))]

    # ---- who answers: the adapters' questions ----
    def leading(self) -> ClusterService | None:
        return self.service if self._term is not None else None

    def reading(self) -> ClusterService | None:
        return self.service if self._following else None

    def leader_address(self) -> str:
        """Where the leader answers, as far as known; empty when it is not."""
        if self._term is not None:
            return self.settings.advertise
        known = self.election.leader
        return known.address if known is not None and known.identity != self._identity else ""

    async def serve(self, stream: Stream, node: str, address: str = "") -> None:
        """An agent's session; agents are sent to the leader."""
        if self._term is not None:
            await self._term.dispatcher.serve(stream, node, address)
            return
        leader = self.leader_address()
        why = f"the leader is at {leader}" if leader else "no leader is known now"
        retry = 0 if leader else int(RETRY_SECONDS * 1000)
        reject = s.Reject(reason="NotLeader", message=why, leader=leader, retry_after_ms=retry)
        try:
            # Heard out first: a call that ends before its Hello has come fails there, and the hint is lost
            async with asyncio.timeout(self.settings.dispatcher.hello_patience):
                await stream.receive()
            await stream.send(s.Down(reject=reject))
        except (StreamClosed, TimeoutError):
            pass
        stream.close()

    async def accept_tunnel(self, stream: TunnelStream, node: str) -> None:
        if self._term is not None:
            await self._term.dispatcher.accept_tunnel(stream, node)
        else:
            stream.close()

    async def open(self, node: str, request: s.Open) -> Tunnel:
        """A tunnel to the agent of a node. Raises Fault."""
        if self._term is None:
            raise NotLeader("this master does not lead: ask again")
        return await self._term.dispatcher.open(node, request)

    def version(self) -> c.VersionResponse:
        leadership = self._term.leadership if self._term else None
        known = self.election.leader
        return c.VersionResponse(
            version=shoal.__version__,
            leader=self.leader_address(),
            epoch=leadership.epoch if leadership else (known.epoch if known else 0),
            cluster_incarnation=self._incarnation,
            etcd_version=self._etcd_version,
        )

    def ready(self) -> str:
        """Why this master cannot answer now; empty when it can."""
        if self._term is not None:
            return "" if self._term.leadership.valid() else "its lease may have run out: etcd does not answer"
        if not self._following:
            return "it has not loaded the cluster's state yet"
        return "" if self.leader_address() else "no leader is known"

    # ---- for metrics ----
    @property
    def leads(self) -> bool:
        return self._term is not None and self._term.leadership.valid()

    @property
    def session_count(self) -> int:
        return len(self._term.dispatcher.connected) if self._term else 0

    @property
    def session_counters(self) -> Counters:
        return self._counters

    @property
    def store_counts(self) -> dict[str, int]:
        stats = self.store.stats
        return {"groups": stats.groups, "objects": stats.objects, "resends": stats.resends, "waiting": stats.waiting}

    # ---- for terms ----
    @property
    def now(self) -> Callable[[], float]:
        return self._now

    @property
    def rng(self) -> random.Random:
        return self._rng


def _mark_storage_made(found: Object) -> bool:
    if STORAGE_MADE in found.metadata.annotations:
        return False
    found.metadata.annotations[STORAGE_MADE] = "true"
    return True


class Term:
    """What runs while this master leads."""

    def __init__(self, master: Master, leadership: Leadership, config: DispatcherConfig, counters: Counters) -> None:
        self.leadership = leadership
        self._store = master.store
        self._recorder = Recorder(master.store, master.now, master.rng)
        self.dispatcher = Dispatcher(
            master.store, leadership, config, master.now, master.rng, self._report, self._joined, counters, self._told
        )
        self._controllers = ControllerLoop(
            master.store,
            all_controllers(master.rng, self._beats, master.settings.deaths_kept_s),
            self._recorder,
            master.now,
            master.rng,
            master.meters,
        )
        settings = master.settings
        journal = Journal(settings.decisions, settings.profiles, master.now) if settings.decisions else None
        core = Scheduler(settings.profiles)
        self.scheduling = SchedulingLoop(
            master.store, self._recorder, master.now, master.rng, master.meters, journal, core=core
        )
        self._loops = master.settings.loops
        self._clock = asyncio.get_running_loop().time
        nodes = sum(1 for _ in master.store.view.all("Node"))
        back = RECONNECT_SECONDS + nodes / config.admissions_per_second  # all have had time to come back
        self._judging_since = self._clock() + back
        self._awake = self._clock()

    def size(self) -> int:
        """Objects that this term begins with, by a rough count."""
        return sum(1 for kind in ("Pod", "Node", "Deployment", "ReplicaSet") for _ in self._store.view.all(kind))

    async def run(self) -> None:
        """Until the leadership is lost, or one of the parts ends. Raises what made it fail."""
        parts: list[Coroutine[Any, Any, None]] = [self.dispatcher.run(), self._recorder.run(), self._watch_lease()]
        if self._loops:
            parts += [self._controllers.run(), self.scheduling.run()]
        tasks = [asyncio.ensure_future(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch_lease(self) -> None:
        """Ends with the leadership. Meanwhile, without etcd nobody is judged by silence."""
        while not self.leadership.lost.is_set():
            self._notice_blindness()
            if not self.leadership.valid():
                self._judging_since = max(self._judging_since, self._clock())
            try:
                async with asyncio.timeout(WATCH_LEASE_SECONDS):
                    await self.leadership.lost.wait()
            except TimeoutError:
                pass

    def _notice_blindness(self) -> None:
        """A process that was stopped, or busy for long, has not read the heartbeats that lie in its sockets: what it
        did not hear counts from now on."""
        now = self._clock()
        if now - self._awake > WATCH_LEASE_SECONDS + BLIND_SECONDS:
            log.warning("stood still for %.1f s: nodes are judged by silence from now on", now - self._awake)
            self._judging_since = max(self._judging_since, now)
        self._awake = now

    def _beats(self) -> Beats:
        self._notice_blindness()
        return Beats(self._clock(), self.dispatcher.last_seen, self._judging_since, self.dispatcher.period())

    def _joined(self, _node: str) -> None:
        self._controllers.poke(NODE_CONTROLLER, SWEEP)

    def _report(self, key: Key, reason: str, message: str) -> None:
        about = self._store.view.get(*key)
        if about is not None:
            self._recorder.say(Said(about, "Warning", reason, message), "dispatcher")

    def _told(self, said: Said) -> None:
        self._recorder.say(said, "agent")
