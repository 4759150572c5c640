"""Objects committed per second through the whole Store on a real etcd that syncs its writes: 256 writers, each waiting
for its answer, against the same Store with groups of one. Run as `python -m bench.store`."""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import itertools
import pstats
import tempfile
import time
from pathlib import Path

from tests.etcd import Server

from shoal.master.election import Election, TaskRenewer
from shoal.master.model import Change, Create, Modify, Object, Record
from shoal.master.store.store import Store
from shoal.master.store.writer import MAX_GROUP_OBJECTS
from shoal.proto.v1 import objects_pb2 as o

WRITERS = 256
SECONDS = 8.0
WARM_UP_S = 1.0
PAYLOAD_BYTES = 600  # makes a pod of about 1 KB


def make_pod(number: int) -> o.Pod:
    pod = o.Pod(apiVersion="v1", kind="Pod")
    pod.metadata.name = f"web-{number:08d}"
    pod.metadata.namespace = "default"
    pod.metadata.uid = f"00000000-0000-4000-8000-{number:012d}"
    pod.metadata.labels.update({"app": f"web{number % 100}", "tier": "front"})
    pod.metadata.ownerReferences.add(kind="ReplicaSet", name="web", uid=f"rs-{number % 100}", controller=True)
    pod.metadata.annotations["note"] = "x" * PAYLOAD_BYTES
    pod.spec.containers.add(name="web", image="docker.io/library/nginx:1.25")
    return pod


def bind(message: Object) -> bool:
    assert isinstance(message, o.Pod)
    message.spec.nodeName = "node-1"
    return True


async def write_all(store: Store, numbers: itertools.count[int], until: float) -> int:
    """One writer: creates a pod, binds it, and so on. Gives how many changes were committed."""
    done = 0
    while time.perf_counter() < until:
        pod = make_pod(next(numbers))
        key_change: list[Change] = [Create(pod)]
        (created,) = await store.write(key_change)
        assert isinstance(created, Record), created
        (bound,) = await store.write([Modify(created.key, bind)])
        assert isinstance(bound, Record), bound
        done += 2
    return done


async def measure(server: Server, max_group: int, seconds: float) -> float:
    """Objects per second."""
    port, clock = server.client(), time.monotonic
    election = Election(port, TaskRenewer(server.client(), clock), "bench:1", f"group-{max_group}", clock)
    term = await election.campaign()
    store = Store(port, time.time, max_group=max_group)
    await store.open(term)
    numbers = itertools.count(0 if max_group > 1 else 50_000_000)
    await asyncio.gather(*(write_all(store, numbers, time.perf_counter() + WARM_UP_S) for _ in range(WRITERS)))
    begin, cpu, etcd_cpu, groups = time.perf_counter(), time.process_time(), server.cpu_seconds(), store.stats.groups
    counts = await asyncio.gather(*(write_all(store, numbers, begin + seconds) for _ in range(WRITERS)))
    elapsed, total = time.perf_counter() - begin, sum(counts)
    print(
        f"groups of at most {max_group}: {total / elapsed:,.0f} objects/s, {total / (store.stats.groups - groups):.0f} "
        f"per group, CPU us per object: python {(time.process_time() - cpu) / total * 1e6:.0f}, "
        f"etcd {(server.cpu_seconds() - etcd_cpu) / total * 1e6:.0f}"
    )
    await store.close()
    await election.resign(term)
    await port.close()
    return total / elapsed


async def main(seconds: float, profile: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="shoal-bench-", dir="/var/tmp") as folder:
        server = Server(Path(folder) / "etcd", quota_bytes=8 << 30, fast=False)
        try:
            await server.start()
            profiler = cProfile.Profile()
            if profile:
                profiler.enable()
            grouped = await measure(server, MAX_GROUP_OBJECTS, seconds)
            if profile:
                profiler.disable()
                pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
            single = await measure(server, 1, seconds)
        finally:
            server.remove()
    print(f"store_objects_per_s={grouped:.0f} ratio={grouped / single:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each of the two measurements")
    parser.add_argument("--profile", action="store_true", help="print where Python's time goes")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.seconds, arguments.profile))
