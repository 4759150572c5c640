"""Decisions per second of CPU of the scheduler's core: `schedule()` with its bindings committed and its refusals
explained, at 1,000, 5,000 and 50,000 nodes, next to a plain loop over all nodes that decides the same. Run as
`python -m bench.scheduler`; `--nodes 5000 --only mixed` keeps to a part, `--profile` says where the time goes."""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from bench import groups
from bench.groups import NODES_PER_RACK, RACK
from bench.plain import ZONE
from bench.plain_groups import plain_loop

from shoal.master.model import Event, Key, Record
from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.core import Plan, Scheduler, Waiting, order
from shoal.master.scheduler.snapshot import Hold, Snapshot
from shoal.master.scheduler.terms import PodMatch, PodTerm, Rule, Selector, Spread
from shoal.proto.v1 import objects_pb2 as o

SIZES = (1000, 5000, 50_000)
HEADLINE = 5000  # nodes, of the last line
ZONES = 10
PREFILLED = 0.3  # of each node's cpu, about
GIB = 1 << 30
HOSTNAME = "kubernetes.io/hostname"
IMAGE = "docker.io/library/app:1"
PLAIN_LOOKS = 60_000  # nodes that the plain loop looks at for one figure
MIXED_CLASSES, MIXED_WINDOW = 500, 1000
UNIQUE_PODS = {1000: 4000, 5000: 4000, 50_000: 500}
BATCH = 10_000


# ---- the cluster ----
def make_node(number: int, rng: random.Random) -> o.Node:
    made = o.Node(apiVersion="v1", kind="Node")
    made.metadata.name = f"node-{number:06d}"
    made.metadata.uid = f"uid-{number}"
    made.metadata.labels.update({HOSTNAME: made.metadata.name, ZONE: f"zone-{number % ZONES}"})
    made.metadata.labels["disk"] = rng.choice(["ssd", "hdd"])
    made.metadata.labels[RACK] = f"rack-{number // NODES_PER_RACK:05d}"
    cores = rng.choice([16, 32, 64])
    for name, text in (("cpu", f"{cores}"), ("memory", f"{cores * rng.choice([4, 8])}Gi")):
        made.status.allocatable[name].text = text
    made.status.allocatable["pods"].text = "110"
    made.status.allocatable["ephemeral-storage"].text = "500Gi"
    made.status.conditions.add(type="Ready", status="True")
    return made


def cluster(size: int) -> Snapshot:
    """Nodes of several sizes in ten zones, 30 % full of pods of fifty classes."""
    rng = random.Random(size)
    snapshot = Snapshot()
    nodes = [make_node(number, rng) for number in range(size)]
    records = [Record(Key("Node", "", node.metadata.name), node, b"", 1, 1) for node in nodes]
    snapshot.apply([Event(record.key, 1, None, record) for record in records])
    fillers = [pod_class(f"filler-{n}", 250 * rng.randint(1, 8), rng.randint(1, 8) << 29) for n in range(50)]
    for node in nodes:
        left = PREFILLED * int(node.status.allocatable["cpu"].text) * 1000
        while left > 0:
            pods = rng.choice(fillers)
            left -= pods.load[0]
            number = len(snapshot.journal) + snapshot.forgotten
            snapshot.commit(f"filled-{number}", Hold(node.metadata.name, pods, key=Key("Pod", "fill", f"f{number}")))
    return snapshot


# ---- the pods ----
def pod_class(app: str, cpu: int, memory: int, owner: bool = True) -> PodClass:
    return PodClass(
        requests=(("cpu", cpu), ("ephemeral-storage", GIB), ("memory", memory), ("pods", 1)),
        selector=(),
        tolerances=(),
        load=(cpu, memory),
        owner=f"rs-{app}" if owner else "",
        namespace="default",
        labels=(("app", app),),
        images=(IMAGE,),
    )


def constrained(app: str, cpu: int, memory: int) -> PodClass:
    """With a selector, anti-affinity to its own kind on a host, and zones that differ by at most 1."""
    match = PodMatch(("default",), None, Selector((Rule("app", "In", (app,)),)))
    return replace(
        pod_class(app, cpu, memory),
        selector=(("disk", "ssd"),),
        anti_affinity=(PodTerm(HOSTNAME, match),),
        spread=(Spread(ZONE, 1, True, match),),
    )


def queue_of(classes: Sequence[PodClass]) -> list[Waiting]:
    return [
        Waiting(f"pod-{n}", Key("Pod", "default", f"p{n}"), pods, (n, f"pod-{n}")) for n, pods in enumerate(classes)
    ]


