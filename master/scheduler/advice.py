"""What would let a pending pod in: single changes of the pod, of a node, or of where another pod runs.

Each piece of advice has been tried on the snapshot before it is given: with it, and nothing else, a node takes the pod.
Works on a snapshot of its own (a copy).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from shoal.master.model import Key
from shoal.master.scheduler.classes import PODS, PodClass, Tolerance
from shoal.master.scheduler.core import Preemption, Scheduler, Waiting
from shoal.master.scheduler.explain import spell
from shoal.master.scheduler.filters import HARD_EFFECTS, VolumeFilter, feasible, scopes, spread_counts, untolerated
from shoal.master.scheduler.place import step
from shoal.master.scheduler.snapshot import Bools, Hold, Snapshot, TaintKey
from shoal.master.scheduler.terms import NodeTerm, PodTerm, Rule
from shoal.proto.rules.resources import GPU, GPU_MILLI

SYSTEM_TAINTS = "node.kubernetes.io/"  # say that something is wrong with a node: not to be tolerated lightly
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
NODES_TRIED = 16  # for moves; those with the smallest shortage
PODS_TRIED = 8  # on each of them
WHOLE = 1000  # milli of a device
NAMES_SHOWN = 5  # of pods that would be evicted
SYSTEM_CLASSES = "system-"  # PriorityClasses that are not for everybody


class Advice(NamedTuple):
    """`kind`: request, selector, affinity, toleration, spread, anti-affinity, port, label, uncordon, priority or move.
    `pods`: the pod as it would be, for changes of the pod; `change`: the same for programs. `node` would take it."""

    kind: str
    text: str
    node: str
    change: Mapping[str, Any]
    pods: PodClass | None = None


@dataclass(slots=True)
class Adviser:
    """Of one pending pod's class."""

    snapshot: Snapshot
    scheduler: Scheduler
    pods: PodClass
    priorities: Mapping[str, int] = field(default_factory=dict)  # of the PriorityClasses, by name

    def advise(self) -> Iterator[Advice]:
        """All that is found; nothing for members of gangs, which one change seldom helps."""
        return (found for found in self.steps() if found is not None)

    def steps(self) -> Iterator[Advice | None]:
        """The same, with a breath (None) after each change tried in vain: a pod may have a thousand rules."""
        known = self.scheduler.frame(self.snapshot, self.pods)
        if self.pods.group or known.blocked or not len(self.snapshot):
            return
        parts = (
            self._requests, self._devices, self._selectors, self._affinity, self._taints, self._spread, self._company,
            self._ports,
        )  # fmt: skip
        kinds = set()
        for part in parts:
            for found in part():
                kinds.add(found.kind if found is not None else "")
                yield found
        if "request" not in kinds:
            yield from self._several_requests()
        yield from self._priority()
        yield from self._moves()

    # ---- trying ----
    def _open(self, pods: PodClass) -> Bools:
        known = self.scheduler.frame(self.snapshot, pods)
        volumes = VolumeFilter.of(self.snapshot, pods) if pods.claims else None
        return feasible(self.snapshot, known, volumes)

    def taker(self, pods: PodClass) -> str:
        """The node that would take such a pod now; empty for none."""
        known = self.scheduler.frame(self.snapshot, pods)
        if known.profile is None or known.demand is None:
            return ""
        row = step(self.snapshot, known, known.profile)
        return self.snapshot.names[row] if row >= 0 else ""

    def _changed(self, kind: str, text: str, change: Mapping[str, Any], **fields: Any) -> Iterator[Advice | None]:
        """The advice to change the pod in this way, if that helps."""
        pods = replace(self.pods, **fields)
        node = self.taker(pods)
        yield Advice(kind, text, node, change, pods) if node else None

    # ---- what it asks for ----
    def _requests(self) -> Iterator[Advice | None]:
        """The most of one resource with which it fits."""
        for name, wanted in self.pods.requests:
            if name in (PODS, GPU, GPU_MILLI):
                continue
            others = tuple(pair for pair in self.pods.requests if pair[0] != name)
            there = self._open(replace(self.pods, requests=others))
            most = int(self.snapshot.free(name)[there].max(initial=0))
            if 0 < most < wanted:
                yield from self._less({name: most})

    def _several_requests(self) -> Iterator[Advice | None]:
        """Less of all that is short, on the node where that is the smallest part."""
        slots = tuple(pair for pair in self.pods.requests if pair[0] in (PODS, GPU, GPU_MILLI))
        rows = np.flatnonzero(self._open(replace(self.pods, requests=slots)))
        wanted = [(name, amount) for name, amount in self.pods.requests if name not in (PODS, GPU, GPU_MILLI)]
        if not rows.size or len(wanted) < 2:
            return
        free = np.array([self.snapshot.free(name)[rows] for name, _ in wanted])
        asked = np.array([[amount] for _, amount in wanted])
        usable = (free > 0).all(axis=0)
        if not usable.any():
            return
        worst = np.where(usable, ((asked - free) / asked).max(axis=0), np.inf)
        at = int(np.argmin(worst))
        less = {name: int(free[i, at]) for i, (name, amount) in enumerate(wanted) if free[i, at] < amount}
        if len(less) > 1:
            yield from self._less(less)

    def _less(self, most: Mapping[str, int]) -> Iterator[Advice | None]:
        asked = dict(self.pods.requests)
        words = " and ".join(f"{spell_down(n, value)} {n} instead of {spell(n, asked[n])}" for n, value in most.items())
        amounts = {name: floor(name, value) for name, value in most.items()}
        if not all(amounts.values()):
            return
        requests = tuple(sorted((asked | amounts).items()))
        change = {"requests": {name: spell_down(name, value) for name, value in most.items()}}
        yield from self._changed("request", f"ask for {words}, in all containers together", change, requests=requests)

    def _devices(self) -> Iterator[Advice | None]:
        pods = self.pods
        without = tuple(pair for pair in pods.requests if pair[0] not in (GPU, GPU_MILLI))
        if not (pods.gpu_count or pods.gpu_milli):
            return
        there = self._open(replace(pods, requests=without, gpu_count=0, gpu_milli=0))
        left = self.snapshot.gpu_left[there]
        if pods.gpu_count and left.size:
            most = int(np.count_nonzero(left >= WHOLE, axis=1).max(initial=0))
            if 0 < most < pods.gpu_count:
                asked = dict(pods.requests)
                requests = tuple((n, min(most, v) if n == GPU else v) for n, v in asked.items())
                text = f"ask for {most} {GPU} instead of {pods.gpu_count}"
                change = {"requests": {GPU: str(most)}}
                yield from self._changed("request", text, change, gpu_count=most, requests=requests)
        elif pods.gpu_milli and left.size:
            most = int(left.max(initial=0))
            if 0 < most < pods.gpu_milli:
                text = f"ask for {most} {GPU_MILLI} instead of {pods.gpu_milli}"
                requests = tuple((n, min(most, v) if n == GPU_MILLI else v) for n, v in pods.requests)
                yield from self._changed(
                    "request", text, {"requests": {GPU_MILLI: str(most)}}, gpu_milli=most, requests=requests
                )

    # ---- where it wants to go ----
    def _selectors(self) -> Iterator[Advice | None]:
        for key, value in self.pods.selector:
            rest = tuple(pair for pair in self.pods.selector if pair != (key, value))
            change = {"remove": f"spec.nodeSelector[{key}]"}
            text = f"take {key}: {value} out of its nodeSelector"
            for found in self._changed("selector", text, change, selector=rest):
                yield found
                if found is not None and self._labelled(found.node, {key: value}) == found.node:
                    label = {"node": found.node, "label": {key: value}}
                    yield Advice("label", f"give node {found.node} the label {key}={value}", found.node, label)

    def _labelled(self, node: str, labels: Mapping[str, str]) -> str:
        """Which node would take the pod if that one had these labels, too: they may move it to another domain."""
        trial = self.snapshot.clone()
        facts = trial.nodes.facts[node]
        trial.take_nodes({node: replace(facts, labels={**facts.labels, **labels})})
        return Adviser(trial, Scheduler(self.scheduler.profiles), self.pods).taker(self.pods)

    def _affinity(self) -> Iterator[Advice | None]:
        terms = self.pods.node_terms
        if terms is None:
            return
        single = False
        for number, term in enumerate(terms):
            for rule in (*term.labels, *term.fields):
                smaller = without_rule(term, rule)
                if smaller is None:
                    continue
                changed = (*terms[:number], smaller, *terms[number + 1 :])
                path = f"{NODE_AFFINITY}.nodeSelectorTerms[{number}]"
                text = f"take the rule {spelled(rule)} out of its required node affinity"
                change = {"remove": path, "key": rule.key}
                for found in self._changed("affinity", text, change, node_terms=changed):
                    single = single or found is not None
                    yield found
        if not single:
            text = "take away its required node affinity"
            yield from self._changed("affinity", text, {"remove": NODE_AFFINITY}, node_terms=None)

    def _taints(self) -> Iterator[Advice | None]:
        every = list(self.snapshot.taint_rows())
        for taint in sorted(untolerated(self.pods, every)):
            if taint.effect not in HARD_EFFECTS:
                continue
            added = Tolerance(taint.key, not taint.value, taint.value, taint.effect)
            tolerances = (*self.pods.tolerances, added)
            if taint.key == UNSCHEDULABLE:
                if node := self.taker(replace(self.pods, tolerances=tolerances)):
                    change = {"node": node, "unschedulable": False}
                    yield Advice("uncordon", f"let node {node} take pods again (spec.unschedulable)", node, change)
            elif not taint.key.startswith(SYSTEM_TAINTS):
                said = toleration(taint)
                text = "give it the toleration {" + ", ".join(f"{k}: {v}" for k, v in said.items()) + "}"
                yield from self._changed("toleration", text, {"toleration": said}, tolerances=tolerances)

    # ---- whom it is with ----
    def _spread(self) -> Iterator[Advice | None]:
        for number, one in enumerate(self.pods.spread):
            if not one.hard:
                continue
            path = f"spec.topologySpreadConstraints[{number}]"

            def with_skew(skew: int, number: int = number) -> PodClass:
                changed = replace(self.pods.spread[number], max_skew=skew)
                return replace(self.pods, spread=(*self.pods.spread[:number], changed, *self.pods.spread[number + 1 :]))

            least = self._least_skew(number, with_skew)
            if least:
                text = f"raise maxSkew over {one.key} from {one.max_skew} to {least}"
                change = {"set": f"{path}.maxSkew", "value": least}
                yield from self._changed("spread", text, change, spread=with_skew(least).spread)
            rest = (*self.pods.spread[:number], replace(one, hard=False), *self.pods.spread[number + 1 :])
            text = f'make the spread over {one.key} soft (whenUnsatisfiable: "ScheduleAnyway")'
            change = {"set": f"{path}.whenUnsatisfiable", "value": "ScheduleAnyway"}
            yield from self._changed("spread", text, change, spread=rest)

    def _least_skew(self, number: int, with_skew: Any) -> int:
        """With which some node takes it; 0 for none. More skew never shuts a node out."""
        known = self.scheduler.frame(self.snapshot, self.pods)
        counts = spread_counts(self.snapshot, scopes(self.snapshot, known)[number])
        low, high = self.pods.spread[number].max_skew + 1, int(counts.max(initial=0)) + 1
        if low > high or not self.taker(with_skew(high)):
            return 0
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.taker(with_skew(middle)) else (middle + 1, high)
        return low

    def _company(self) -> Iterator[Advice | None]:
        kinds = (("affinity", "affinity", "podAffinity"), ("anti-affinity", "anti_affinity", "podAntiAffinity"))
        for word, name, path in kinds:
            terms: tuple[PodTerm, ...] = getattr(self.pods, name)
            for number, term in enumerate(terms):
                where = f"spec.affinity.{path}.requiredDuringSchedulingIgnoredDuringExecution[{number}]"
                text = f"take its required pod {word} over {term.key} ({matched(term)}) away, or make it preferred"
                rest = (*terms[:number], *terms[number + 1 :])
                yield from self._changed(word, text, {"remove": where}, **{name: rest})

    def _ports(self) -> Iterator[Advice | None]:
        for port in self.pods.ports:
            protocol, _, number = port
            rest = tuple(one for one in self.pods.ports if one != port)
            text = f"take another host port than {number}/{protocol}, or none"
            yield from self._changed("port", text, {"port": number, "protocol": protocol}, ports=rest)

    # ---- whom it could have evicted ----
    def _priority(self) -> Iterator[Advice | None]:
        """The lowest priority with which it would be nominated. More priority never helps less."""
        own = self.pods.priority
        held = {hold.pods.priority for hold in self.snapshot.all_holds().values()}
        levels = sorted({max(own, priority + 1) for priority in held if priority >= own or not self.pods.preempts})
        if not levels or not self._evicting(levels[-1]):
            return
        low, high = 0, len(levels) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._evicting(levels[middle]) else (middle + 1, high)
        pods, found = self._preempting(levels[low]), self._evicting(levels[low])
        if found is not None:
            yield Advice("priority", *self._by_priority(pods.priority, found), pods)

    def _preempting(self, priority: int) -> PodClass:
        return replace(self.pods, priority=priority, preempts=True)

    def _evicting(self, priority: int) -> Preemption | None:
        """What it would come to; on a copy."""
        waiting = Waiting(ADVISED, Key("Pod", self.pods.namespace, ADVISED), self._preempting(priority))
        plan = Scheduler(self.scheduler.profiles).schedule(self.snapshot.clone(), [waiting])
        return plan.preemptions[0] if plan.preemptions else None

    def _by_priority(self, priority: int, found: Preemption) -> tuple[str, str, Mapping[str, Any]]:
        """Text, node, change."""
        names = [f"{one.key.namespace}/{one.key.name}" for one in found.victims]
        usable = [
            (value, name)
            for name, value in self.priorities.items()
            if value >= priority and not name.startswith(SYSTEM_CLASSES)
        ]
        value, chosen = min(usable, default=(0, ""))
        such = f" (PriorityClass {chosen}: {value})" if chosen else ", by a PriorityClass"
        what = f"give it priority {priority} or more{such}" if priority > self.pods.priority else ""
        how = what or "let it have others evicted (preemptionPolicy: PreemptLowerPriority)"
        evicted = f"evicting {listed(names)}" if names else "once what is ending there has gone"
        change = {"priority": priority, "priorityClassName": chosen, "victims": names}
        return f"{how}, {evicted} on node {found.node}", found.node, change

    # ---- room that another pod could make ----
    def _moves(self) -> Iterator[Advice | None]:
        """One pod of a controller that runs elsewhere just as well, where that is enough: the first that is found."""
        bare = replace(self.pods, requests=(), ports=(), anti_affinity=(), gpu_count=0, gpu_milli=0)
        rows = np.flatnonzero(self._open(bare))
        if not rows.size:
            return
        short = np.zeros(rows.size, dtype=np.float64)
        for name, wanted in self.pods.requests:
            short = np.maximum(short, (wanted - self.snapshot.free(name)[rows]) / max(wanted, 1))
        for row in rows[np.argsort(short, kind="stable")][:NODES_TRIED].tolist():
            for uid, hold in self._movable(self.snapshot.names[row]):
                yield None
                if target := self._moved(uid, hold):
                    key = hold.key or Key("Pod", "", uid)
                    name = f"{key.namespace}/{key.name}"
                    text = (
                        f"move pod {name} from node {hold.node} to node {target} (its controller makes it anew there)"
                    )
                    change = {"pod": name, "from": hold.node, "to": target}
                    yield Advice("move", text, hold.node, change)
                    return

    def _movable(self, node: str) -> list[tuple[str, Hold]]:
        """Those that could be enough, the smallest first."""
        found = [
            (uid, hold)
            for uid, hold in self.snapshot.pods_on(node).items()
            if hold.pods.owner and not (hold.leaving or hold.nominated or hold.pods.claims or hold.pods.group)
        ]
        needed = [(n, wanted - int(self.snapshot.free(n)[self.snapshot.row[node]])) for n, wanted in self.pods.requests]
        enough = [pair for pair in found if all(dict(pair[1].pods.requests).get(n, 0) >= lack for n, lack in needed)]
        budgeted = [pair for pair in enough if self._budget_allows(pair[1])]
        return sorted(budgeted, key=lambda pair: (pair[1].pods.priority, pair[1].pods.load, pair[0]))[:PODS_TRIED]

    def _budget_allows(self, hold: Hold) -> bool:
        labels = dict(hold.pods.labels)
        return all(
            budget.allowed > 0
            for budget in self.snapshot.budgets.values()
            if budget.namespace == hold.pods.namespace and budget.selector and budget.selector.matches(labels)
        )

    def _moved(self, uid: str, hold: Hold) -> str:
        """The other node that takes the pod when this one has its place; everything is as it was afterwards."""
        self.snapshot.undo(uid)
        target = ""
        if self.taker(self.pods) == hold.node:
            self.snapshot.commit(ADVISED, self._assumed(hold.node))
            target = self.taker(hold.pods)
            self.snapshot.undo(ADVISED)
        self.snapshot.commit(uid, hold)
        return target if target != hold.node else ""

    def _assumed(self, node: str) -> Hold:
        from shoal.master.scheduler import gpus

        known = self.scheduler.frame(self.snapshot, self.pods)
        row = self.snapshot.row[node]
        devices = gpus.choose(self.snapshot.gpu_left[row].tolist(), known.device) if known.device.number else ()
        return Hold(node, self.pods, devices)


