"""From the create call of a connected client to Running as its watch sees it: one pod on an idle cluster of three
nodes whose image is loaded, 50 times, each after the one before is gone. Needs root.

Prints where the time goes (means; a part may overlap another) and how long the command itself takes to start. Last
line: start_p50_ms, start_p99_ms and cli_ms, the median of a whole `shoal get nodes`. `--runs` changes the number.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.devcluster import Cluster, Figures, running, shoal_argv

from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o

if TYPE_CHECKING:
    from shoal.proto.v1.cluster_pb2_grpc import ClusterAsyncStub

NAME = "benchst"
RUNS = 50
WARM_UP_RUNS = 3
CLI_RUNS = 9
RUN_SECONDS = 60.0  # for one pod to run, or to be gone; longer is a failure
SETTLE_SECONDS = 0.25  # after a pod is gone: its node may still delete files, and the cluster is to be idle
STEP, START = "shoal_agent_step_duration_seconds", "kubelet_pod_start_duration_seconds"
ETCD = "etcd_request_duration_seconds"


@dataclass
class Times:
    """When the client saw what of one pod, in seconds since its create call."""

    answered: float = 0.0
    bound: float = 0.0
    running: float = 0.0


class Watch:
    """The client's watch on pods: events in the order they come, with their time of arrival."""

    def __init__(self, stub: ClusterAsyncStub) -> None:
        self._call = stub.Watch(c.WatchRequest(kinds=["Pod"], namespace="default"))
        self._events = self._flow()

    async def _flow(self) -> AsyncIterator[tuple[float, str, o.Pod]]:
        async for batch in self._call:
            arrived = time.perf_counter()
            for event in batch.events:
                yield arrived, event.type, o.Pod.FromString(event.object.body)

    async def next_of(self, name: str) -> tuple[float, str, o.Pod]:
        async with asyncio.timeout(RUN_SECONDS):
            async for arrived, kind, pod in self._events:
                if pod.metadata.name == name:
                    return arrived, kind, pod
        raise SystemExit("the master ended the watch")

    def close(self) -> None:
        self._call.cancel()


def make_pod(name: str) -> o.Pod:
    pod = o.Pod(apiVersion="v1", kind="Pod")
    pod.metadata.name, pod.metadata.namespace = name, "default"
    pod.spec.terminationGracePeriodSeconds = 0
    pod.spec.containers.add(name="main", image="busybox", imagePullPolicy="IfNotPresent", command=["sleep", "1000000"])
    return pod


async def start_one(stub: ClusterAsyncStub, watch: Watch, name: str) -> Times:
    body = make_pod(name).SerializeToString()
    request = c.WriteRequest(request_id=str(uuid.uuid4()), objects=[c.Object(kind="Pod", body=body)])
    times, sent = Times(), time.perf_counter()
    response = await stub.Create(request)
    times.answered = time.perf_counter() - sent
    assert response.results[0].action == "created", response
    while True:
        arrived, _, pod = await watch.next_of(name)
        if pod.spec.nodeName and not times.bound:
            times.bound = arrived - sent
        if pod.status.phase == "Running":
            times.running = arrived - sent
            return times


async def delete_one(stub: ClusterAsyncStub, watch: Watch, name: str) -> None:
    """Returns when the pod is gone."""
    key = c.Key(kind="Pod", namespace="default", name=name)
    await stub.Delete(c.DeleteRequest(request_id=str(uuid.uuid4()), keys=[key]))
    while (await watch.next_of(name))[1] != "DELETED":
        pass
    await asyncio.sleep(SETTLE_SECONDS)


async def measure(cluster: Cluster, runs: int) -> list[Times]:
    async with cluster.stub() as stub:
        watch = Watch(stub)
        try:
            for number in range(WARM_UP_RUNS):
                await start_one(stub, watch, f"warm-{number}")
                await delete_one(stub, watch, f"warm-{number}")
            before = await asyncio.to_thread(cluster.agents), await asyncio.to_thread(cluster.master)
            taken = []
            for number in range(runs):
                taken.append(await start_one(stub, watch, f"start-{number}"))
                after = await asyncio.to_thread(cluster.agents) if number == runs - 1 else {}
                await delete_one(stub, watch, f"start-{number}")
            explain(taken, before, (after, await asyncio.to_thread(cluster.master)))
            return taken
        finally:
            watch.close()


def mean_ms(before: Figures, after: Figures, name: str, labels: str = "") -> float:
    """Of a histogram's observations between the two."""

    def grown(part: str) -> float:
        return after.get((f"{name}_{part}", labels), 0.0) - before.get((f"{name}_{part}", labels), 0.0)

    return grown("sum") / max(grown("count"), 1.0) * 1000


def explain(taken: list[Times], before: tuple[Figures, Figures], after: tuple[Figures, Figures]) -> None:
    """Where the time goes: the client's view, the agent's own measurements, and etcd's as the master sees it."""
    answered, bound, running_at = (
        statistics.mean(getattr(t, part) for t in taken) * 1000 for part in ("answered", "bound", "running")
    )
    on_node = mean_ms(before[0], after[0], START)
    rows = [
        ("create answered", answered),
        ("bound, at the watch", bound),
        ("Running, at the watch", running_at),
        ("on the node, from assignment to Running", on_node),
        *((f"  {step}", mean_ms(before[0], after[0], STEP, f"step={step}")) for step in steps_of(after[0])),
        ("assignment down, status up, watch", running_at - bound - on_node),
        ("one transaction of etcd", mean_ms(before[1], after[1], ETCD, "operation=txn")),
    ]
    for what, value in rows:
        print(f"{what:<42}{value:8.1f} ms")


def steps_of(figures: Figures) -> list[str]:
    return [labels.removeprefix("step=") for name, labels in figures if name == f"{STEP}_count"]


def wall_ms(cluster: Cluster, *arguments: str) -> float:
    """Median of whole runs of the command."""
    taken = []
    for _ in range(CLI_RUNS):
        begin = time.perf_counter()
        argv = [*shoal_argv(), *arguments]
        subprocess.run(argv, env=cluster.environment, stdout=subprocess.DEVNULL, check=True, timeout=RUN_SECONDS)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    runs = parser.parse_args().runs
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that the cluster is taken down
    with running(NAME) as cluster:
        cluster.load("busybox")
        times = sorted(t.running * 1000 for t in asyncio.run(measure(cluster, runs)))
        bare, whole = wall_ms(cluster, "--help"), wall_ms(cluster, "get", "nodes")
    print(f"the command: --help {bare:.0f} ms, get nodes {whole:.0f} ms")
    p50, p99 = statistics.median(times), times[min(len(times) - 1, len(times) * 99 // 100)]
    print(f"start_p50_ms={p50:.0f} start_p99_ms={p99:.0f} cli_ms={whole:.0f}")


if __name__ == "__main__":
    main()
