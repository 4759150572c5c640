"""Filters: which nodes can take a pod of a class, and for the others the first reason why not, in the documented order.

A `Frame` holds what does not change while the nodes' facts stay as they are; the rest is asked of the snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shoal.master.scheduler import gpus
from shoal.master.scheduler.affinity import ANY_ADDRESS
from shoal.master.scheduler.classes import PodClass, Tolerance
from shoal.master.scheduler.counts import ClassState
from shoal.master.scheduler.nodes import Domains, rows_of
from shoal.master.scheduler.profiles import Profile
from shoal.master.scheduler.snapshot import Bools, Floats, Ints, Snapshot, TaintKey
from shoal.master.scheduler.terms import NodeTerm, Spread
from shoal.master.scheduler.volumes import ELSEWHERE
from shoal.proto.rules.resources import GPU, GPU_MILLI

HARD_EFFECTS = frozenset({"NoSchedule", "NoExecute"})
NOT_READY = "node(s) were not ready"
NO_MATCH = "node(s) didn't match Pod's node affinity/selector"
NO_PORT = "node(s) didn't have free ports for the requested pod ports"
NO_SPREAD_KEY = "node(s) didn't match pod topology spread constraints (missing required label)"
NO_SPREAD = "node(s) didn't match pod topology spread constraints"
NO_COMPANY = "node(s) didn't match pod affinity rules"
SHUNNED = "node(s) didn't match pod anti-affinity rules"
SHUNNING = "node(s) didn't satisfy existing pods anti-affinity rules"
OUTSIDE = "node(s) were outside the pod group's domain"
USAGE_REASONS = frozenset(
    {NO_PORT, NO_SPREAD, NO_COMPANY, SHUNNED, SHUNNING, OUTSIDE}
)  # other pods' coming or going may help
PREFERENCE_SCALE = 100.0


def tolerates(tolerance: Tolerance, taint: TaintKey) -> bool:
    """Kubernetes' rule: an empty effect matches all, an empty key with Exists every taint."""
    if tolerance.effect and tolerance.effect != taint.effect:
        return False
    if tolerance.exists:
        return tolerance.key in ("", taint.key)
    return tolerance.key == taint.key and tolerance.value == taint.value


def untolerated(pods: PodClass, taints: list[TaintKey]) -> list[TaintKey]:
    return [taint for taint in taints if not any(tolerates(tolerance, taint) for tolerance in pods.tolerances)]


@dataclass(slots=True)
class Scope:
    """Of a spread constraint: its domains, the nodes whose pods count, and the domains that these are in."""

    rule: Spread
    domains: Domains
    eligible: Bools
    places: Bools  # bool[domains]
    itself: bool  # the pod is one of those that it counts


@dataclass(slots=True)
class Packed:
    """The part `devices` of a class's score, as of a version of the snapshot. `access`: where typical pods may go."""

    typical: gpus.Typical
    access: Bools
    version: int
    value: Floats


@dataclass(slots=True)
class Frame:
    """What placement needs to know of a class as long as no node's facts change. `mask`: the nodes that are ready,
    that the selectors let in and whose taints it tolerates. None stands for "all" or "nothing to add"."""

    pods: PodClass
    state: ClassState
    profile: Profile | None
    mask: Bools
    let_in: Bools | None
    soft: Ints | None  # PreferNoSchedule taints against it
    preference: Floats | None
    want: Floats  # float64[2, 1]: cpu and memory as the scores count them
    demand: tuple[tuple[int, int], ...] | None  # (resource row, amount); None: no node has one of the resources
    device: gpus.Want
    closed: Bools | None  # the nodes that are not in the mask; None when all are
    free: bool  # nothing but room and the nodes' own facts decides
    scopes: list[Scope] | None = None
    blocked: str = field(default="")
    packed: Packed | None = None


