"""The plain scheduler: one pod at a time, a loop over all nodes, no arrays. What the fast one must decide, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.master.scheduler.classes import PodClass, Tolerance
from shoal.master.scheduler.snapshot import NodeFacts, TaintKey


@dataclass
class PlainNode:
    facts: NodeFacts
    used: Counter[str] = field(default_factory=Counter)
    load: Counter[str] = field(default_factory=Counter)  # with what is assumed of containers that ask for nothing
    owners: Counter[str] = field(default_factory=Counter)

    def reason(self, pods: PodClass) -> str:
        """The first reason why not; empty when it fits."""
        if not self.facts.ready:
            return "node(s) were not ready"
        if any(self.facts.labels.get(key) != value for key, value in pods.selector):
            return "node(s) didn't match Pod's node selector"
        for taint in sorted(self.facts.taints):
            if taint.effect in ("NoSchedule", "NoExecute") and not accepted(taint, pods):
                return f"node(s) had untolerated taint {{{taint}}}"
        for name, wanted in pods.requests:
            if self.facts.alloc.get(name, 0) - self.used[name] < wanted:
                return "Too many pods" if name == "pods" else f"Insufficient {name}"
        return ""

    def score(self, pods: PodClass) -> float:
        load = self.share("cpu", pods.load[0]) + self.share("memory", pods.load[1])
        soft = sum(t.effect == "PreferNoSchedule" and not accepted(t, pods) for t in self.facts.taints)
        siblings = self.owners[pods.owner] if pods.owner else 0
        return load / 4.0 - siblings * 1.0 - soft * 65536.0

    def share(self, resource: str, wanted: int) -> float:
        alloc = self.facts.alloc.get(resource, 0)
        left = alloc - self.load[resource] - wanted
        return max(left, 0) / alloc if alloc > 0 else 0.0


def accepted(taint: TaintKey, pods: PodClass) -> bool:
    return any(fits(tolerance, taint) for tolerance in pods.tolerances)


def fits(t: Tolerance, taint: TaintKey) -> bool:
    effect = t.effect in ("", taint.effect)
    if t.exists:
        return effect and (not t.key or t.key == taint.key)
    return effect and (t.key, t.value) == (taint.key, taint.value)


def reference(nodes: Sequence[PlainNode], queue: Sequence[PodClass]) -> list[str | Counter[str]]:
    """For each pod its node's name, or the reasons' counts (of when its class was first refused)."""
    result: list[str | Counter[str]] = []
    refused: dict[PodClass, Counter[str]] = {}
    ordered = sorted(nodes, key=lambda n: n.facts.name)
    for pods in queue:
        reasons = {n.facts.name: n.reason(pods) for n in ordered}
        possible = [n for n in ordered if not reasons[n.facts.name]]
        if not possible:
            result.append(refused.setdefault(pods, Counter(reasons.values())))
            continue
        best = max(possible, key=lambda n: n.score(pods))
        best.used.update(dict(pods.requests))
        best.load.update(cpu=pods.load[0], memory=pods.load[1])
        best.owners[pods.owner] += 1
        result.append(best.facts.name)
    return result
