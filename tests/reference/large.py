"""Random clusters of many nodes: long runs, and full nodes with pods of higher priority in the queue."""

from __future__ import annotations

import random
from dataclasses import replace

from tests.reference.cluster import Cluster, Group, Pod
from tests.reference.devices import choose
from tests.reference.filters import Look, reason
from tests.reference.generate import FEATURES, HOSTNAME, RACK, ZONE, Case, Maker, a_budget, important, joined

LARGE = tuple(name for name in FEATURES if name not in ("volumes", "profiles"))
PREEMPTION = ("priority", "nominated", "budgets")


def large_case(seed: int) -> Case:
    """Many nodes of few kinds and long runs: what places runs as a whole has much to get wrong here."""
    rng = random.Random(seed)
    on = tuple(name for name in LARGE if rng.random() < rng.choice([0.1, 0.3]))
    maker = Maker(rng, on)
    kinds = [maker.node("") for _ in range(rng.choice([1, 3, 10]))]
    cluster = Cluster()
    for number in range(rng.choice([70, 100, 150])):
        name, like = f"n{number:03}", rng.choice(kinds)
        labels = {**like.labels, HOSTNAME: name}
        cluster.nodes[name] = replace(like, name=name, labels=labels, ready=rng.random() > 0.05)
    cluster.spaces = {"default": {}, "other": {"team": "red"}, "third": {"team": "blue"}}
    queue: list[Pod] = []
    for _ in range(rng.choice([1, 2, 3])):
        what, number = maker.what(), rng.choice([5, 40, 120, 250])
        if maker.chance("gangs"):
            cluster.groups["default", f"g{len(queue)}"] = Group(
                rng.choice([4, number // 2]), rng.choice(["", RACK, ZONE])
            )
            what = joined(what, "default", f"g{len(queue)}")
        for _ in range(number):
            queue.append(Pod(f"q{len(queue):03}", what, len(queue)))
    return Case(seed, on, cluster, queue)


def crowded_case(seed: int) -> Case:
    """Full nodes and pods of higher priority: the cheapest of many nodes is to be found."""
    rng = random.Random(seed)
    on = tuple(name for name in dict.fromkeys((*LARGE, *PREEMPTION)) if name == "priority" or rng.random() < 0.2)
    maker = Maker(rng, on)
    kinds = [replace(maker.node(""), ready=True) for _ in range(2)]
    cluster = Cluster()
    for number in range(rng.choice([10, 25, 50])):
        like = rng.choice(kinds)
        cluster.nodes[f"n{number:02}"] = replace(
            like, name=f"n{number:02}", labels={**like.labels, HOSTNAME: f"n{number:02}"}
        )
    if "budgets" in on:
        cluster.budgets = [a_budget(maker) for _ in range(3)]
    whats = [replace(maker.what(), priority=rng.choice([-5, 0, 0, 7, 10])) for _ in range(6)]
    many = rng.random() < 0.4  # priorities
    for number in range(8 * len(cluster.nodes)):
        what, name = rng.choice(whats), rng.choice(list(cluster.nodes))
        if many:
            what = replace(what, priority=rng.randrange(-20, 20))
        if reason(Look(cluster, what), cluster.nodes[name]):
            continue
        leaving, nominated = rng.choice([(False, False)] * 8 + [("leaving" in on, False), (False, "nominated" in on)])
        found = choose(cluster.left(cluster.nodes[name]), what) or ()
        cluster.hold(Pod(f"b{number:03}", what, rng.randrange(5), name, leaving, nominated, found))
    queue: list[Pod] = []
    for _ in range(rng.choice([1, 2, 4])):
        what = important(maker.what(), rng.choice([0, 500, 1500, 3000]))
        queue += [Pod(f"q{len(queue) + i:02}", what, len(queue) + i) for i in range(rng.choice([1, 5, 12]))]
    return Case(seed, on, cluster, queue)