def frame(snapshot: Snapshot, pods: PodClass, profile: Profile | None, state: ClassState) -> Frame:
    inside = selected(snapshot, pods)
    mask = snapshot.ready if inside is None else snapshot.ready & inside
    hard, soft = taints_against(snapshot, pods)
    if hard is not None:
        mask = mask & ~hard
    return Frame(
        pods,
        state,
        profile,
        mask,
        inside,
        soft,
        _preference(snapshot, pods),
        np.array(pods.load, dtype=np.float64)[:, None],
        snapshot.known_demand(state),
        gpus.Want.of(pods.gpu_milli, pods.gpu_count),
        snapshot.unready if mask is snapshot.ready else ~mask,
        not (pods.affinity or pods.anti_affinity or pods.preferred_pods or pods.spread or pods.ports or pods.claims)
        and not (pods.gpu_milli or pods.gpu_count),
        None,
        "" if profile is not None else f"scheduling profile {pods.profile} is not configured",
    )


# ---- what nodes say ----
def selected(snapshot: Snapshot, pods: PodClass) -> Bools | None:
    """The nodes that node selector and required node affinity let in; None for all."""
    return let_in(snapshot, pods.selector, pods.node_terms)


def let_in(
    snapshot: Snapshot, selector: tuple[tuple[str, str], ...], terms: tuple[NodeTerm, ...] | None
) -> Bools | None:
    """The same, of a selector and an affinity."""
    result: Bools | None = None
    for key, value in selector:
        row = snapshot.label_row(key, value)
        result = row if result is None else result & row
    if terms is None:
        return result
    some = np.zeros(len(snapshot), dtype=np.bool_)
    for term in terms:
        some |= snapshot.nodes.term_mask(term)
    return some if result is None else result & some


def taints_against(snapshot: Snapshot, pods: PodClass) -> tuple[Bools | None, Ints | None]:
    """The nodes with a hard taint that the class does not tolerate, and how many soft ones each has."""
    hard: Bools | None = None
    soft: Ints | None = None
    rows = snapshot.taint_rows()
    for taint in untolerated(pods, list(rows)) if rows else ():
        row = rows[taint]
        if taint.effect in HARD_EFFECTS:
            hard = row if hard is None else hard | row
        else:
            soft = row.astype(np.int64) if soft is None else soft + row
    return hard, soft


def _preference(snapshot: Snapshot, pods: PodClass) -> Floats | None:
    if not pods.preferred_nodes:
        return None
    total = np.zeros(len(snapshot), dtype=np.int64)
    for weight, term in pods.preferred_nodes:
        total += weight * snapshot.nodes.term_mask(term)
    result: Floats = total / PREFERENCE_SCALE
    return result


# ---- volumes ----
@dataclass(frozen=True, slots=True)
class VolumeFilter:
    """What a class's claims leave of the nodes: why none at all, or masks with the reason for each."""

    blocked: str = ""
    masks: tuple[tuple[Bools, str], ...] = ()

    @staticmethod
    def of(snapshot: Snapshot, pods: PodClass) -> VolumeFilter:
        if not pods.claims:
            return VolumeFilter()
        volumes = snapshot.volumes
        rule = volumes.rule(pods.claims)
        if rule.blocked:
            return VolumeFilter(rule.blocked)
        places = snapshot.places()
        masks = [(_mask(volumes.reachable(pods.claims, place) for place in places), ELSEWHERE)]
        masks += [(_mask(place.name in allowed for place in places), reason) for allowed, reason in rule.limits]
        lacking = [volumes.missing(rule.unmade, place) for place in places] if rule.unmade else []
        masks += [(_mask(word != one for one in lacking), word) for word in sorted(set(lacking) - {""})]
        return VolumeFilter("", tuple(masks))

    def mask(self, everywhere: Bools) -> Bools:
        """The nodes that are left."""
        left = np.zeros_like(everywhere) if self.blocked else everywhere.copy()
        for allowed, _ in self.masks:
            left &= allowed
        return left


def _mask(values: Iterable[bool]) -> Bools:
    return np.fromiter(values, dtype=np.bool_)


# ---- what pods say: each yields masks of the nodes that it refuses, with the reason ----
def ports_taken(snapshot: Snapshot, pods: PodClass) -> Bools | None:
    """The nodes where a host port is taken; None for none."""
    names: list[str] = []
    for protocol, address, port in pods.ports:
        for other, on in snapshot.port_takers(protocol, port).items():
            if other == address or ANY_ADDRESS in (other, address):
                names += on
    rows = rows_of(snapshot.row, names)
    if not rows.size:
        return None
    result = np.zeros(len(snapshot), dtype=np.bool_)
    result[rows] = True
    return result


