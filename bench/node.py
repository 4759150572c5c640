"""What one node's agent, spawner and supervisors cost, and what they can do: on a cluster of one node. Needs root.

1. 200 pods of two containers, three probes per second each: liveness by HTTP and readiness by TCP of a busybox httpd,
   and liveness by HTTP of its neighbour. CPU and memory in 20 s of steady state. Then, apart, 20 exec probes a second.
2. 100 pods created by one call: until the last is ready (by an HTTP readiness probe once a second).
3. One container's output: 300 MB of lines, from the first to the last line's stamp in the rotated log.
4. Cold pulls against skopeo and umoci (bench/node_pull.py).

The last line has the figures. BENCH_PODS=N takes fewer pods.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bench import node_pull
from bench.devcluster import Cluster, running

from shoal.agent.runtime import cgroups
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o

if TYPE_CHECKING:
    from shoal.proto.v1.cluster_pb2_grpc import ClusterAsyncStub

NAME = "benchnd"
PODS = int(os.environ.get("BENCH_PODS", "200"))
EXEC_PODS = min(20, PODS)
START_PODS = min(100, PODS)
PROBES_PER_POD = 3
STEADY_SECONDS, SETTLE_SECONDS = 20.0, 8.0
READY_SECONDS = 300.0  # longer is a failure
PER_CALL = 100  # objects
LOG_PIECE_BYTES, LOG_PIECES = 30_000_000, 10
LOG_BYTES = LOG_PIECE_BYTES * LOG_PIECES
POLL_SECONDS = 0.005
MARK_BYTES = 512  # more than the log's last line
TICK = os.sysconf("SC_CLK_TCK")
KINDS = ("agent", "spawner", "supervisors")


# ---- pods ----
def base(name: str) -> o.Pod:
    pod = o.Pod(apiVersion="v1", kind="Pod")
    pod.metadata.name, pod.metadata.namespace = name, "default"
    pod.spec.terminationGracePeriodSeconds = 0
    return pod


def add(pod: o.Pod, name: str, script: str) -> o.Container:
    return pod.spec.containers.add(
        name=name, image="busybox", imagePullPolicy="IfNotPresent", command=["sh", "-c", script]
    )


def often(probe: o.Probe) -> o.Probe:
    probe.periodSeconds, probe.timeoutSeconds, probe.failureThreshold = 1, 5, 3
    return probe


def http(probe: o.Probe) -> None:
    often(probe).httpGet.path = "/index.html"
    probe.httpGet.port.number = 8080


SERVE = "mkdir -p /www; echo fine > /www/index.html; exec httpd -f -p 8080 -h /www"


def probed(name: str) -> o.Pod:
    pod = base(name)
    web = add(pod, "web", SERVE)
    http(web.livenessProbe)
    often(web.readinessProbe).tcpSocket.port.number = 8080
    http(add(pod, "side", "exec sleep 1000000").livenessProbe)
    return pod


def ready_soon(name: str) -> o.Pod:
    pod = base(name)
    http(add(pod, "web", SERVE).readinessProbe)
    return pod


def exec_probed(name: str) -> o.Pod:
    pod = base(name)
    often(add(pod, "main", "exec sleep 1000000").livenessProbe).exec.command.append("true")
    return pod


def talkative(name: str) -> o.Pod:
    pod = base(name)
    line = "x" * 99
    script = f"""yes {line} | head -c {LOG_PIECE_BYTES} > /piece; sleep 1
