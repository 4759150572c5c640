"""The parts of a score, one node at a time. Exact integers go in, one division at the end of each."""

from __future__ import annotations

from shoal.master.scheduler.profiles import PARTS
from tests.reference.devices import packing
from tests.reference.filters import Look, places_of
from tests.reference.nodes import Node, term_holds, untolerated

IMAGE_CAP = 10**9  # bytes, per container
NO_DOMAIN = 1024  # what a soft spread constraint counts where its key is missing


def score(look: Look, node: Node) -> float:
    profile = look.cluster.profile(look.what)
    total = 0.0
    for name in PARTS:
        weight = getattr(profile, name)
        if weight != 0:
            total += weight * part(look, node, name)
    return total


def part(look: Look, node: Node, name: str) -> float:
    return float(BY_NAME[name](look, node))


def _free(look: Look, node: Node, which: int) -> float:
    """The share of cpu or memory that stays free with the pod."""
    there = sum(pod.what.load[which] for pod in look.on[node.name])
    alloc = node.amount(("cpu", "memory")[which])
    return max(0, alloc - there - look.what.load[which]) / alloc if alloc > 0 else 0.0


def least(look: Look, node: Node) -> float:
    return (_free(look, node, 0) + _free(look, node, 1)) / 2


def most(look: Look, node: Node) -> float:
    return 1 - (_free(look, node, 0) + _free(look, node, 1)) / 2


def balanced(look: Look, node: Node) -> float:
    return 1 - abs(_free(look, node, 0) - _free(look, node, 1))


def images(look: Look, node: Node) -> float:
    cap = IMAGE_CAP * len(look.what.images)
    there = sum(node.images.get(name, 0) for name in look.what.images)
    return min(there, cap) / cap if cap else 0.0


def siblings(look: Look, node: Node) -> float:
    owner = look.what.owner
    return -sum(1 for pod in look.on[node.name] if owner and pod.what.owner == owner)


def preference(look: Look, node: Node) -> float:
    return sum(weight for weight, term in look.what.preferred_nodes if term_holds(term, node)) / 100


def company(look: Look, node: Node) -> float:
    return sum(look.pull[place] for place in places_of(node)) / 100


def spread(look: Look, node: Node) -> float:
    total = 0
    for constraint, domains in zip(look.what.spread, look.domains, strict=True):
        if not constraint.hard:
            total += domains[node.labels[constraint.key]] if constraint.key in node.labels else NO_DOMAIN
    return -total


def gpus(look: Look, node: Node) -> float:
    used = sum(dict(pod.what.requests).get("cpu", 0) for pod in look.on[node.name])
    return packing(look.cluster.typical, node, look.cluster.left(node), node.amount("cpu") - used, look.what)


def taints(look: Look, node: Node) -> float:
    return -len(untolerated(look.what, node, ("PreferNoSchedule",)))


BY_NAME = {
    "least": least,
    "most": most,
    "balanced": balanced,
    "images": images,
    "siblings": siblings,
    "preference": preference,
    "company": company,
    "spread": spread,
    "devices": gpus,
    "taints": taints,
}
