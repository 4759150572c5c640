"""Small clusters by hand, and both schedulers behind one face: what the rules' tests are written with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace

import pytest

from shoal.master.scheduler.classes import PodClass, Tolerance
from shoal.master.scheduler.terms import NodeTerm, PodMatch, PodTerm, Rule, Selector, Spread
from tests.reference import bridge
from tests.reference.cluster import Cluster, Pod
from tests.reference.nodes import Node
from tests.reference.scheduler import Outcome, schedule

HOST, ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"
GIB = 1 << 30
IMAGE = "docker.io/library/a:1"
Decide = Callable[[Cluster, Sequence[Pod]], list[Outcome]]


def node(
    name: str,
    zone: str = "",
    *,
    cpu: int = 4000,
    memory: int = 8 * GIB,
    pods: int = 110,
    labels: dict[str, str] | None = None,
    taints: Iterable[tuple[str, str, str]] = (),
    ready: bool = True,
    images: dict[str, int] | None = None,
    **others: int,
) -> Node:
    """A node with its name as host label; `others` are amounts of extended resources, by their short names."""
    found = {HOST: name} | ({ZONE: zone} if zone else {}) | (labels or {})
    alloc = {"cpu": cpu, "memory": memory, "pods": pods} | {f"example.com/{name}": n for name, n in others.items()}
    return Node(name, alloc, found, frozenset(taints), ready, images or {})


def what(app: str = "", *, cpu: int = 0, memory: int = 0, space: str = "default", **fields: object) -> PodClass:
    """A class of pods with the label app; `fields` are PodClass's own."""
    requests = {"pods": 1, "cpu": cpu, "memory": memory}
    made = PodClass(
        tuple(sorted((name, amount) for name, amount in requests.items() if amount)),
        (),
        (),
        (cpu or 100, memory or 200 << 20),
        "",
        namespace=space,
        labels=(("app", app),) if app else (),
        images=(IMAGE,),
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def cluster(nodes: Iterable[Node], held: Iterable[Pod] = ()) -> Cluster:
    return Cluster({one.name: one for one in nodes}, {pod.uid: pod for pod in held})


def rule(key: str, operator: str, *values: str) -> Rule:
    return Rule(key, operator, values)


def term(*rules: Rule) -> NodeTerm:
    return NodeTerm(rules)


def app_is(*names: str) -> Selector:
    return Selector((Rule("app", "In", names),))


def near(app: str, key: str = HOST, *spaces: str) -> PodTerm:
    """Pods with this label in the same domain."""
    return PodTerm(key, PodMatch(spaces or ("default",), None, app_is(app)))


def even(key: str, app: str, skew: int = 1, hard: bool = True, **fields: object) -> Spread:
    made = Spread(key, skew, hard, PodMatch(("default",), None, app_is(app)))
    return replace(made, **fields)  # type: ignore[arg-type]


def tolerance(key: str, value: str = "", effect: str = "", *, exists: bool = False) -> Tolerance:
    return Tolerance(key, exists, value, effect)


def pods(one: PodClass, number: int = 1, name: str = "p") -> list[Pod]:
    return [Pod(f"{name}{index}", one, index) for index in range(number)]


def on(where: str, one: PodClass, name: str, **fields: object) -> Pod:
    return replace(Pod(name, one, node=where), **fields)  # type: ignore[arg-type]


def plainly(where: Cluster, queue: Sequence[Pod]) -> list[Outcome]:
    """What the plain scheduler decides; leaves the cluster as it is."""
    return schedule(deepcopy(where), queue)


both = pytest.mark.parametrize("decide", [plainly, bridge.decide], ids=["plain", "fast"])


def place(decide: Decide, where: Cluster, *queue: Pod) -> list[str]:
    """The nodes, in the order of the queue; "" for a pod that waits."""
    return [outcome.node for outcome in decide(where, queue)]


def takers(decide: Decide, where: Cluster, one: PodClass) -> list[str]:
    """The nodes that would take such a pod, asked one by one with the others not ready."""
    found = []
    for name in sorted(where.nodes):
        alone = {n: replace(node, ready=n == name) for n, node in where.nodes.items()}
        found += [n for n in place(decide, replace(where, nodes=alone), Pod("asked", one)) if n]
    return found


def reasons(decide: Decide, where: Cluster, one: PodClass) -> dict[str, int]:
    """Why no node takes such a pod, with counts."""
    outcome = decide(where, [Pod("asked", one)])[0]
    assert not outcome.node and outcome.reasons is not None, f"placed on {outcome.node}"
    return dict(outcome.reasons)