echo begin; for n in $(seq {LOG_PIECES}); do cat /piece; done; echo end; exec sleep 1000000"""
    add(pod, "main", script)
    return pod


# ---- the cluster ----
async def create(stub: ClusterAsyncStub, pods: Sequence[o.Pod]) -> None:
    for first in range(0, len(pods), PER_CALL):
        objects = [c.Object(kind="Pod", body=pod.SerializeToString()) for pod in pods[first : first + PER_CALL]]
        response = await stub.Create(c.WriteRequest(request_id=str(uuid.uuid4()), objects=objects))
        assert all(result.action == "created" for result in response.results), response


class Pods:
    """The cluster's pods as the client's watch tells them."""

    def __init__(self, stub: ClusterAsyncStub) -> None:
        self._stub, self._known = stub, dict[str, o.Pod]()
        self._changed = asyncio.Event()

    async def follow(self) -> None:
        async for batch in self._stub.Watch(c.WatchRequest(kinds=["Pod"], namespace="default")):
            for event in batch.events:
                pod = o.Pod.FromString(event.object.body)
                if event.type == "DELETED":
                    self._known.pop(pod.metadata.name, None)
                else:
                    self._known[pod.metadata.name] = pod
            self._changed.set()

    async def until(self, condition: Callable[[dict[str, o.Pod]], bool]) -> None:
        async with asyncio.timeout(READY_SECONDS):
            while not condition(self._known):
                self._changed.clear()
                await self._changed.wait()

    async def start(self, pods: Sequence[o.Pod]) -> float:
        """Seconds from the call until all are ready."""
        begin = time.perf_counter()
        await create(self._stub, pods)
        names = {pod.metadata.name for pod in pods}
        await self.until(lambda known: names <= {name for name, pod in known.items() if is_ready(pod)})
        return time.perf_counter() - begin

    async def clear(self) -> None:
        names = list(self._known)
        for first in range(0, len(names), PER_CALL):
            keys = [c.Key(kind="Pod", namespace="default", name=name) for name in names[first : first + PER_CALL]]
            await self._stub.Delete(c.DeleteRequest(request_id=str(uuid.uuid4()), keys=keys))
        await self.until(lambda known: not known)

    def uid(self, name: str) -> str:
        return self._known[name].metadata.uid

    def restarts(self) -> int:
        return sum(one.restartCount for pod in self._known.values() for one in pod.status.containerStatuses)


def is_ready(pod: o.Pod) -> bool:
    return any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions)


# ---- cost ----
@dataclass(frozen=True)
class Sample:
    """Seconds of CPU so far: of the node's programs by kind, of its containers, of the whole machine."""

    at: float
    kinds: dict[str, float]
    containers: float
    machine: float


class Meter:
    def __init__(self, cluster: Cluster) -> None:
        self._base = f"{cluster.plan.cgroup}/{cluster.plan.nodes[0].name}"
        self._groups = cgroups.open_cgroups(self._base)

    def programs(self) -> dict[int, str]:
        """Pid -> kind."""
        found = {}
        for pid in self._groups.pids(f"{self._base}/system"):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"shoal.agent.main" in words:
                found[pid] = "agent"
            elif b"spawner" in words:
                found[pid] = "spawner"
        # A supervisor is a fork of the spawner: the same words, another parent.
        return {pid: "supervisors" if found.get(parent(pid)) == "spawner" else kind for pid, kind in found.items()}

    def sample(self) -> Sample:
        kinds = dict.fromkeys(KINDS, 0.0)
        for pid, kind in self.programs().items():
            kinds[kind] += sum(int(field) for field in stat(pid)[11:13]) / TICK
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        idle = int(fields[3]) + int(fields[4])
        busy = (sum(int(field) for field in fields) - idle) / TICK
        return Sample(time.monotonic(), kinds, self._groups.usage(f"{self._base}/pods")[0], busy)

    def memory(self) -> dict[str, tuple[float, float]]:
        """MiB by kind: (Rss, Pss)."""
        found = dict.fromkeys(KINDS, (0.0, 0.0))
        for pid, kind in self.programs().items():
            lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
            sizes = {words[0]: int(words[1]) / 1024 for words in lines}
            found[kind] = found[kind][0] + sizes["Rss:"], found[kind][1] + sizes["Pss:"]
        return found


