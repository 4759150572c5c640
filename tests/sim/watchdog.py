"""The invariants, checked on every revision that reaches the simulated etcd and on every container that starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from shoal.agent.objects import Referred
from shoal.agent.runtime.port import ContainerID, ContainerState
from shoal.master.model import Key, Object, Record
from shoal.master.store import codec, keys
from shoal.master.store.memory import MemoryEtcd
from shoal.proto import quantity
from shoal.proto.references import Reference, claims_of, homes, references
from shoal.proto.v1 import objects_pb2 as o
from tests.sim import placement

PHASES = {"": 0, "Pending": 0, "Running": 1, "Succeeded": 2, "Failed": 2}
RESOURCES = ("cpu", "memory")


class Broken(AssertionError):
    """An invariant does not hold; the message says which, and on what."""


def ended(pod: o.Pod) -> bool:
    return PHASES[pod.status.phase] == 2


def requests(pod: o.Pod) -> dict[str, int]:
    """What a pod asks for: thousandths of a CPU, bytes."""
    total = dict.fromkeys(RESOURCES, 0)
    for container in pod.spec.containers:
        for name in RESOURCES:
            if name in container.resources.requests:
                total[name] += amount(name, container.resources.requests[name])
    return total


def amount(name: str, value: o.Quantity) -> int:
    return quantity.milli(value.text) if name == "cpu" else quantity.whole(value.text)


def _lives(state: ContainerState) -> bool:
    return bool(state.pid) and state.exit is None


class Watchdog:
    """Reads etcd's own history, so nothing that a master believes can hide a breach."""

    def __init__(self, etcd: MemoryEtcd) -> None:
        self._etcd = etcd
        self._seen = etcd.revision
        self.objects: dict[Key, Object] = {}
        self.committed: dict[int, dict[Key, str]] = {}  # revision -> what it changed, with uid (empty: deleted)
        self._nodes: dict[str, str] = {}  # pod uid -> node
        self._phases: dict[str, tuple[int, str]] = {}
        self._restarts: dict[tuple[str, str], int] = defaultdict(int)
        self._referred: dict[str, set[Key]] = defaultdict(set)  # node -> what its pods have ever referred to
        self._claims: dict[str, list[str]] = {}  # pod uid -> uids of its claims, as of its placing
        self._claim_hosts: dict[str, str] = {}  # claim's uid -> node that used it
        self._hosts: dict[str, str] = {}  # pod uid -> node that ran it
        self._ranges: dict[str, str] = {}  # pod range -> node
        self.touched: set[Key] = set()  # by the last look
        self.revisions: dict[Key, int] = {}
        self.created: dict[Key, int] = {}
        self.bound = 0  # pods
        self.preempted: set[str] = set()  # uids of pods
        self._fresh: list[o.Pod] = []  # bound by the revision that is looked at
        self.were_short: set[str] = set()  # nodes that have been short of memory
        self.evicted: set[str] = set()  # uids of pods
        self.checks = 0
        self.broken: Broken | None = None  # found in the middle of a step

    def look(self) -> None:
        """Checks what has been committed since the last look."""
        history = self._etcd._history
        fresh = [entry for entry in history[-64:] if entry[0] > self._seen]
        if len(fresh) == 64:
            fresh = [entry for entry in history if entry[0] > self._seen]
        self.touched = set()
        for revision, events in fresh:
            self._seen = revision
            touched: set[str] = set()
            for event in events:
                key = keys.decode(event.key)
                if key is None:
                    continue
                self.touched.add(key)
                if event.value is None:
                    self.committed.setdefault(revision, {})[key] = ""
                    self._gone(key)
                    continue
                record = codec.unpack(key, event.value, revision, event.create_revision)
                self.committed.setdefault(revision, {})[key] = record.message.metadata.uid
                self.objects[key] = record.message
                self.revisions[key] = revision
                self.created[key] = event.create_revision
                if isinstance(record.message, o.Pod):
                    self._pod(record.message, revision)
                    touched.add(record.message.spec.nodeName)
                elif isinstance(record.message, o.Node):
                    self._node(record.message)
            for node in touched - {""}:
                self._not_oversold(node, revision)
            self._well_placed(revision)
            self.checks += 1

    @property
    def seen(self) -> int:
        return self._seen

    def _gone(self, key: Key) -> None:
        gone = self.objects.pop(key, None)
        if isinstance(gone, o.Node):
            self._ranges.pop(gone.spec.podCIDR, None)

    def _node(self, node: o.Node) -> None:
        cidr = node.spec.podCIDR
        if cidr and self._ranges.setdefault(cidr, node.metadata.name) != node.metadata.name:
            raise Broken(f"pod range {cidr} belongs to {self._ranges[cidr]} and to {node.metadata.name}")

    def _pod(self, pod: o.Pod, revision: int) -> None:
        uid, name = pod.metadata.uid, pod.metadata.name
        bound = pod.spec.nodeName
        if self._nodes.get(uid) and self._nodes[uid] != bound:
            raise Broken(f"revision {revision}: pod {name} moved from {self._nodes[uid]} to {bound or 'nowhere'}")
        if bound:
            if uid not in self._nodes:
                self._placed(pod)
                self._fresh.append(pod)
            self._nodes[uid] = bound
        rank = PHASES[pod.status.phase]
        before, phase = self._phases.get(uid, (0, ""))
        if rank < before or (before == 2 and phase != pod.status.phase):
            raise Broken(f"revision {revision}: pod {name} went from {phase} back to {pod.status.phase}")
        self._phases[uid] = rank, pod.status.phase
        self._rightly_evicted(pod, revision)
        self._rightly_preempted(pod, revision)
        for status in pod.status.containerStatuses:
            count = self._restarts[uid, status.name]
            if status.restartCount < count:
                raise Broken(
                    f"revision {revision}: {name}/{status.name} had {count} restarts, now {status.restartCount}"
                )
            self._restarts[uid, status.name] = status.restartCount

    def _rightly_evicted(self, pod: o.Pod, revision: int) -> None:
        """For need of its node, which it tells, and for good."""
        uid, status = pod.metadata.uid, pod.status
        said = f"revision {revision}: {pod.metadata.name} was evicted"
        if status.reason == "Evicted":
            self.evicted.add(uid)
            if pod.spec.nodeName not in self.were_short or "emory" not in status.message:
                raise Broken(f"{said} for nothing: {status.message!r}")
        if uid in self.evicted and (status.phase == "Succeeded" or status.reason not in ("Evicted", "Lost")):
            raise Broken(f"{said}, and now it is {status.phase} {status.reason}")

    def _rightly_preempted(self, pod: o.Pod, revision: int) -> None:
        """By a pod that matters more, and is there."""
        preemptor = placement.preempted_for(pod)
        if not preemptor or pod.metadata.uid in self.preempted:
            return
        self.preempted.add(pod.metadata.uid)
        found = self.objects.get(Key("Pod", *preemptor.split("/")))
        if isinstance(found, o.Pod) and found.spec.priority <= pod.spec.priority:
            raise Broken(f"revision {revision}: {pod.metadata.name} was evicted for {preemptor}, which matters no more")

    def _well_placed(self, revision: int) -> None:
        """Nobody was bound beside a pod that it must not meet."""
        fresh, self._fresh = self._fresh, []
        if not fresh:
            return
        self.bound += len(fresh)
        labels = {key.name: found.metadata.labels for key, found in self.objects.items() if key.kind == "Node"}
        there = [pod for pod in self.pods() if pod.spec.nodeName and not ended(pod)]
        for pod in fresh:
            for wrong in placement.misplaced(pod, there, labels):
                raise Broken(f"revision {revision}: {wrong}")

    def _placed(self, pod: o.Pod) -> None:
        self._referred[pod.spec.nodeName] |= {Key(*reference) for reference in references(pod)}
        keys = [Key("PersistentVolumeClaim", pod.metadata.namespace, name) for name in claims_of(pod)]
        self._claims[pod.metadata.uid] = [self.objects[key].metadata.uid for key in keys if key in self.objects]

    def delivered(self, node: str, table: Mapping[Reference, Referred]) -> list[str]:
        """What is wrong, once all is told, with the objects that a node holds. A Secret that no pod of the node has
        ever referred to is a breach at any time."""
        for kind, namespace, name in table:
            if kind == "Secret" and Key(kind, namespace, name) not in self._referred[node]:
                raise Broken(f"{node} was sent Secret {namespace}/{name}, which none of its pods refers to")
        mine = [pod for pod in self.pods() if pod.spec.nodeName == node and not ended(pod)]
        wanted = {Key(*reference) for pod in mine for reference in references(pod)}
        for key, found in self.objects.items():
            if isinstance(found, o.PersistentVolume) and node in homes(found):
                wanted.add(key)
        right = {key: self.objects[key] for key in wanted if key in self.objects}
        have = {Key(*key): found for key, found in table.items()}
        wrong = [f"{node} lacks {key}, or has an old one" for key in right if have.get(key) != right[key]]
        return wrong + [f"{node} still has {key}" for key in have if key not in right]

    def _not_oversold(self, node: str, revision: int) -> None:
        found = self.objects.get(Key("Node", "", node))
        if not isinstance(found, o.Node):
            return
        used, pods = dict.fromkeys(RESOURCES, 0), 0
        for pod in self.pods():
            if pod.spec.nodeName == node and not ended(pod):
                pods += 1
                for name, value in requests(pod).items():
                    used[name] += value
        for name in RESOURCES:
            offered = amount(name, found.status.allocatable[name])
            if used[name] > offered:
                raise Broken(f"revision {revision}: {node} is oversold: {used[name]} of {offered} {name}")
        if pods > amount("pods", found.status.allocatable["pods"]):
            raise Broken(f"revision {revision}: {node} holds {pods} pods, more than it may")

    def pods(self) -> Iterable[o.Pod]:
        return [message for key, message in self.objects.items() if isinstance(message, o.Pod)]

    def started(self, node: str, id: ContainerID) -> None:
        """A container of a pod ran on a node: only one node may ever do so."""
        owner = self._hosts.setdefault(id.pod_uid, node)
        if owner != node:
            raise Broken(f"pod {id.pod_uid} ran on {owner} and on {node}")
        for claim in self._claims.get(id.pod_uid, ()):
            home = self._claim_hosts.setdefault(claim, node)
            if home != node:
                raise Broken(f"claim {claim} was used on {home} and on {node}")

    def in_turn(self, id: ContainerID, runs: Sequence[ContainerState]) -> None:
        """A container starts when no other run of it lives, and none before it in the pod's order has still to end."""
        own = [state for state in runs if state.id.pod_uid == id.pod_uid]
        if any(state.id.name == id.name and state.id != id and _lives(state) for state in own):
            raise Broken(f"{id} starts while an earlier run of it lives")
        pod = next((pod for pod in self.pods() if pod.metadata.uid == id.pod_uid), None)
        if pod is None or id.name in {one.name for one in pod.spec.initContainers if one.restartPolicy == "Always"}:
            return
        inits = [one.name for one in pod.spec.initContainers if one.restartPolicy != "Always"]
        before = inits[: inits.index(id.name)] if id.name in inits else inits
        done = {state.id.name for state in own if state.exit is not None and state.exit.code == 0}
        if missing := [name for name in before if name not in done]:
            raise Broken(f"{id} starts before {', '.join(missing)} has done its work")

    def unchanged(self, records: Iterable[Record]) -> None:
        """Cached messages are shared by everybody and must stay what is stored."""
        for record in records:
            if type(record.message).FromString(record.body) != record.message:
                raise Broken(f"{record.key} was changed in the cache")