ADVISED = "advised"  # a uid that no pod has
NODE_AFFINITY = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
STEPS = (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))


def floor(resource: str, amount: int) -> int:
    """What `spell_down` writes, as an amount."""
    if resource in ("memory", "ephemeral-storage"):
        for _, size in STEPS[1:]:
            if amount >= size:
                return amount // size * size
    return amount


def spell_down(resource: str, amount: int) -> str:
    """An amount as a manifest would write it, rounded down to whole mebibytes where it is bytes."""
    if resource in ("memory", "ephemeral-storage"):
        for suffix, size in STEPS:
            if amount >= size and (suffix != "Gi" or amount % size == 0):
                return f"{amount // size}{suffix}"
    return spell(resource, amount)


def without_rule(term: NodeTerm, rule: Rule) -> NodeTerm | None:
    """None when nothing would be left: a term without rules holds for no node."""
    labels = tuple(one for one in term.labels if one is not rule)
    fields = tuple(one for one in term.fields if one is not rule)
    return NodeTerm(labels, fields) if labels or fields else None


def toleration(taint: TaintKey) -> dict[str, str]:
    """As a manifest writes it."""
    if not taint.value:
        return {"key": taint.key, "operator": "Exists", "effect": taint.effect}
    return {"key": taint.key, "operator": "Equal", "value": taint.value, "effect": taint.effect}


def spelled(rule: Rule) -> str:
    values = f" [{', '.join(rule.values)}]" if rule.values else ""
    return f"{rule.key} {rule.operator}{values}"


def matched(term: PodTerm) -> str:
    selector = term.match.selector
    if selector is None:
        return "no pods"
    return ", ".join(spelled(rule) for rule in selector.rules) or "all pods"


def listed(names: list[str]) -> str:
    """The first few."""
    head = ", ".join(names[:NAMES_SHOWN])
    return head if len(names) <= NAMES_SHOWN else f"{head} and {len(names) - NAMES_SHOWN} more"


def advise(snapshot: Snapshot, scheduler: Scheduler, pods: PodClass) -> Iterable[Advice]:
    return Adviser(snapshot, scheduler, pods).advise()
