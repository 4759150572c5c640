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

    def reason(self, pods: PodClass, storage: PlainStorage) -> str:
        """The first reason why not; empty when it fits."""
        blocked = [why for name in pods.claims if (why := storage.blocked(name))]
        if blocked:
            return blocked[0]
        if not self.facts.ready:
            return "node(s) were not ready"
        if any(self.facts.labels.get(key) != value for key, value in pods.selector):
            return "node(s) didn't match Pod's node affinity/selector"
        for taint in sorted(self.facts.taints):
            if taint.effect in ("NoSchedule", "NoExecute") and not accepted(taint, pods):
                return f"node(s) had untolerated taint {{{taint}}}"
        if why := storage.reason(pods.claims, self.facts.name):
            return why
        for name, wanted in pods.requests:
            if self.facts.alloc.get(name, 0) - self.used[name] < wanted:
                return "Too many pods" if name == "pods" else f"Insufficient {name}"
        return ""

    def score(self, pods: PodClass) -> float:
        load = self.share("cpu", pods.load[0]) + self.share("memory", pods.load[1])
        soft = sum(t.effect == "PreferNoSchedule" and not accepted(t, pods) for t in self.facts.taints)
        siblings = self.owners[pods.owner] if pods.owner else 0
        balanced = 1 - abs(self.share("cpu", pods.load[0]) - self.share("memory", pods.load[1]))
        return 0.0 + 0.5 * (load / 2) + 0.25 * balanced - siblings * 1.0 - soft * 65536.0

    def share(self, resource: str, wanted: int) -> float:
        alloc = self.facts.alloc.get(resource, 0)
        left = alloc - self.load[resource] - wanted
        return max(left, 0) / alloc if alloc > 0 else 0.0


@dataclass
class PlainClaim:
    """`volume`: bound to it; `tied`: the node that it was given. Sizes are whole numbers."""

    storage_class: str
    mode: str = "ReadWriteOnce"
    size: int = 1
    volume: str = ""
    tied: str = ""
    leaving: bool = False


@dataclass
class PlainVolume:
    storage_class: str
    homes: set[str]  # empty: everywhere
    size: int = 1
    claim: str = ""  # that has it


@dataclass
class PlainStorage:
    claims: dict[str, PlainClaim] = field(default_factory=dict)
    volumes: dict[str, PlainVolume] = field(default_factory=dict)
    users: dict[str, set[str]] = field(default_factory=dict)  # claim -> nodes of the pods that use it

    def waiting(self, claim: PlainClaim) -> bool:
        return claim.storage_class in ("made", "disks")

    def blocked(self, name: str) -> str:
        """Why no pod with this claim can be placed anywhere."""
        claim, short = self.claims.get(name), name.split("/")[1]
        if claim is None:
            return f"claim {short} does not exist"
        if claim.leaving:
            return f"claim {short} is being deleted"
        if claim.mode == "ReadWriteOncePod" and self.users.get(name):
            return f"claim {short} is in use by another pod (ReadWriteOncePod)"
        if claim.volume:
            if claim.volume not in self.volumes:
                return f"the volume of claim {short} does not exist"
            return "" if self.volumes[claim.volume].claim == name else f"claim {short} is not bound yet"
        if not self.waiting(claim):
            return f"claim {short} is not bound yet"
        if claim.storage_class == "disks" and not claim.tied and not self.users.get(name):
            others = [c for n, c in self.claims.items() if n != name and c.storage_class == "disks" and not c.volume]
            if any(c.tied for c in others) or any(self.users.get(n) for n, c in self.claims.items() if c in others):
                return f"claim {short} waits until another claim of its class has its volume"
        return ""

    def reason(self, names: Sequence[str], node: str) -> str:
        """Why this node is not for a pod with these claims, none of which is blocked."""
        for name in names:
            claim, users = self.claims[name], self.users.get(name)
            homes = self.volumes[claim.volume].homes if claim.volume else set()
            if homes and node not in homes:
                return "node(s) did not have the volume of a claim"
            shared = claim.mode == "ReadWriteMany" and claim.volume
            tied = users if users and not shared else {claim.tied} if claim.tied and not claim.volume else None
            if tied is not None and node not in tied:
                return "node(s) did not have the volume of a claim"
        return self.lacking(names, node)

    def lacking(self, names: Sequence[str], node: str) -> str:
        taken: set[str] = set()
        for name in names:
            claim = self.claims[name]
            if claim.volume or claim.tied or self.users.get(name) or claim.storage_class != "disks":
                continue
            fitting = [
                (volume.size, key)
                for key, volume in self.volumes.items()
                if not volume.claim and volume.storage_class == "disks" and volume.size >= claim.size
                if key not in taken and (not volume.homes or node in volume.homes)
            ]
            if not fitting:
                return f"no volume fits claim {name.split('/')[1]}"
            taken.add(min(fitting)[1])
        return ""


def accepted(taint: TaintKey, pods: PodClass) -> bool:
    return any(fits(tolerance, taint) for tolerance in pods.tolerances)


def fits(t: Tolerance, taint: TaintKey) -> bool:
    effect = t.effect in ("", taint.effect)
    if t.exists:
        return effect and (not t.key or t.key == taint.key)
    return effect and (t.key, t.value) == (taint.key, taint.value)


def reference(
    nodes: Sequence[PlainNode], queue: Sequence[PodClass], storage: PlainStorage | None = None
) -> list[str | Counter[str]]:
    """For each pod its node's name, or the reasons' counts (of when its class was first refused)."""
    storage = storage or PlainStorage()
    result: list[str | Counter[str]] = []
    refused: dict[PodClass, Counter[str]] = {}
    ordered = sorted(nodes, key=lambda n: n.facts.name)
    for pods in queue:
        reasons = {n.facts.name: n.reason(pods, storage) for n in ordered}
        possible = [n for n in ordered if not reasons[n.facts.name]]
        if not possible:
            result.append(refused.setdefault(pods, Counter(reasons.values())))
            continue
        best = max(possible, key=lambda n: n.score(pods))
        best.used.update(dict(pods.requests))
        best.load.update(cpu=pods.load[0], memory=pods.load[1])
        best.owners[pods.owner] += 1
        for name in pods.claims:
            storage.users.setdefault(name, set()).add(best.facts.name)
        result.append(best.facts.name)
    return result
