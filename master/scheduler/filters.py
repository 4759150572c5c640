"""Filters: which nodes can take a class, and for the others the first reason why not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.master.scheduler.classes import PodClass, Tolerance
from shoal.master.scheduler.snapshot import Bools, Ints, Snapshot, TaintKey
from shoal.master.scheduler.volumes import ELSEWHERE

HARD_EFFECTS = frozenset({"NoSchedule", "NoExecute"})
NOT_READY = "node(s) were not ready"
NO_MATCH = "node(s) didn't match Pod's node selector"


def tolerates(tolerance: Tolerance, taint: TaintKey) -> bool:
    """Kubernetes' rule: an empty effect matches all, an empty key with Exists every taint."""
    if tolerance.effect and tolerance.effect != taint.effect:
        return False
    if tolerance.exists:
        return tolerance.key in ("", taint.key)
    return tolerance.key == taint.key and tolerance.value == taint.value


def untolerated(pods: PodClass, taints: list[TaintKey]) -> list[TaintKey]:
    return [taint for taint in taints if not any(tolerates(tolerance, taint) for tolerance in pods.tolerances)]


@dataclass(frozen=True, slots=True)
class Static:
    """What does not depend on usage: where the class may go, and how many soft taints each node has against it."""

    mask: Bools
    soft: Ints


def static(snapshot: Snapshot, pods: PodClass) -> Static:
    mask = snapshot.ready.copy()
    for key, value in pods.selector:
        mask &= snapshot.label_row(key, value)
    soft = np.zeros(len(snapshot), dtype=np.int64)
    rows = snapshot.taint_rows()
    for taint in untolerated(pods, list(rows)):
        if taint.effect in HARD_EFFECTS:
            mask &= ~rows[taint]
        else:
            soft += rows[taint]
    return Static(mask, soft)


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


def fits(snapshot: Snapshot, pods: PodClass) -> Bools:
    """The nodes with room for one more of the class; a request of a resource that a node has not does not fit."""
    room = np.ones(len(snapshot), dtype=np.bool_)
    for name, value in pods.requests:
        room &= snapshot.free(name) >= value
    return room


def reasons(snapshot: Snapshot, pods: PodClass) -> tuple[npt.NDArray[np.int32], list[str]]:
    """For each node the index of its first reason, -1 for none; and the reasons in words, in the order of the filters:
    readiness, node selector, taints (by name), volumes, resources (by name). What blocks it everywhere is the only
    one."""
    first = np.full(len(snapshot), -1, dtype=np.int32)
    words: list[str] = []
    volumes = VolumeFilter.of(snapshot, pods)
    if volumes.blocked:
        return np.zeros(len(snapshot), dtype=np.int32), [volumes.blocked]

    def rule(refused: Bools, reason: str) -> None:
        hit = refused & (first < 0)
        if hit.any():
            first[hit] = len(words)
            words.append(reason)

    rule(~snapshot.ready, NOT_READY)
    if pods.selector:
        match = np.ones(len(snapshot), dtype=np.bool_)
        for key, value in pods.selector:
            match &= snapshot.label_row(key, value)
        rule(~match, NO_MATCH)
    rows = snapshot.taint_rows()
    for taint in sorted(untolerated(pods, list(rows))):
        if taint.effect in HARD_EFFECTS:
            rule(rows[taint], f"node(s) had untolerated taint {{{taint}}}")
    for allowed, reason in volumes.masks:
        rule(~allowed, reason)
    for name, wanted in pods.requests:
        rule(snapshot.free(name) < wanted, lacking(name))
    return first, words


def lacking(resource: str) -> str:
    return "Too many pods" if resource == "pods" else f"Insufficient {resource}"
