"""The filters, one node at a time, in the order of the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.terms import PodTerm, Spread
from tests.reference.cluster import Cluster, Pod
from tests.reference.devices import GPU, choose
from tests.reference.nodes import HARD_EFFECTS, Node, lets_in, untolerated

Place = tuple[str, str]  # a topology key and a node's value of it


@dataclass
class Look:
    """One more pod of a class, and the cluster as it is now."""

    cluster: Cluster
    what: PodClass

    @cached_property
    def held(self) -> list[tuple[Pod, Node]]:
        return self.cluster.held()

    @cached_property
    def on(self) -> dict[str, list[Pod]]:
        """The pods of each node."""
        found: dict[str, list[Pod]] = {name: [] for name in self.cluster.nodes}
        for pod, node in self.held:
            found[node.name].append(pod)
        return found

    @cached_property
    def users(self) -> dict[str, set[str]]:
        return self.cluster.users()

    @cached_property
    def blocked(self) -> str:
        return self.cluster.storage.blocked(self.what.claims, self.users)

    @cached_property
    def domains(self) -> list[Counter[str]]:
        """For each spread constraint the pods that count in each domain; domains without eligible nodes are not in."""
        return [self._counted(constraint) for constraint in self.what.spread]

    def _counted(self, constraint: Spread) -> Counter[str]:
        found: Counter[str] = Counter()
        eligible = [node for node in self.cluster.nodes.values() if self._eligible(constraint, node)]
        for node in eligible:
            found[node.labels[constraint.key]] += 0
            for pod in self.on[node.name]:
                own = pod.what.namespace == self.what.namespace
                if own and not pod.leaving and self.cluster.means(constraint.match, pod.what):
                    found[node.labels[constraint.key]] += 1
        return found

    def _eligible(self, constraint: Spread, node: Node) -> bool:
        keys = [c.key for c in self.what.spread if c.hard] if constraint.hard else [constraint.key]
        if any(key not in node.labels for key in keys):
            return False
        if constraint.honor_affinity and not lets_in(self.what, node):
            return False
        return not constraint.honor_taints or not untolerated(self.what, node, HARD_EFFECTS)

    @cached_property
    def company(self) -> set[Place]:
        """Domains of the keys of the required terms that hold a pod which matches all of these terms."""
        found: set[Place] = set()
        for pod, node in self.held:
            if all(self.cluster.means(term.match, pod.what) for term in self.what.affinity):
                found |= {place for term in self.what.affinity if (place := place_of(term, node))}
        return found

    @cached_property
    def first_of_its_kind(self) -> bool:
        """There is no such company anywhere, and the pod would be its own."""
        return not self.company and all(self.cluster.means(term.match, self.what) for term in self.what.affinity)

    @cached_property
    def shunned(self) -> set[Place]:
        """Domains with a pod that one of the pod's own required anti-affinity terms means."""
        found: set[Place] = set()
        for term in self.what.anti_affinity:
            for pod, node in self.held:
                if (place := place_of(term, node)) and self.cluster.means(term.match, pod.what):
                    found.add(place)
        return found

    @cached_property
    def shunning(self) -> set[Place]:
        """Domains with a pod that has a required anti-affinity term which means this pod."""
        found: set[Place] = set()
        for pod, node in self.held:
            for term in pod.what.anti_affinity:
                if (place := place_of(term, node)) and self.cluster.means(term.match, self.what):
                    found.add(place)
        return found

    @cached_property
    def pull(self) -> Counter[Place]:
        """What each domain's pods add to the company: the pod's own preferred terms, and theirs."""
        found: Counter[Place] = Counter()
        for pod, node in self.held:
            terms = [(w, term, pod.what) for w, term in self.what.preferred_pods]
            terms += [(w, term, self.what) for w, term in pod.what.preferred_pods]
            terms += [(1, term, self.what) for term in pod.what.affinity]
            for weight, term, meant in terms:
                if (place := place_of(term, node)) and self.cluster.means(term.match, meant):
                    found[place] += weight
        return found


