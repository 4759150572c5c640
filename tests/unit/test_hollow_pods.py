"""A hollow node's pods: from assigned to ended, in the same words as a real node's."""

from __future__ import annotations

import asyncio
import random

from shoal.agent.assignments import Change
from shoal.agent.hollow.node import HollowConfig, HollowNode, node_report
from shoal.agent.hollow.pods import HollowPods
from shoal.agent.session import LinkLost
from shoal.agent.state import Position
from shoal.proto.v1 import session_pb2 as s
from tests.agents import NOW, UID, deleted, make_pod, running


class Played:
    """Pods whose reports and timers are kept."""

    def __init__(self, start_s: float = 0.0) -> None:
        self.reports: list[s.PodReport] = []
        self.timers: list[tuple[float, object]] = []
        self.pods = self.again(start_s)

    def again(self, start_s: float = 0.0) -> HollowPods:
        """As after a start of the process: nothing is known."""
        pods = HollowPods("n1", self.reports.append, lambda: NOW, lambda s, f: self.timers.append((s, f)), start_s)
        pods.use_range("10.244.3.0/29")
        return pods

    def ring(self) -> None:
        timers, self.timers = self.timers, []
        for _, call in timers:
            call()  # type: ignore[operator]


def test_an_assigned_pod_runs_at_once_as_a_real_one_would() -> None:
    played = Played()
    played.pods.assign(UID, make_pod())
    [report] = played.reports
    assert (report.uid, report.namespace, report.name, report.ended) == (UID, "default", "web", False)
    assert report.status.podIP == "10.244.3.2"
    real = running().status
    for status in (real, report.status):  # a real node has an address, and images with ids
        for name in ("hostIP", "hostIPs", "podIP", "podIPs"):
            status.ClearField(name)
        for container in status.containerStatuses:
            container.ClearField("imageID")
    assert report.status == real


def test_pods_with_the_same_spec_differ_in_what_is_their_own() -> None:
    shapes: dict[bytes, bytes] = {}
    reports: list[s.PodReport] = []
    for number, address in enumerate(("10.244.3.0/24", "10.244.4.0/24", "")):
        own = make_pod(uid=f"uid-{number}", name=f"web-{number}")
        own.spec.initContainers.add(name="first", image="init:1")
        own.spec.nodeName, own.metadata.generation = f"n{number}", number + 1
        own.status.conditions[0].lastTransitionTime.seconds = number + 5
        for known in (shapes, {}):
            pods = HollowPods("n", reports.append, lambda at=NOW + number: at, lambda s, f: None, shapes=known)  # type: ignore[misc]
            pods.use_range(address)
            pods.assign(own.metadata.uid, own)
    assert len(shapes) == 1
    for shared, alone in zip(reports[::2], reports[1::2], strict=True):
        assert shared == alone
    assert len({r.status.SerializeToString() for r in reports}) == 3


def test_init_containers_have_done_their_work_and_sidecars_run() -> None:
    pod = make_pod()
    pod.spec.initContainers.add(name="first", image="init:1")
    pod.spec.initContainers.add(name="beside", image="side:1", restartPolicy="Always")
    played = Played()
    played.pods.assign(UID, pod)
    first, beside = played.reports[0].status.initContainerStatuses
    assert first.state.terminated.reason == "Completed" and first.state.HasField("terminated")
    assert beside.state.HasField("running") and beside.ready
    assert played.reports[0].status.phase == "Running"


def test_a_start_that_takes_time_is_told_twice() -> None:
    played = Played(start_s=2.0)
    played.pods.assign(UID, make_pod())
    played.pods.assign(UID, make_pod())  # the same again changes nothing
    assert [r.status.phase for r in played.reports] == ["Pending"]
    assert played.reports[0].status.containerStatuses[0].state.waiting.reason == "ContainerCreating"
    assert [seconds for seconds, _ in played.timers] == [2.0]
    played.ring()
    assert [r.status.phase for r in played.reports] == ["Pending", "Running"]


def test_a_deleted_pod_ends_well_and_its_address_is_free_again() -> None:
    played = Played()
    played.pods.assign(UID, make_pod())
    played.pods.assign(UID, deleted(make_pod(), grace=5))
    report = played.reports[-1]
    assert report.ended and report.status.phase == "Succeeded"
    assert report.status.containerStatuses[0].state.terminated.reason == "Completed"
    played.pods.remove(UID)
    assert not played.pods.pods
    for number in range(5):  # of eight addresses five are for pods
        played.pods.assign(f"uid-{number}", make_pod(uid=f"uid-{number}"))
    addresses = [r.status.podIP for r in played.reports[2:]]
    assert sorted(addresses) == [f"10.244.3.{last}" for last in range(2, 7)]
    played.pods.assign("uid-5", make_pod(uid="uid-5"))
    assert played.reports[-1].status.podIP == "" and played.reports[-1].status.phase == "Running"


def test_a_pod_deleted_while_it_begins_never_runs() -> None:
    played = Played(start_s=1.0)
    played.pods.assign(UID, make_pod())
    played.pods.assign(UID, deleted(make_pod()))
    played.ring()
    assert [(r.status.phase, r.ended) for r in played.reports] == [("Pending", False), ("Failed", True)]


def test_a_process_that_starts_again_takes_up_what_the_master_knows_to_run() -> None:
    played = Played()
    played.pods.assign(UID, make_pod())
    known = make_pod()
    known.status.CopyFrom(played.reports[0].status)
    again = played.again()
    again.assign(UID, known)
    assert len(played.reports) == 1, "it runs on, and there is nothing to say"
    assert [(pod.uid, pod.phase) for pod in again.held()] == [(UID, "Running")]
    again.assign("other", make_pod(uid="other"))
    assert played.reports[-1].status.podIP == "10.244.3.3", "the address of the first is taken"


class NoConnector:
    async def connect(self, address: str) -> None:
        raise LinkLost("nobody")

    tunnel = connect


async def test_a_node_applies_changes_and_keeps_its_identity_over_starts() -> None:
    config = HollowConfig(["m:1"], prefix="h", first=3, zones=2, labels={"a": "b"})

    def start() -> HollowNode:
        loop = asyncio.get_running_loop()
        return HollowNode(config, 1, node_report(config), NoConnector(), random.Random(1), lambda: NOW, loop.call_later)  # type: ignore[arg-type]

    node = start()
    await node.welcome(s.Welcome(pod_cidr="10.1.2.0/24", cluster_incarnation="inc"))
    await node.apply(Change(Position(1, 5), complete=True, pods={UID: make_pod(), "b": make_pod(uid="b")}))
    await node.apply(Change(Position(1, 6), complete=False, removed_pods=["b"]))
    assert [pod.uid for pod in node.held()] == [UID] and node.position == Position(1, 6)
    await node.apply(Change(Position(1, 7), complete=True))
    assert not node.held()
    hello, again = node.session._hello(), start().session._hello()
    assert (hello.node, hello.instance_id, hello.boot_id) == (again.node, again.instance_id, again.boot_id)
    assert hello.node == "h4" and hello.instance_id != hello.boot_id
    assert dict(hello.labels) == {"kubernetes.io/hostname": "h4", "topology.kubernetes.io/zone": "zone-0", "a": "b"}
    assert hello.report.allocatable["cpu"].text == "4" and not hello.report.addresses
