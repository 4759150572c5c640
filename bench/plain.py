"""The plain loop that `bench.scheduler` is compared with: one pod at a time, a look at every node, no arrays. It knows
what the benchmark's workloads use, and decides by docs/scheduling.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.profiles import BUILT_IN
from shoal.master.scheduler.snapshot import NodeFacts
from shoal.master.scheduler.terms import Selector

ZONE = "topology.kubernetes.io/zone"


@dataclass(slots=True)
class PlainNode:
    facts: NodeFacts
    used: dict[str, int]
    load: list[int]
    owners: Counter[str] = field(default_factory=Counter)
    apps: Counter[str] = field(default_factory=Counter)  # pods by their label `app`


def app_of(selector: Selector | None) -> str:
    """The app that a term of these workloads means."""
    assert selector is not None
    return selector.rules[0].values[0]


class PlainLoop:
    """Nodes in the order of their names."""

    def __init__(self, nodes: Sequence[NodeFacts]) -> None:
        self.nodes = [PlainNode(facts, dict.fromkeys(facts.alloc, 0), [0, 0]) for facts in nodes]
        self.by_name = {node.facts.name: node for node in self.nodes}

    def take(self, name: str, pods: PodClass, sign: int = 1) -> None:
        """One pod more there, or one less."""
        node = self.by_name[name]
        for resource, amount in pods.requests:
            node.used[resource] = node.used.get(resource, 0) + sign * amount
        node.load[0] += sign * pods.load[0]
        node.load[1] += sign * pods.load[1]
        node.owners[pods.owner] += sign
        node.apps[dict(pods.labels).get("app", "")] += sign

    def place(self, pods: PodClass) -> str:
        """The node for one more pod, which it takes; "" for none."""
        full = self.full_zones(pods)
        best, best_score = "", -1e300
        for node in self.nodes:
            if not self.fits(node, pods, full):
                continue
            value = self.score(node, pods)
            if value > best_score:
                best, best_score = node.facts.name, value
        if best:
            self.take(best, pods)
        return best

    def fits(self, node: PlainNode, pods: PodClass, full: set[str]) -> bool:
        facts = node.facts
        if not facts.ready:
            return False
        for key, value in pods.selector:
            if facts.labels.get(key) != value:
                return False
        for resource, amount in pods.requests:
            if facts.alloc.get(resource, 0) - node.used.get(resource, 0) < amount:
                return False
        if facts.labels[ZONE] in full:
            return False
        return not any(node.apps[app_of(term.match.selector)] for term in pods.anti_affinity)

    def full_zones(self, pods: PodClass) -> set[str]:
        """The zones that have as many as the class's spread constraint allows."""
        full: set[str] = set()
        for one in pods.spread:
            app, counts = app_of(one.match.selector), Counter[str]()
            for node in self.nodes:
                labels = node.facts.labels
                if all(labels.get(key) == value for key, value in pods.selector):
                    counts[labels[one.key]] += node.apps[app]
            lowest = min(counts.values(), default=0)
            full |= {zone for zone, number in counts.items() if number + 1 - lowest > one.max_skew}
        return full

    def score(self, node: PlainNode, pods: PodClass) -> float:
        profile = BUILT_IN[pods.profile]
        alloc = node.facts.alloc
        f = max(0, alloc["cpu"] - node.load[0] - pods.load[0]) / alloc["cpu"]
        g = max(0, alloc["memory"] - node.load[1] - pods.load[1]) / alloc["memory"]
        total = profile.least * ((f + g) / 2) + profile.balanced * (1 - abs(f - g))
        return total - profile.siblings * node.owners[pods.owner] if pods.owner else total