def places_of(node: Node) -> list[Place]:
    return list(node.labels.items())


def place_of(term: PodTerm, node: Node) -> Place | None:
    return (term.key, node.labels[term.key]) if term.key in node.labels else None


# ---- the filters, each with its reason or nothing ----
def blocked(look: Look, node: Node) -> str:
    if look.what.profile not in look.cluster.profiles:
        return f"scheduling profile {look.what.profile} is not configured"
    return look.blocked


def ready(look: Look, node: Node) -> str:
    return "" if node.ready else "node(s) were not ready"


def selector(look: Look, node: Node) -> str:
    return "" if lets_in(look.what, node) else "node(s) didn't match Pod's node affinity/selector"


def taints(look: Look, node: Node) -> str:
    for key, value, effect in untolerated(look.what, node, HARD_EFFECTS):
        shown = f"{key}={value}" if value else key
        return f"node(s) had untolerated taint {{{shown}:{effect}}}"
    return ""


def volumes(look: Look, node: Node) -> str:
    return look.cluster.storage.reason(look.what.claims, node.name, look.users)


def ports(look: Look, node: Node) -> str:
    for protocol, address, port in look.what.ports:
        for pod in look.on[node.name]:
            for protocol2, address2, port2 in pod.what.ports:
                same = address == address2 or "0.0.0.0" in (address, address2)
                if same and (protocol, port) == (protocol2, port2):
                    return "node(s) didn't have free ports for the requested pod ports"
    return ""


def resources(look: Look, node: Node) -> str:
    for name, wanted in sorted(look.what.requests):
        used = sum(dict(pod.what.requests).get(name, 0) for pod in look.on[node.name])
        if node.amount(name) - used < wanted:
            return "Too many pods" if name == "pods" else f"Insufficient {name}"
    return ""


def gpus(look: Look, node: Node) -> str:
    what = look.what
    if not what.gpu_milli and not what.gpu_count:
        return ""
    if choose(look.cluster.left(node), what) is not None:
        return ""
    return f"Insufficient {GPU}-milli" if what.gpu_milli else f"Insufficient {GPU}"


def spread(look: Look, node: Node) -> str:
    hard = [(constraint, look.domains[i]) for i, constraint in enumerate(look.what.spread) if constraint.hard]
    if any(constraint.key not in node.labels for constraint, _ in hard):
        return "node(s) didn't match pod topology spread constraints (missing required label)"
    for constraint, domains in hard:
        least = min(domains.values(), default=0) if len(domains) >= constraint.min_domains else 0
        itself = 1 if look.cluster.means(constraint.match, look.what) else 0
        if domains[node.labels[constraint.key]] + itself - least > constraint.max_skew:
            return "node(s) didn't match pod topology spread constraints"
    return ""


def affinity(look: Look, node: Node) -> str:
    places = [place_of(term, node) for term in look.what.affinity]
    held = all(place is not None for place in places)
    if held and not look.first_of_its_kind:
        held = all(place in look.company for place in places)
    return "" if held else "node(s) didn't match pod affinity rules"


def anti_affinity(look: Look, node: Node) -> str:
    return "" if look.shunned.isdisjoint(places_of(node)) else "node(s) didn't match pod anti-affinity rules"


def symmetry(look: Look, node: Node) -> str:
    clear = look.shunning.isdisjoint(places_of(node))
    return "" if clear else "node(s) didn't satisfy existing pods anti-affinity rules"


FILTERS: tuple[Callable[[Look, Node], str], ...] = (
    blocked,
    ready,
    selector,
    taints,
    volumes,
    ports,
    resources,
    gpus,
    spread,
    affinity,
    anti_affinity,
    symmetry,
)


def reason(look: Look, node: Node) -> str:
    """The first reason why not; empty when the node takes the pod."""
    return next((why for one in FILTERS if (why := one(look, node))), "")