def homogeneous_queue(size: int, rng: random.Random) -> list[Waiting]:
    return queue_of([pod_class("web", 250, GIB // 2)] * BATCH)


def constrained_queue(size: int, rng: random.Random) -> list[Waiting]:
    kinds = [constrained(f"app-{n}", 100 * rng.randint(1, 8), rng.randint(1, 8) << 28) for n in range(100)]
    return queue_of([pods for pods in kinds for _ in range(100)])


def unique_queue(size: int, rng: random.Random) -> list[Waiting]:
    return queue_of(
        [
            pod_class(f"one-{n}", rng.randint(50, 2000), rng.randint(64, 4096) << 20, owner=False)
            for n in range(UNIQUE_PODS.get(size, 1000))
        ]
    )


def mixed_queue(size: int, rng: random.Random) -> list[Waiting]:
    """500 classes, the n-th of them 1/n as often as the first."""
    kinds = [pod_class(f"mix-{n}", rng.randint(50, 2000), rng.randint(64, 4096) << 20) for n in range(MIXED_CLASSES)]
    weights = [1 / (n + 1) for n in range(MIXED_CLASSES)]
    return queue_of(rng.choices(kinds, weights, k=BATCH))


WORKLOADS: dict[str, Callable[[int, random.Random], list[Waiting]]] = {
    "homogeneous": homogeneous_queue,
    "constrained": constrained_queue,
    "unique": unique_queue,
    "mixed": mixed_queue,
}


def windows(name: str, queue: list[Waiting]) -> Iterator[list[Waiting]]:
    """As they come to schedule(): ordered."""
    width = MIXED_WINDOW if name == "mixed" else len(queue)
    for start in range(0, len(queue), width):
        yield order(queue[start : start + width])


# ---- figures ----
@dataclass(slots=True)
class Figure:
    per_s: float
    plain_per_s: float
    refused: int

    @property
    def ratio(self) -> float:
        return self.per_s / self.plain_per_s


def decide(snapshot: Snapshot, name: str, queue: list[Waiting]) -> tuple[list[Plan], float]:
    """The plans, and the seconds of CPU for them."""
    scheduler = Scheduler()
    parts = list(windows(name, queue))
    gc.collect()
    gc.freeze()
    started = time.process_time()
    plans = [scheduler.schedule(snapshot, part) for part in parts]
    return plans, time.process_time() - started


def plain(snapshot: Snapshot, sample: Sequence[Waiting]) -> tuple[list[str], float]:
    """What the plain loop decides for the first pods, and the seconds of CPU for them."""
    loop = plain_loop(snapshot)
    started = time.process_time()
    found = [loop.place(one.pods) for one in sample]
    return found, time.process_time() - started


def measure(base: Snapshot, name: str, repeat: int) -> Figure:
    """The best of some runs, each on its own copy of the cluster; the plain loop decides the first pods as well."""
    queue = WORKLOADS[name](len(base), random.Random(7))
    best, refused, nodes = 1e9, 0, {}
    for _ in range(repeat):
        plans, seconds = decide(base.clone(), name, queue)
        best = min(best, seconds)
        nodes = {binding.waiting.uid: binding.node for plan in plans for binding in plan.bindings}
        refused = sum(len(plan.refusals) for plan in plans)
    first = next(windows(name, queue))
    sample = first[: max(2, min(PLAIN_LOOKS // len(base), 150))]
    wanted, seconds = plain(base, sample)
    have = [nodes.get(one.uid, "") for one in sample]
    assert have == wanted, f"{name}, {len(base)} nodes: the plain loop decides otherwise: {have} {wanted}"
    return Figure(len(queue) / best, len(sample) / seconds, refused)


def profile(base: Snapshot, name: str) -> None:
    queue = WORKLOADS[name](len(base), random.Random(7))
    profiler, snapshot = cProfile.Profile(), base.clone()
    profiler.enable()
    decide(snapshot, name, queue)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, action="append", help="how many; default: 1000, 5000 and 50000")
    parser.add_argument("--only", choices=sorted(WORKLOADS), action="append")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    found: dict[str, Figure] = {}
    print(f"{'nodes':>6} {'workload':12} {'per s':>9} {'plain loop':>10} {'ratio':>7} {'refused':>7}")
    for size in args.nodes or SIZES:
        base = cluster(size)
        for name in args.only or WORKLOADS:
            if args.profile:
                profile(base, name)
                continue
            one = measure(base, name, args.repeat if size <= HEADLINE else 1)
            print(f"{size:6} {name:12} {one.per_s:9,.0f} {one.plain_per_s:10,.1f} {one.ratio:7,.0f} {one.refused:7}")
            if size == HEADLINE:
                found[name] = one
        if not args.only and not args.profile:
            for row in groups.rows(base, pod_class):
                print(f"{size:6} {row}")
    if len(found) == len(WORKLOADS):
        figures = " ".join(f"{name}_per_s={one.per_s:.0f}" for name, one in found.items())
        print(f"{figures} vs_plain={min(one.ratio for one in found.values()):.0f}")


if __name__ == "__main__":
    main()
