"""The pods of one hollow node: what is assigned to it, and what it says of that. Pure; the same words as a real node's.

A pod begins when it is assigned, runs after `start_s`, and ends when it is deleted. Of each only what is needed for
its next status is kept.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shoal.agent.pods.facts import INIT, ContainerFacts, containers_of
from shoal.agent.pods.spec import NodeFacts
from shoal.agent.pods.status import PENDING, RUNNING_PHASE, TERMINAL, PodView, final_phase, pod_status, time_of
from shoal.agent.runtime.port import Exit
from shoal.agent.state import RunNote
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

SHAPES = 1000
SCHEDULED = "PodScheduled"
FIRST_ADDRESS = 2  # of the node's range: 1 is the node's own end of it


@dataclass(slots=True)
class HollowPod:
    """One assigned pod. `body` is the pod as the master said it last, while it has still to begin."""

    namespace: str
    name: str
    start_time: float
    phase: str = PENDING
    address: str = ""
    ended: bool = False
    body: bytes = b""


class HollowPods:
    """`send` takes each report; `later` calls something after so many seconds."""

    def __init__(
        self,
        node: str,
        send: Callable[[s.PodReport], None],
        now: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object],
        start_s: float = 0.0,
        shapes: dict[bytes, bytes] | None = None,
    ) -> None:
        """`shapes` is shared by the nodes of a process: statuses of running pods, by the bytes of their specs."""
        self.pods: dict[str, HollowPod] = {}
        self._facts = NodeFacts(node, "", 0, "")
        self._send = send
        self._now = now
        self._later = later
        self._start_s = start_s
        self._network: ipaddress.IPv4Network | None = None
        self._next = FIRST_ADDRESS
        self._taken: set[str] = set()
        self._shapes = shapes if shapes is not None else {}

    def use_range(self, pod_cidr: str) -> None:
        """Pods that begin from now on get their addresses from this range."""
        self._network = ipaddress.IPv4Network(pod_cidr) if pod_cidr else None

    def held(self) -> list[s.HeldPod]:
        return [s.HeldPod(uid=uid, phase=pod.phase, ended=pod.ended) for uid, pod in self.pods.items()]

    # ---- what the master says ----
    def assign(self, uid: str, pod: o.Pod) -> None:
        """A pod that is new here, or has changed. One that the master knows to run was run by the process before."""
        known = self.pods.get(uid)
        if known is None:
            known = self._adopt(uid, pod)
        if pod.metadata.HasField("deletionTimestamp"):
            self._end(uid, known, pod)
        elif known.phase == PENDING and not known.ended:
            self._begin(uid, known, pod)

    def remove(self, uid: str) -> None:
        gone = self.pods.pop(uid, None)
        if gone is not None:
            self._taken.discard(gone.address)

    def keep_only(self, assigned: Mapping[str, object]) -> None:
        for uid in [uid for uid in self.pods if uid not in assigned]:
            self.remove(uid)

    # ---- one pod's life ----
    def _adopt(self, uid: str, pod: o.Pod) -> HollowPod:
        meta, status = pod.metadata, pod.status
        known = self.pods[uid] = HollowPod(meta.namespace, meta.name, self._now())
        if status.phase == RUNNING_PHASE or status.phase in TERMINAL:
            known.phase, known.address = status.phase, status.podIP
            known.start_time = float(status.startTime.seconds)
            known.ended = status.phase in TERMINAL
            self._taken.add(known.address)
        return known

    def _begin(self, uid: str, known: HollowPod, pod: o.Pod) -> None:
        if not self._start_s:
            self._run(uid, known, pod)
            return
        first, known.body = not known.body, pod.SerializeToString()
        if not first:
            return  # it has changed while it begins
        self._report(uid, known, pod)
        self._later(self._start_s, lambda: self._started(uid))

    def _started(self, uid: str) -> None:
        known = self.pods.get(uid)
        if known is not None and known.phase == PENDING and not known.ended:
            body, known.body = known.body, b""
            self._run(uid, known, o.Pod.FromString(body))

    def _run(self, uid: str, known: HollowPod, pod: o.Pod) -> None:
        known.phase = RUNNING_PHASE
        if not pod.spec.hostNetwork:
            known.address = self._address()
        self._report(uid, known, pod)

    def _end(self, uid: str, known: HollowPod, pod: o.Pod) -> None:
        """Said again as often as the master asks for it: it may not have heard."""
        known.ended = True
        self._report(uid, known, pod)

    def _address(self) -> str:
        """The next free one of the range; "" when none is left."""
        if self._network is None:
            return ""
        room = self._network.num_addresses - FIRST_ADDRESS - 1
        for _ in range(room):
            at = FIRST_ADDRESS + (self._next - FIRST_ADDRESS) % room
            self._next = at + 1
            address = str(self._network.network_address + at)
            if address not in self._taken:
                self._taken.add(address)
                return address
        return ""

    # ---- what is said of it ----
    def _report(self, uid: str, known: HollowPod, pod: o.Pod) -> None:
        now = self._now()
        if known.ended and known.phase not in TERMINAL:
            known.phase = final_phase(_played(pod, known, now))
        status = self._running(uid, known, pod) if known.phase == RUNNING_PHASE else self._status(known, pod, now)
        self._send(s.PodReport(uid=uid, namespace=known.namespace, name=known.name, status=status, ended=known.ended))

    def _status(self, known: HollowPod, pod: o.Pod, now: float) -> o.PodStatus:
        stopped_at = now if known.ended else 0.0
        containers = _played(pod, known, now)
        view = PodView(pod, containers, self._facts, known.address, known.start_time, known.ended, stopped_at)
        return pod_status(view, known.phase)

    def _running(self, uid: str, known: HollowPod, pod: o.Pod) -> o.PodStatus:
        """As _status has it. Most pods have a spec that another had: then only what is their own is put in."""
        pod.spec.nodeName = ""
        shape = pod.spec.SerializeToString()
        made = self._shapes.get(shape)
        if made is None:
            made = self._status(known, pod, self._now()).SerializeToString()
            if len(self._shapes) >= SHAPES:
                self._shapes.clear()
            self._shapes[shape] = made
        status = o.PodStatus.FromString(made)
        start = time_of(known.start_time)
        status.podIP = known.address
        del status.podIPs[:]
        if known.address:
            status.podIPs.add(ip=known.address)
        status.startTime.CopyFrom(start)
        status.observedGeneration = pod.metadata.generation
        _set_conditions(status, pod, start)
        for container in (*status.initContainerStatuses, *status.containerStatuses):
            container.containerID = f"shoal://{uid}/{container.name}/0"
            if container.state.HasField("running"):
                container.state.running.startedAt.CopyFrom(start)
            else:
                ended = container.state.terminated
                ended.startedAt.CopyFrom(start)
                ended.finishedAt.CopyFrom(start)
                ended.containerID = container.containerID
        return status


def _set_conditions(status: o.PodStatus, pod: o.Pod, start: o.Time) -> None:
    """The pod's own PodScheduled, and since when the others are so."""
    own = [condition for condition in status.conditions if condition.type != SCHEDULED]
    scheduled = [condition for condition in pod.status.conditions if condition.type == SCHEDULED]
    scheduled = scheduled or [o.Condition(type=SCHEDULED, status="True", lastTransitionTime=start)]
    for condition in own:
        condition.lastTransitionTime.CopyFrom(start)
    del status.conditions[:]
    status.conditions.extend([*scheduled, *own])


def _played(pod: o.Pod, known: HollowPod, now: float) -> list[ContainerFacts]:
    """The pod's containers, having done what they would have done by now."""
    containers = [*containers_of(pod).values()]
    for facts in containers:
        _play(facts, known, now)
    return containers


def _play(facts: ContainerFacts, known: HollowPod, now: float) -> None:
    """Lets the container have done what it would have done by now."""
    if known.phase == PENDING:
        return
    run = facts.open_run(0)
    run.begin(known.start_time)
    run.note = RunNote(hooked=True, started=True, ready=True)
    if facts.kind == INIT:
        run.end(Exit(0, 0, False, known.start_time))
    elif known.ended:
        run.end(Exit(0, 0, False, now))