def scopes(snapshot: Snapshot, known: Frame) -> list[Scope]:
    """Of the class's spread constraints, in their order."""
    if known.scopes is None:
        state = known.state
        known.scopes = [
            _scope(snapshot, known, rule, snapshot.counts.means((rule.match,), state)) for rule in known.pods.spread
        ]
    return known.scopes


def _scope(snapshot: Snapshot, known: Frame, rule: Spread, itself: bool) -> Scope:
    domains = snapshot.nodes.domains(rule.key)
    eligible = domains.has.copy()
    if rule.hard:
        for other in known.pods.spread:
            if other.hard:
                eligible &= snapshot.nodes.domains(other.key).has
    if rule.honor_affinity and known.let_in is not None:
        eligible &= known.let_in
    if rule.honor_taints:
        hard, _ = taints_against(snapshot, known.pods)
        if hard is not None:
            eligible &= ~hard
    places = np.zeros(domains.size + 1, dtype=np.bool_)
    places[domains.slots[eligible]] = True
    return Scope(rule, domains, eligible, places[:-1], itself)


def spread_counts(snapshot: Snapshot, scope: Scope) -> Ints:
    """int64[domains + 1]: the pods that count in each domain; the last is 0."""
    staying = snapshot.counts.count((scope.rule.match,), snapshot.row).staying
    rows = np.flatnonzero(staying)
    rows = rows[scope.eligible[rows]]
    size = scope.domains.size + 1
    return np.bincount(scope.domains.slots[rows], weights=staying[rows], minlength=size).astype(np.int64)


def minimum(scope: Scope, counts: Ints) -> int:
    """Over the eligible domains; 0 when they are too few."""
    among = counts[:-1][scope.places]
    return int(among.min()) if among.size and among.size >= scope.rule.min_domains else 0


def too_many(scope: Scope, counts: Ints) -> Bools:
    """The nodes whose domain has too many pods for one more."""
    beyond = counts + int(scope.itself) - minimum(scope, counts) > scope.rule.max_skew
    result: Bools = beyond[scope.domains.slots]
    return result


def spread_refusals(snapshot: Snapshot, known: Frame, without: Spread | None) -> Iterator[tuple[Bools, str]]:
    if not known.pods.spread:
        return
    hard = [scope for scope in scopes(snapshot, known) if scope.rule.hard]
    for scope in hard:
        yield ~scope.domains.has, NO_SPREAD_KEY
    for scope in hard:
        if scope.rule != without:
            yield too_many(scope, spread_counts(snapshot, scope)), NO_SPREAD


def company_found(snapshot: Snapshot, known: Frame) -> tuple[Bools, bool]:
    """The nodes that satisfy required affinity, and whether that is because the pod would be the first of its kind."""
    terms = known.pods.affinity
    matches = tuple(term.match for term in terms)
    rows = np.flatnonzero(snapshot.counts.count(matches, snapshot.row).everyone)
    there = np.ones(len(snapshot), dtype=np.bool_)
    has_keys = np.ones(len(snapshot), dtype=np.bool_)
    some = False
    for term in terms:
        domains = snapshot.nodes.domains(term.key)
        hit = domains.hit(rows)
        some = some or bool(hit.any())
        there &= hit[domains.slots]
        has_keys &= domains.has
    if not some and snapshot.counts.means(matches, known.state):
        return has_keys, True
    return there, False


def shunned(snapshot: Snapshot, known: Frame) -> Bools | None:
    """The nodes in whose domain lies a pod that the class's anti-affinity means."""
    result: Bools | None = None
    for term in known.pods.anti_affinity:
        rows = np.flatnonzero(snapshot.counts.count((term.match,), snapshot.row).everyone)
        result = _also(result, snapshot, term.key, rows)
    return result


