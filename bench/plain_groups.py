"""Gangs and preemption by the plain loop: one domain, one node and one pod at a time, by docs/scheduling.md. It knows
what the benchmark's workloads use: resources and priorities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.plain import PlainLoop, PlainNode

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.snapshot import Hold, Snapshot


@dataclass(frozen=True, slots=True)
class Evictions:
    node: str
    victims: tuple[str, ...]


def plain_loop(snapshot: Snapshot) -> PlainLoop:
    """With everything that the snapshot holds."""
    loop = PlainLoop(snapshot.facts())
    for name in snapshot.names:
        for hold in snapshot.pods_on(name).values():
            loop.take(name, hold.pods)
    return loop


def plain_gang(loop: PlainLoop, pods: PodClass, number: int, key: str) -> list[str]:
    """The nodes of so many members in the domain of this label that takes most of them, then scores best."""
    domains: dict[str, list[PlainNode]] = {}
    for node in loop.nodes:
        domains.setdefault(node.facts.labels[key], []).append(node)
    best: tuple[int, float, str] | None = None
    chosen: list[str] = []
    for name, nodes in sorted(domains.items()):
        found, total = _tried(loop, nodes, pods, number)
        if best is None or (-len(found), -total, name) < best:
            best, chosen = (-len(found), -total, name), found
    for name in chosen:
        loop.take(name, pods)
    return chosen


def _tried(loop: PlainLoop, nodes: Sequence[PlainNode], pods: PodClass, number: int) -> tuple[list[str], float]:
    found: list[str] = []
    total = 0.0
    for _ in range(number):
        values = [(loop.score(node, pods), node) for node in nodes if loop.fits(node, pods, set())]
        if not values:
            break
        value, node = max(values, key=lambda pair: pair[0])
        loop.take(node.facts.name, pods)
        found.append(node.facts.name)
        total += value
    for name in found:
        loop.take(name, pods, -1)
    return found, total


def plain_eviction(snapshot: Snapshot, pods: PodClass) -> Evictions:
    """Whose room the pod takes, and where."""
    best: tuple[tuple[int, int, int, str], Evictions] | None = None
    for facts in snapshot.facts():
        held = snapshot.pods_on(facts.name)
        victims = _victims(facts.alloc, held, pods)
        if victims is None:
            continue
        priorities = [held[uid].pods.priority for uid in victims]
        cost = max(priorities), len(victims), sum(priorities), facts.name
        if best is None or cost < best[0]:
            best = cost, Evictions(facts.name, tuple(victims))
    assert best is not None, "nobody can be evicted"
    return best[1]


def _victims(alloc: dict[str, int], held: Mapping[str, Hold], pods: PodClass) -> list[str] | None:
    """Those that are not given back when all of lower priority are away; None when that is not enough."""
    lower: list[tuple[int, tuple[int, str], str, Hold]] = []
    left = dict(alloc)
    for uid, hold in held.items():
        if hold.pods.priority < pods.priority:
            lower.append((-hold.pods.priority, hold.arrival, uid, hold))
        else:
            _take(left, hold.pods)
    if not _fits(left, pods):
        return None
    victims = []
    for _, _, uid, hold in sorted(lower, key=lambda one: one[:3]):
        _take(left, hold.pods)
        if not _fits(left, pods):
            _take(left, hold.pods, -1)
            victims.append(uid)
    return victims


def _take(left: dict[str, int], pods: PodClass, sign: int = 1) -> None:
    for name, amount in pods.requests:
        left[name] = left.get(name, 0) - sign * amount


def _fits(left: dict[str, int], pods: PodClass) -> bool:
    return all(left.get(name, 0) >= amount for name, amount in pods.requests)