def stat(pid: int) -> list[str]:
    """Of /proc/<pid>/stat, from field 3 on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def parent(pid: int) -> int:
    return int(stat(pid)[1])


async def steady(meter: Meter, what: str) -> float:
    """Cores of agent, spawner and supervisors together; prints them apart."""
    await asyncio.sleep(SETTLE_SECONDS)
    before = meter.sample()
    await asyncio.sleep(STEADY_SECONDS)
    after = meter.sample()
    span = after.at - before.at
    cores = {kind: (after.kinds[kind] - before.kinds[kind]) / span for kind in KINDS}
    containers = (after.containers - before.containers) / span
    machine = (after.machine - before.machine) / span
    together = sum(cores.values())
    print(f"{what}: {together:.3f} cores in {span:.0f} s ({shown(cores)}); the containers {containers:.2f}")
    others = max(machine - together - containers, 0.0)
    print(f"  besides (master, etcd, this benchmark, others): {others:.2f} of this machine's {os.cpu_count()} cores")
    return together


def shown(cores: dict[str, float]) -> str:
    return ", ".join(f"{kind} {value:.3f}" for kind, value in cores.items())


def tries(cluster: Cluster) -> float:
    return sum(value for (name, _), value in cluster.agents().items() if name == "shoal_agent_probes_total")


# ---- figures ----
async def probing(cluster: Cluster, pods: Pods) -> tuple[float, float]:
    """(cores of all programs with probed pods, MiB of the agent)."""
    meter = Meter(cluster)
    print(f"{PODS} pods of two containers: ready in {await pods.start([probed(f'p{n}') for n in range(PODS)]):.1f} s")
    begin, count = time.monotonic(), await asyncio.to_thread(tries, cluster)
    cores = await steady(meter, f"{PODS * PROBES_PER_POD} http and tcp probes per second asked for")
    rate = (await asyncio.to_thread(tries, cluster) - count) / (time.monotonic() - begin)
    print(f"  {rate:.0f} tries per second made, {pods.restarts()} restarts")
    memory = meter.memory()
    print("  MiB (Rss, Pss): " + ", ".join(f"{kind} {rss:.0f}, {pss:.0f}" for kind, (rss, pss) in memory.items()))
    await pods.clear()
    await pods.start([exec_probed(f"e{n}") for n in range(EXEC_PODS)])
    await steady(meter, f"{EXEC_PODS} exec probes per second")
    print(f"  {pods.restarts()} restarts")
    await pods.clear()
    return cores, memory["agent"][0]


async def starting(pods: Pods) -> float:
    """Pods per second."""
    seconds = await pods.start([ready_soon(f"s{n}") for n in range(START_PODS)])
    print(f"{START_PODS} pods created at once: all ready in {seconds:.1f} s")
    await pods.clear()
    return START_PODS / seconds


async def logging(cluster: Cluster, pods: Pods) -> float:
    """MB per second from the container to its log file."""
    await pods.start([talkative("log")])
    logs = cluster.plan.node_folder(cluster.plan.nodes[0].name) / "data/logs"
    path = logs / pods.uid("log") / "main/0.log"
    stamps: dict[str, float] = {}
    async with asyncio.timeout(READY_SECONDS):
        while "end" not in stamps:
            await asyncio.sleep(POLL_SECONDS)
            stamps.update(marks(path))
    seconds = stamps["end"] - stamps["begin"]
    print(f"{LOG_BYTES / 1e6:.0f} MB of 100-byte lines into the rotated log: {seconds:.2f} s")
    await pods.clear()
    return LOG_BYTES / 1e6 / seconds


def marks(path: Path) -> Iterator[tuple[str, float]]:
    """The stamps of `begin` and `end`, when they are the first or last line of the log's current file."""
    try:
        with path.open("rb") as file:
            first = file.readline()
            file.seek(max(0, path.stat().st_size - MARK_BYTES))
            last = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
    except FileNotFoundError:  # it is being rotated
        return
    for line in (first, last):
        stamp, _, rest = line.decode(errors="replace").strip().partition(" ")
        word = rest.rpartition(" ")[2]
        if word in ("begin", "end"):
            yield word, datetime.fromisoformat(stamp[:26] + "+00:00").timestamp()


async def measure(cluster: Cluster) -> dict[str, float]:
    async with cluster.stub() as stub:
        pods = Pods(stub)
        following = asyncio.create_task(pods.follow())
        try:
            rate = await starting(pods)
            cores, rss = await probing(cluster, pods)
            return {"cores": cores, "rss": rss, "rate": rate, "log": await logging(cluster, pods)}
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that the cluster is taken down
    with running(NAME, nodes=1) as cluster:
        cluster.load("busybox")
        found = asyncio.run(measure(cluster))
    ratio = node_pull.pull_vs_skopeo_umoci()
    print(
        f"agent_cpu_cores_200_probed={found['cores']:.2f} agent_rss_mib={found['rss']:.0f}"
        f" pods_ready_per_s={found['rate']:.1f} log_mb_per_s={found['log']:.0f} pull_vs_skopeo_umoci={ratio:.2f}"
    )


if __name__ == "__main__":
    main()
