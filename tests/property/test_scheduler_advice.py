"""Whatever is advised for a pod that waits, in random clusters: who does it, and nothing else, sees the pod placed."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

from shoal.master.scheduler.advice import Advice, advise
from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.core import Scheduler, Waiting
from shoal.master.scheduler.snapshot import Snapshot
from tests.reference import bridge
from tests.reference.generate import FEATURES, case

SEEDS = int(os.environ.get("SHOAL_PROPERTY_SEEDS", "2000")) // 4
KINDS = {
    "request",
    "selector",
    "affinity",
    "toleration",
    "spread",
    "anti-affinity",
    "port",
    "label",
    "move",
    "priority",
}


def obeyed(snapshot: Snapshot, scheduler: Scheduler, waiting: Waiting, advice: Advice) -> str:
    """The node that the pod gets once the advice is followed; empty when it still waits."""
    pods = advice.pods or waiting.pods
    if advice.kind == "label":
        facts = snapshot.nodes.facts[advice.change["node"]]
        snapshot.take_nodes({facts.name: replace(facts, labels={**facts.labels, **advice.change["label"]})})
    elif advice.kind == "uncordon":
        facts = snapshot.nodes.facts[advice.change["node"]]
        taints = frozenset(taint for taint in facts.taints if taint.key != "node.kubernetes.io/unschedulable")
        snapshot.take_nodes({facts.name: replace(facts, taints=taints)})
    elif advice.kind == "move":
        move(snapshot, scheduler, waiting, advice)
    if snapshot.held(waiting.uid) is not None:
        return str(snapshot.held(waiting.uid).node)  # type: ignore[union-attr]
    plan = scheduler.schedule(snapshot, [waiting._replace(pods=pods)])
    if advice.kind == "priority":
        assert [f"{one.key.namespace}/{one.key.name}" for one in plan.preemptions[0].victims] == advice.change[
            "victims"
        ]
        return plan.preemptions[0].node
    return plan.bindings[0].node if plan.bindings else ""


def move(snapshot: Snapshot, scheduler: Scheduler, waiting: Waiting, advice: Advice) -> None:
    """Its replacement comes after the pod that waits, which was there before."""
    name = advice.change["pod"]
    named = {f"{h.key.namespace}/{h.key.name}": (u, h) for u, h in snapshot.all_holds().items() if h.key is not None}
    uid, hold = named[name]
    snapshot.undo(uid)
    both = [waiting, Waiting("anew", waiting.key, hold.pods, (2**40, "anew"))]
    plan = scheduler.schedule(snapshot, both)
    assert [one.node for one in plan.bindings] == [advice.change["from"], advice.change["to"]]


def test_advice_that_is_followed_helps() -> None:
    seen: Counter[str] = Counter()
    pending = 0
    for seed in range(SEEDS):
        made = case(seed, FEATURES)
        snapshot, scheduler = bridge.snapshot_of(made.cluster), Scheduler()
        plan = scheduler.schedule(snapshot, [bridge.waiting(pod) for pod in made.queue])
        done: set[PodClass] = set()
        for refusal in plan.refusals[:6]:
            waiting = refusal.waiting
            if waiting.pods in done or snapshot.held(waiting.uid) is not None:
                continue
            done.add(waiting.pods)
            pending += 1
            before = snapshot.all_holds()
            found = list(advise(snapshot, scheduler, waiting.pods))
            assert snapshot.all_holds() == before, "nothing has moved"
            for one in found:
                seen[one.kind] += 1
                assert obeyed(snapshot.clone(), Scheduler(), waiting, one) == one.node, f"seed {seed}: {one.text}"
    assert pending > SEEDS // 4
    assert seen.keys() >= KINDS, seen