def shunning(snapshot: Snapshot, known: Frame) -> Bools | None:
    """The nodes in whose domain lies a pod whose anti-affinity means the class."""
    result: Bools | None = None
    for one in known.state.against:
        if one.anti:
            rows, _ = one.rows(snapshot.row)
            result = _also(result, snapshot, one.term.key, rows)
    return result


def _also(result: Bools | None, snapshot: Snapshot, key: str, rows: Ints) -> Bools | None:
    if not rows.size:
        return result
    domains = snapshot.nodes.domains(key)
    more: Bools = domains.hit(rows)[domains.slots]
    return more if result is None else result | more


def term_refusals(snapshot: Snapshot, known: Frame, without: Spread | None = None) -> Iterator[tuple[Bools, str]]:
    """Spread, affinity, anti-affinity, symmetry; the counts of one constraint can be left out."""
    yield from spread_refusals(snapshot, known, without)
    if known.pods.affinity:
        yield ~company_found(snapshot, known)[0], NO_COMPANY
    if known.pods.anti_affinity and (away := shunned(snapshot, known)) is not None:
        yield away, SHUNNED
    if known.state.against and (away := shunning(snapshot, known)) is not None:
        yield away, SHUNNING


# ---- all together ----
def feasible(
    snapshot: Snapshot, known: Frame, volumes: VolumeFilter | None = None, without: Spread | None = None
) -> Bools:
    """The nodes that can take one more pod of the class now, whatever the counts of the constraint `without` say. The
    result is the caller's own."""
    if known.blocked or known.demand is None:
        return np.zeros(len(snapshot), dtype=np.bool_)
    ok = known.mask.copy() if volumes is None else volumes.mask(known.mask)
    left = snapshot.left
    for row, amount in known.demand:
        ok &= left[row] >= amount
    if known.device.number:
        ok &= gpus.fits(snapshot.gpu_left, known.device)
    if known.pods.ports and (taken := ports_taken(snapshot, known.pods)) is not None:
        ok &= ~taken
    for refused, _ in term_refusals(snapshot, known, without):
        ok &= ~refused
    return ok


def blocked_by(snapshot: Snapshot, known: Frame) -> str:
    """Why no node at all can take the class, whatever it is like; mostly empty."""
    return known.blocked or (snapshot.volumes.rule(known.pods.claims).blocked if known.pods.claims else "")


def filter_reasons(snapshot: Snapshot, known: Frame) -> tuple[npt.NDArray[np.int32], list[str]]:
    """For each node the index of its first reason, -1 for none; and the reasons in words, in the order of the filters.
    What blocks the class everywhere is the only one."""
    total = len(snapshot)
    if blocked := blocked_by(snapshot, known):
        return np.zeros(total, dtype=np.int32), [blocked]
    volumes = VolumeFilter.of(snapshot, known.pods)
    first = np.full(total, -1, dtype=np.int32)
    words: list[str] = []
    for refused, reason in _refusals(snapshot, known, volumes):
        hit = refused & (first < 0)
        if hit.any():
            if reason not in words:
                words.append(reason)
            first[hit] = words.index(reason)
    return first, words


def _refusals(snapshot: Snapshot, known: Frame, volumes: VolumeFilter) -> Iterator[tuple[Bools, str]]:
    pods = known.pods
    yield ~snapshot.ready, NOT_READY
    if known.let_in is not None:
        yield ~known.let_in, NO_MATCH
    rows = snapshot.taint_rows()
    for taint in sorted(untolerated(pods, list(rows))):
        if taint.effect in HARD_EFFECTS:
            yield rows[taint], f"node(s) had untolerated taint {{{taint}}}"
    for allowed, reason in volumes.masks:
        yield ~allowed, reason
    if pods.ports and (taken := ports_taken(snapshot, pods)) is not None:
        yield taken, NO_PORT
    for name, wanted in pods.requests:
        yield snapshot.free(name) < wanted, lacking(name)
    if known.device.number:
        yield ~gpus.fits(snapshot.gpu_left, known.device), lacking(GPU if pods.gpu_count else GPU_MILLI)
    yield from term_refusals(snapshot, known)


def lacking(resource: str) -> str:
    return "Too many pods" if resource == "pods" else f"Insufficient {resource}"
