"""A cluster's random life: the plain cluster changes and tells, in events, what the real snapshot is to hear."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from shoal.master.model import Event
from shoal.proto.v1 import objects_pb2 as o
from tests.reference.cluster import Cluster, Group, Pod
from tests.reference.generate import Case, Maker, joined
from tests.reference.objects import (
    added,
    budget_object,
    changed,
    gone,
    group_object,
    node_object,
    pod_object,
    space_object,
)
from tests.reference.scheduler import order


@dataclass
class History:
    rng: random.Random
    maker: Maker
    cluster: Cluster
    known: dict[str, o.Pod] = field(default_factory=dict)  # pods as the snapshot has been told of them
    waiting: dict[str, Pod] = field(default_factory=dict)  # without a node, as far as the store knows
    undone: list[str] = field(default_factory=list)  # uids whose assumed place the store has refused
    names: list[tuple[str, str]] = field(default_factory=list)  # of groups
    number: int = 0

    @staticmethod
    def of(made: Case) -> History:
        """Begins with what is in the case; nominated pods wait."""
        rng = random.Random(made.seed + 1)
        found = History(rng, Maker(rng, made.on), made.cluster, names=list(made.cluster.groups))
        for pod in made.cluster.pods.values():
            found.known[pod.uid] = pod_object(pod)
            if pod.nominated:
                found.waiting[pod.uid] = replace(pod, node="", nominated=False, devices=())
        return found

    # ---- pods ----
    def new_pods(self) -> list[Event]:
        """Created, not yet placed."""
        what = self.maker.what()
        if self.maker.chance("gangs", 0.3):
            what = joined(what, *self.rng.choice(self.names))
        events = []
        for _ in range(self.rng.choice([1, 1, 2, 4, 8])):
            pod = Pod(f"q{self.number:03}", what, self.number)
            self.number += 1
            self.waiting[pod.uid] = pod
            events.append(self._tell(pod))
        return events

    def _tell(self, pod: Pod) -> Event:
        new, old = pod_object(pod), self.known.get(pod.uid)
        self.known[pod.uid] = new
        return changed(old, new, pod.arrival + 1) if old is not None else added(new, pod.arrival + 1)

    def settle(self) -> list[Event]:
        """The store's word on what was assumed: most is committed, some refused."""
        events = [self._tell(pod) for pod in self.waiting.values() if self._overtaken(pod)]
        for pod in list(self.cluster.pods.values()):
            if pod.uid not in self.waiting:
                if pod.leaving and not self.known[pod.uid].metadata.HasField("deletionTimestamp"):
                    events.append(self._tell(pod))
                continue
            if self.rng.random() < 0.15:
                del self.cluster.pods[pod.uid]
                self.undone.append(pod.uid)
            elif self.rng.random() < 0.9:
                events.append(self._tell(pod))
                if not pod.nominated:
                    del self.waiting[pod.uid]
        return events

    def _overtaken(self, pod: Pod) -> bool:
        return pod.uid not in self.cluster.pods and bool(self.known[pod.uid].status.nominatedNodeName)

    def end(self) -> list[Event]:
        """A pod ends, or is gone, or its deletion begins, or its labels change."""
        settled = [pod for pod in self.cluster.pods.values() if pod.uid not in self.waiting and pod.uid in self.known]
        if not settled:
            return []
        pod = self.rng.choice(settled)
        kind = self.rng.choice(["gone", "ended", "leaving", "labels"])
        if kind == "leaving":
            self.cluster.pods[pod.uid] = pod = replace(pod, leaving=True)
            return [self._tell(pod)]
        if kind == "labels":
            what = replace(
                pod.what, labels=tuple(sorted({**pod.labels, "app": self.rng.choice(["web", "db"])}.items()))
            )
            self.cluster.pods[pod.uid] = pod = replace(pod, what=what)
            return [self._tell(pod)]
        old = self.known.pop(pod.uid)
        del self.cluster.pods[pod.uid]
        if kind == "gone":
            return [gone(old, pod.arrival + 1)]
        new = o.Pod.FromString(old.SerializeToString())
        new.status.phase = self.rng.choice(["Succeeded", "Failed"])
        return [changed(old, new, pod.arrival + 1)]

    # ---- nodes and the rest ----
    def node(self) -> list[Event]:
        """One comes, goes or changes."""
        name = f"n{self.rng.randrange(8)}"
        old = self.cluster.nodes.get(name)
        if old is not None and self.rng.random() < 0.25 and len(self.cluster.nodes) > 1:
            del self.cluster.nodes[name]
            return [gone(node_object(old))]
        new = self.maker.node(name)
        if old is not None and self.rng.random() < 0.7:
            what = self.rng.choice(["ready", "labels", "taints", "alloc", "images"])
            new = replace(old, **{what: getattr(new, what)})
        self.cluster.nodes[name] = new
        return [changed(node_object(old), node_object(new)) if old else added(node_object(new))]

    def space(self) -> list[Event]:
        name = self.rng.choice(["default", "other", "third", "unlabelled"])
        old = self.cluster.spaces.get(name)
        if old is not None and self.rng.random() < 0.2:
            del self.cluster.spaces[name]
            return [gone(space_object(name, dict(old)))]
        labels = self.rng.choice([{}, {"team": "red"}, {"team": "blue"}])
        self.cluster.spaces[name] = labels
        new = space_object(name, labels)
        return [changed(space_object(name, dict(old)), new) if old is not None else added(new)]

    def budget(self) -> list[Event]:
        if not self.cluster.budgets:
            return []
        index = self.rng.randrange(len(self.cluster.budgets))
        old = self.cluster.budgets[index]
        if self.rng.random() < 0.2:
            last = self.cluster.budgets.pop()
            return [gone(budget_object(f"b{len(self.cluster.budgets)}", last))]
        new = replace(old, allowed=self.rng.choice([0, 1, 2]))
        self.cluster.budgets[index] = new
        return [changed(budget_object(f"b{index}", old), budget_object(f"b{index}", new))]

    def group(self) -> list[Event]:
        """One comes, goes or changes; pods that name it may be there before and after."""
        if not self.names:
            return []
        key = self.rng.choice(self.names)
        old = self.cluster.groups.get(key)
        if old is None:
            self.cluster.groups[key] = new = Group(self.rng.choice([1, 2, 3]))
            return [added(group_object(*key, new))]
        if self.rng.random() < 0.3:
            del self.cluster.groups[key]
            return [gone(group_object(*key, old))]
        new = replace(old, minimum=self.rng.choice([1, 2, 3, 5]))
        self.cluster.groups[key] = new
        return [changed(group_object(*key, old), group_object(*key, new))]

    def step(self) -> list[Event]:
        """Something happens."""
        often = [self.new_pods, self.new_pods, self.end, self.end, self.end, self.node]
        return self.rng.choice([*often, self.space, self.budget, self.group])()

    def queue(self) -> list[Pod]:
        """Who waits now, nominated ones too, save some that are in their backoff."""
        return order(pod for pod in self.waiting.values() if self._tries(pod))

    def _tries(self, pod: Pod) -> bool:
        held = self.cluster.pods.get(pod.uid)
        return (held is None or held.nominated) and self.rng.random() < 0.9
