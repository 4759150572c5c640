"""From assignments to pods: brings the node's machines, and its network, in line with what is assigned to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from google.protobuf.message import DecodeError

from shoal.agent.assignments import Change
from shoal.agent.network.port import Network, NetworkFault, Peer
from shoal.agent.objects import with_claims
from shoal.agent.pods import instructions as i
from shoal.agent.pods.backoff import retry_delay
from shoal.agent.pods.worker import Found, NodePorts, Worker, by_pod
from shoal.agent.reclaim import Reclaimer
from shoal.agent.runtime.port import RuntimeGone
from shoal.agent.state import ClusterRecord, PodRecord, Position, StateFault
from shoal.agent.storage import EVICTED
from shoal.agent.volumes.port import VolumeFault
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

log = logging.getLogger("shoal.agent.sync")
SETTLE_S = 2.0
LOOK_AFTER_S = 30.0  # between two times that the network is brought in line without a change


class Sync:
    """Owns the cluster record and decides which pods have a machine."""

    def __init__(
        self,
        node: str,
        ports: NodePorts,
        worker: Worker,
        network: NodeNetwork,
        reclaim: Reclaimer,
        now: Callable[[], float],
        refusal: Callable[[o.Pod], str] = lambda pod: "",
    ) -> None:
        """`refusal` says why a new pod cannot begin on this node now, "" when it can."""
        self._node = node
        self._refusal = refusal
        self._reclaim = reclaim
        self._ports = ports
        self._worker = worker
        self._network = network
        self._now = now
        self._record = ClusterRecord()
        self._judged = False
        self._orphans: dict[str, Found] = {}  # what the node holds without a record, until a COMPLETE judges it

    @property
    def position(self) -> Position:
        return self._record.position

    @property
    def incarnation(self) -> str:
        return self._record.incarnation

    def held(self) -> list[s.HeldPod]:
        """For Hello: every pod that this node has on disk."""
        return [
            s.HeldPod(uid=uid, phase=machine.phase, ended=machine.ended)
            for uid, machine in self._worker.machines.items()
        ]

    # ---- start ----
    async def restore(self) -> None:
        """Takes up the pods where the last agent left them: running containers are not touched."""
        state = self._ports.state
        self._record = await state.cluster()
        self._network.want(self._record, self._node)
        await self._ports.objects.restore()
        records = await state.pods()
        found = await self._found()
        for record in records:
            try:
                self._worker.add(record, found.pop(record.uid, Found()), saved=True)
            except (DecodeError, ValueError) as fault:
                log.error("the record of pod %s cannot be used and is dropped: %s", record.uid, fault)
                await state.remove_pod(record.uid)
        self._orphans = found
        if records or found:
            log.info("found %d pods on this node, and %d without a record", len(records), len(found))

    async def _found(self) -> dict[str, Found]:
        """What the node has, by pod; waits until the runtime answers."""
        failures = 0
        while True:
            try:
                states = by_pod(await self._ports.runtime.list())
                sandboxes = {box.pod_uid: box.netns for box in await self._ports.runtime.sandboxes()}
                addresses = await self._ports.network.attached()
                break
            except (RuntimeGone, NetworkFault) as fault:
                failures += 1
                log.warning("the node's pods cannot be listed yet: %s", fault)
                await asyncio.sleep(retry_delay(failures))
        uids = states.keys() | sandboxes.keys() | addresses.keys()
        return {uid: Found(states.get(uid, ()), sandboxes.get(uid, ""), addresses.get(uid, "")) for uid in sorted(uids)}

    # ---- from the session ----
    async def welcome(self, welcome: s.Welcome) -> None:
        """Learns the pod range; a changed incarnation (the store was restored) makes the old position void."""
        record = replace(self._record, pod_cidr=welcome.pod_cidr, cluster_cidr=welcome.cluster_cidr)
        if self._record.incarnation != welcome.cluster_incarnation:
            if self._record.incarnation:
                log.warning(
                    "the cluster's store was restored (incarnation %s, before %s): its next COMPLETE assignment "
                    "replaces all that this node knows",
                    welcome.cluster_incarnation,
                    self._record.incarnation,
                )
            record = replace(record, incarnation=welcome.cluster_incarnation, position=Position())
        if record.pod_cidr != self._record.pod_cidr and self._record.pod_cidr:
            log.warning("this node's pod range is now %s, before %s", record.pod_cidr, self._record.pod_cidr)
        # A new incarnation reaches the disk with its first COMPLETE: until then the old position still guards.
        keep = record if record.incarnation == self._record.incarnation else None
        self._record, changed = record, record != self._record
        self._network.want(record, self._node)
        if changed and keep is not None:
            await self._save()

    async def apply(self, change: Change) -> None:
        """Carries out one change of the assignments, in the order in which they come: objects before pods."""
        await self._apply_objects(change)
        for uid, pod in change.pods.items():
            self._assign(uid, pod)
        gone = [uid for uid in self._worker.machines if uid not in change.pods] if change.complete else []
        for uid in (*gone, *change.removed_pods):
            self._worker.post(uid, i.Removed())
        if change.complete:
            await self._judge_orphans()
        nodes = {} if change.complete else dict(self._record.nodes)
        nodes.update(change.nodes)
        for name in change.removed_nodes:
            nodes.pop(name, None)
        self._record = replace(self._record, position=change.position, nodes=nodes)
        self._network.want(self._record, self._node)
        await self._save()

    async def _apply_objects(self, change: Change) -> None:
        """Those that cannot be saved are here all the same, until the agent starts again and a COMPLETE brings them."""
        objects = self._ports.objects
        changed = objects.apply(change.objects, change.removed_objects, complete=change.complete)
        if change.complete and await objects.settle():
            for uid in list(self._worker.machines):
                self._worker.post(uid, i.ObjectsChanged())
        if changed:
            try:
                await objects.keep(changed)
            except StateFault as fault:
                log.error("%s", fault)
            self._worker.objects_changed(with_claims(changed, objects))
        if any(isinstance(obj, o.PersistentVolume) for obj in change.objects):
            self._reclaim.look()

    def _assign(self, uid: str, pod: o.Pod) -> None:
        if uid in self._worker.machines:
            self._worker.post(uid, i.Assigned(pod))
            return
        log.info("pod %s/%s is assigned to this node", pod.metadata.namespace, pod.metadata.name)
        record = PodRecord(uid, pod.SerializeToString(deterministic=True), self._now())
        why = self._refusal(pod) if uid not in self._orphans else ""
        if why:
            log.warning("pod %s/%s is refused: %s", pod.metadata.namespace, pod.metadata.name, why)
            record = replace(record, failed_at=max(self._now(), 1.0), failed_reason=EVICTED, failed_message=why)
        self._worker.add(record, self._orphans.pop(uid, None))

    async def _judge_orphans(self) -> None:
        """What the node holds without a record: of pods that ran, and images of those that an agent died before."""
        for uid in self._orphans:
            log.warning("pod %s runs here but is not assigned to this node: it is stopped", uid)
            self._worker.purge(uid)
        holders = await self._holders() if not self._judged else set()
        for uid in holders - self._worker.machines.keys() - self._orphans.keys():
            self._worker.purge(uid)
        self._orphans, self._judged = {}, True

    async def _holders(self) -> set[str]:
        """The pods for which images are held or volumes are there."""
        images = {holder.partition("/")[0] for holder in await self._ports.images.holders()}
        try:
            return images | set(await self._ports.volumes.held())
        except VolumeFault as fault:
            log.error("the volumes of this node cannot be listed: %s", fault)
            return images

    async def _save(self) -> None:
        """A record that cannot be saved costs nothing: after a restart a COMPLETE says it all again."""
        try:
            await self._ports.state.save_cluster(self._record)
        except StateFault as fault:
            log.error("%s", fault)


class NodeNetwork:
    """Keeps the node's side of the network as wished, trying again until it is."""

    def __init__(self, network: Network, ready: Callable[[], None]) -> None:
        """`ready` is called when `fault` changes."""
        self.fault = "the node has no pod range yet: it gets one from the master"
        self._peer_fault = ""
        self._network = network
        self._ready = ready
        self._wanted: tuple[str, str, tuple[Peer, ...]] = ("", "", ())
        self._changed = asyncio.Event()
        self._tried = asyncio.Event()

    async def settled(self) -> None:
        """Waits until the range that was known at the start has been set up, or has failed to be, but not for long:
        an agent that starts again need not call its node not ready in between."""
        if not self._wanted[0]:
            return
        try:
            async with asyncio.timeout(SETTLE_S):
                await self._tried.wait()
        except TimeoutError:
            log.warning("the node's network takes more than %g s", SETTLE_S)

    def want(self, record: ClusterRecord, node: str) -> None:
        peers = tuple(
            Peer(name, row.address, row.pod_cidr)
            for name, row in sorted(record.nodes.items())
            if name != node and row.address and row.pod_cidr
        )
        wanted = (record.pod_cidr, record.cluster_cidr, peers)
        if wanted != self._wanted:
            self._wanted = wanted
            self._changed.set()

    async def run(self) -> None:
        failures, configured = 0, ("", "")
        while True:
            if not failures and await self._rested():
                configured = ("", "")
            self._changed.clear()
            pod_cidr, cluster_cidr, peers = self._wanted
            if not pod_cidr:
                continue
            try:
                if configured != (pod_cidr, cluster_cidr):
                    await self._network.configure(pod_cidr, cluster_cidr)
                    configured = (pod_cidr, cluster_cidr)
            except NetworkFault as fault:
                failures += 1
                log.warning("the node's network is not set up: %s", fault)
                self._set_fault(str(fault))
                await asyncio.sleep(retry_delay(failures))
                continue
            self._set_fault("")
            failures = await self._sync_peers(peers, failures)

    async def _sync_peers(self, peers: Sequence[Peer], failures: int) -> int:
        """The failures in a row. Another node out of reach is no fault of this one: else one node with a wrong address
        would make all nodes not ready."""
        try:
            await self._network.sync_peers(peers)
        except NetworkFault as fault:
            if str(fault) != self._peer_fault:
                log.warning("some nodes' pods are out of reach: %s", fault)
            self._peer_fault = str(fault)
            await asyncio.sleep(retry_delay(failures + 1))
            return failures + 1
        self._peer_fault = ""
        return 0

    async def _rested(self) -> bool:
        """True when the time has come to look after everything: a link that was down has lost its routes, and other
        programs flush rules and reset settings."""
        try:
            async with asyncio.timeout(LOOK_AFTER_S):
                await self._changed.wait()
        except TimeoutError:
            return True
        return False

    def _set_fault(self, text: str) -> None:
        self._tried.set()
        if text != self.fault:
            self.fault = text
            self._ready()
