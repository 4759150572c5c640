"""The load of `bench/e2e.py`: creates pods over the API, and stamps when its watch sees them bound and running.

Workloads are shaped as in Kubernetes' scheduler_perf. Pods are made from manifests, so that a field that the API
lacks is named.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from tests.masterproc import stub_of

from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.walker import from_tree

PER_CALL, CALLS = 100, 4  # objects in a call, and calls under way
ONE_CALLS = 32  # the same with one object each
QUIET_S = 60.0  # without anything new: it is not going to come
BIG = (("grpc.max_receive_message_length", -1),)
ZONE, HOST = "topology.kubernetes.io/zone", "kubernetes.io/hostname"


@dataclass(frozen=True)
class Workload:
    """Nodes; pods that are there before; pods that are measured. Those of `stuck` never fit."""

    nodes: int
    before: int
    measured: int
    spec: dict[str, Any] = field(default_factory=dict)  # of both, over the plain one
    before_spec: dict[str, Any] | None = None
    cpu: str = "100m"
    before_cpu: str = "100m"
    stuck: bool = False
    serial: bool = False


def near(what: str, term: dict[str, Any]) -> dict[str, Any]:
    return {"affinity": {"podAntiAffinity": {what: [term]}}}


OWN = {"labelSelector": {"matchLabels": {"color": "measured"}}}
REQUIRED = near("requiredDuringSchedulingIgnoredDuringExecution", {**OWN, "topologyKey": HOST})
PREFERRED = near(
    "preferredDuringSchedulingIgnoredDuringExecution",
    {"weight": 1, "podAffinityTerm": {**OWN, "topologyKey": HOST}},
)
SPREAD = {
    "topologySpreadConstraints": [
        {"maxSkew": 5, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule", **OWN},
    ]
}
LOW, HIGH = {"priorityClassName": "bench-low"}, {"priorityClassName": "bench-high"}
WORKLOADS = {
    "basic": Workload(5000, 1000, 10_000),
    "spread": Workload(5000, 5000, 2000, SPREAD, before_spec={}),
    "antiaffinity": Workload(5000, 1000, 2000, REQUIRED),
    "preferred": Workload(5000, 5000, 1000, PREFERRED),
    "preemption": Workload(1000, 4000, 1000, HIGH, before_spec=LOW, cpu="3000m", before_cpu="900m"),
    "unschedulable": Workload(5000, 100, 1000, before_cpu="9000m", stuck=True),
    "serial": Workload(5000, 0, 300, serial=True),
}


class Refused(Exception):
    """The API lacks a field of the workload, or an object was refused."""


def template(spec: dict[str, Any], cpu: str) -> o.Pod:
    """Raises Refused."""
    container = {
        "name": "pause",
        "image": "registry.k8s.io/pause:3.10",
        "ports": [{"containerPort": 80}],
        "resources": {"requests": {"cpu": cpu, "memory": "500Mi"}},
    }
    tree = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": {"color": "measured"}},
        "spec": {"containers": [container], **spec},
    }
    pod: o.Pod = made(tree, o.Pod)
    return pod


def made(tree: dict[str, Any], kind: Any) -> Any:
    try:
        message, problems = from_tree(tree, kind)
    except ValueError as fault:
        raise Refused(f"this version's API cannot say it: {fault}") from None
    if problems:
        raise Refused("this version's API cannot say it: " + "; ".join(str(problem) for problem in problems))
    return message


class Load:
    """One run. Times are of time.monotonic()."""

    def __init__(self, stub: Any, workload: Workload, one_call: bool) -> None:
        self._stub = stub
        self._workload = workload
        self._size = 1 if one_call else PER_CALL
        self._calls = ONE_CALLS if one_call else CALLS
        self.sent: dict[str, float] = {}
        self.bound: dict[str, float] = {}
        self.running: dict[str, float] = {}
        self.told: set[str] = set()  # why they wait
        self._news = asyncio.Event()

    # ---- watching ----
    async def watch(self) -> None:
        async for batch in self._stub.Watch(c.WatchRequest(kinds=["Pod"], namespace="default")):
            now = time.monotonic()
            for event in batch.events:
                if event.type != "DELETED":
                    self._see(o.Pod.FromString(event.object.body), now)
            self._news.set()

    def _see(self, pod: o.Pod, now: float) -> None:
        name = pod.metadata.name
        if pod.spec.nodeName:
            self.bound.setdefault(name, now)
            if pod.status.phase == "Running":
                self.running.setdefault(name, now)
        elif any(condition.reason == "Unschedulable" for condition in pod.status.conditions):
            self.told.add(name)

    async def until(self, there: Callable[[], int], wanted: int, what: str) -> None:
        seen = -1
        while (count := there()) < wanted:
            self._news.clear()
            try:
                async with asyncio.timeout(QUIET_S):
                    await self._news.wait()
            except TimeoutError:
                if count == seen:
                    raise Refused(f"{count} of {wanted} pods are {what}, and no more for {QUIET_S:g} s") from None
            seen = count

    # ---- creating ----
    async def create(self, names: Sequence[str], pod: o.Pod) -> None:
        """All of them, in calls of up to so many objects, several under way."""
        chunks = [names[at : at + self._size] for at in range(0, len(names), self._size)]
        left = iter(chunks)

        async def caller() -> None:
            for chunk in left:
                await self._call(chunk, pod)

        await asyncio.gather(*(caller() for _ in range(self._calls)))

    async def _call(self, names: Sequence[str], pod: o.Pod) -> None:
        objects = []
        for name in names:
            pod.metadata.name = name
            objects.append(c.Object(kind="Pod", body=pod.SerializeToString()))
        now = time.monotonic()
        self.sent.update(dict.fromkeys(names, now))
        answer = await self._stub.Create(c.WriteRequest(request_id=f"bench {names[0]}", objects=objects))
        for result in answer.results:
            if result.action != "created":
                raise Refused(f"a pod was refused: {result.failure.message} {list(result.failure.fields)}")

    async def run(self) -> dict[str, float]:
        """Raises Refused."""
        workload = self._workload
        before = workload.spec if workload.before_spec is None else workload.before_spec
        first, second = template(before, workload.before_cpu), template(workload.spec, workload.cpu)
        watching = asyncio.create_task(self.watch())
        try:
            names = [f"before-{index}" for index in range(workload.before)]
            await self.create(names, first)
            there: dict[str, float] | set[str] = self.told if workload.stuck else self.running
            await self.until(lambda: len(there), len(names), "told why they wait" if workload.stuck else "running")
            print(json.dumps({"ready": True}), flush=True)
            await asyncio.get_running_loop().run_in_executor(None, input)  # the other side has read its clocks
            return await self._measured([f"pod-{index}" for index in range(workload.measured)], second)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _measured(self, names: Sequence[str], pod: o.Pod) -> dict[str, float]:
        begin, cpu = time.monotonic(), time.process_time()
        if self._workload.serial:
            for name in names:
                await self._call([name], pod)
                await self.until(lambda name=name: int(name in self.bound), 1, "bound")  # type: ignore[misc]
        else:
            await self.create(names, pod)
        created = time.monotonic()
        for there, what in ((self.bound, "bound"), (self.running, "running")):
            await self.until(lambda there=there: sum(n in there for n in names), len(names), what)  # type: ignore[misc]
        waits = sorted(self.bound[name] - self.sent[name] for name in names)
        return {
            "created_per_s": len(names) / (created - begin),
            "bound_per_s": len(names) / (max(self.bound[name] for name in names) - begin),
            "running_per_s": len(names) / (max(self.running[name] for name in names) - begin),
            "p50_ms": waits[len(waits) // 2] * 1000,
            "p99_ms": waits[min(len(waits) - 1, len(waits) * 99 // 100)] * 1000,
            "seconds": max(self.running[name] for name in names) - begin,
            "cpu": time.process_time() - cpu,
        }


async def until_ready(stub: Any, nodes: int, seconds: float) -> None:
    """Waits until so many nodes are Ready. Raises Refused."""
    ready: set[str] = set()
    try:
        async with asyncio.timeout(seconds):
            listed = c.ListResponse()
            while len(ready) < nodes:
                await asyncio.sleep(0.5)
                listed = await stub.List(c.ListRequest(kind="Node"))
                found = (o.Node.FromString(obj.body) for obj in listed.objects)
                ready = {
                    n.metadata.name
                    for n in found
                    if any(x.type == "Ready" and x.status == "True" for x in n.status.conditions)
                }
    except TimeoutError:
        raise Refused(f"{len(ready)} of {nodes} nodes are ready after {seconds:g} s") from None


async def add_priorities(stub: Any) -> None:
    """The classes of the preemption workload."""
    objects = []
    for name, value in (("bench-low", 10), ("bench-high", 1000)):
        kind = getattr(o, "PriorityClass", None)
        if kind is None:
            raise Refused("this version's API has no PriorityClass")
        tree = {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
        }
        objects.append(c.Object(kind="PriorityClass", body=made(tree, kind).SerializeToString()))
    answer = await stub.Create(c.WriteRequest(request_id="bench priorities", objects=objects))
    if bad := [result.failure.message for result in answer.results if result.action != "created"]:
        raise Refused(f"the priority classes were refused: {bad[0]}")


async def load(address: str, certs: Path, name: str, join_seconds: float) -> dict[str, Any]:
    """As a process of its own: prints {"ready"} when the measured part may begin, then waits for a line."""
    shown = grpc.ssl_channel_credentials(
        *((certs / file).read_bytes() for file in ("ca.crt", "alice.key", "alice.crt"))
    )
    workload = sized(WORKLOADS[name])
    async with grpc.aio.secure_channel(address, shown, BIG) as channel:
        stub = stub_of(channel)
        begin = time.monotonic()
        await until_ready(stub, workload.nodes, join_seconds)
        joined = time.monotonic() - begin
        if name == "preemption":
            await add_priorities(stub)
        figures = await Load(stub, workload, os.environ.get("ONE_CALL") == "1").run()
        return {"joined_s": joined, **figures}


def sized(workload: Workload) -> Workload:
    """NODES and PODS in the environment make a run smaller: the pods before shrink with the nodes."""
    from dataclasses import replace

    nodes = int(os.environ.get("NODES") or workload.nodes)
    measured = int(os.environ.get("PODS") or workload.measured)
    before = workload.before if workload.stuck else workload.before * nodes // workload.nodes
    return replace(workload, nodes=nodes, measured=measured, before=before)
