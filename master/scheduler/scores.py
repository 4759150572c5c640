"""Scores, absolute: a placement changes only its own node's and its domains'. Higher is better; ties: the first name.

One canonical formula, on arrays and on numbers alike: exact integers in, one division for each part, the same order of
operations, so that a batch and a loop over nodes decide the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from shoal.master.scheduler import devices
from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.filters import Frame, scopes, spread_counts
from shoal.master.scheduler.profiles import Profile
from shoal.master.scheduler.snapshot import Floats, Ints, Snapshot

IMAGE_CAP = 10**9  # bytes per container
MISSING_KEY = 1024  # what a soft spread constraint counts for a node without its key
COMPANY_SCALE = 100.0

Number = TypeVar("Number", float, Floats)


def load_parts(profile: Profile, f: Number, g: Number) -> Iterator[tuple[str, float, Number]]:
    """(name, weight, value) of the parts that look at the shares of cpu and memory that stay free."""
    if profile.least:
        yield "least", profile.least, (f + g) / 2
    if profile.most:
        yield "most", profile.most, 1 - (f + g) / 2
    if profile.balanced:
        yield "balanced", profile.balanced, 1 - abs(f - g)


def image_bytes(snapshot: Snapshot, pods: PodClass) -> dict[str, int]:
    """Node -> bytes of the pod's images there, at most the cap; of the nodes that have one."""
    found: dict[str, int] = {}
    for image in pods.images:
        for node, size in snapshot.nodes.images.get(image, {}).items():
            found[node] = found.get(node, 0) + size
    cap = IMAGE_CAP * len(pods.images)
    return {node: min(size, cap) for node, size in found.items()}


def images_part(snapshot: Snapshot, pods: PodClass) -> Floats | None:
    found = image_bytes(snapshot, pods) if pods.images and snapshot.nodes.images else {}
    if not found:
        return None
    total = np.zeros(len(snapshot), dtype=np.int64)
    for node, size in found.items():
        if node in snapshot.row:
            total[snapshot.row[node]] = size
    result: Floats = total / float(IMAGE_CAP * len(pods.images))
    return result


def company_sum(snapshot: Snapshot, known: Frame) -> Ints | None:
    """int64[N]: the weights of all preferences between the class and the pods of each node's domains."""
    total: Ints | None = None
    row = snapshot.row
    for weight, term in known.pods.preferred_pods:
        everyone = snapshot.counts.count((term.match,), row).everyone
        rows = np.flatnonzero(everyone)
        total = _add(total, snapshot, term.key, rows, everyone[rows] * np.int64(weight))
    for one in known.state.against:
        if not one.anti and one.weight:
            rows, numbers = one.rows(row)
            total = _add(total, snapshot, one.term.key, rows, numbers * one.weight)
    return total


def _add(total: Ints | None, snapshot: Snapshot, key: str, rows: Ints, weights: Ints) -> Ints | None:
    if not rows.size:
        return total
    domains = snapshot.nodes.domains(key)
    summed = np.bincount(domains.slots[rows], weights=weights, minlength=domains.size + 1).astype(np.int64)
    summed[domains.size] = 0
    more: Ints = summed[domains.slots]
    return more if total is None else total + more


def soft_sum(snapshot: Snapshot, known: Frame) -> Ints | None:
    """int64[N]: the counts of the soft constraints' domains, and 1024 for each key that is missing."""
    total: Ints | None = None
    for scope in scopes(snapshot, known) if known.pods.spread else ():
        if not scope.rule.hard:
            counts = spread_counts(snapshot, scope)
            counts[-1] = MISSING_KEY
            more: Ints = counts[scope.domains.slots]
            total = more if total is None else total + more
    return total


@dataclass(slots=True)
class Raw:
    """What the parts after the load's are made of, before signs and scales; None where it is zero everywhere."""

    images: Floats | None = None
    siblings: Floats | None = None  # their number
    preference: Floats | None = None
    company: Ints | None = None
    spread: Ints | None = None
    devices: Floats | None = None
    taints: Ints | None = None

    def at(self, profile: Profile, row: int, total: float) -> float:
        """`total` with what `parts` adds to it on one node."""
        if self.images is not None:
            total += profile.images * self.images.item(row)
        if self.siblings is not None:
            total += profile.siblings * -self.siblings.item(row)
        if self.preference is not None:
            total += profile.preference * self.preference.item(row)
        if self.company is not None:
            total += profile.company * (self.company.item(row) / COMPANY_SCALE)
        if self.spread is not None:
            total += profile.spread * -self.spread.item(row)
        if self.devices is not None:
            total += profile.devices * self.devices.item(row)
        if self.taints is not None:
            total += profile.taints * -self.taints.item(row)
        return total

    def parts(self, profile: Profile) -> Iterator[tuple[str, float, Floats | Ints]]:
        """(name, weight, value), in the documented order."""
        if self.images is not None:
            yield "images", profile.images, self.images
        if self.siblings is not None:
            yield "siblings", profile.siblings, -self.siblings
        if self.preference is not None:
            yield "preference", profile.preference, self.preference
        if self.company is not None:
            yield "company", profile.company, self.company / COMPANY_SCALE
        if self.spread is not None:
            yield "spread", profile.spread, -self.spread
        if self.devices is not None:
            yield "devices", profile.devices, self.devices
        if self.taints is not None:
            yield "taints", profile.taints, -self.taints


def raw_parts(snapshot: Snapshot, known: Frame, profile: Profile) -> Raw:
    """Of every node; parts without weight are left out."""
    pods = known.pods
    return Raw(
        images_part(snapshot, pods) if profile.images else None,
        snapshot.owners.counts(pods.owner, snapshot.row) if profile.siblings and pods.owner else None,
        known.preference if profile.preference else None,
        company_sum(snapshot, known) if profile.company else None,
        soft_sum(snapshot, known) if profile.spread and pods.spread else None,
        devices.part(snapshot, known) if profile.devices and snapshot.gpu_left.size else None,
        known.soft if profile.taints else None,
    )


def shares(snapshot: Snapshot, known: Frame) -> Floats:
    """float64[2, N]: the shares of cpu and memory that stay free with one more pod of the class. In the snapshot's
    scratch: to be used at once."""
    free = snapshot.scratch[:2]
    np.subtract(snapshot.room, known.want, out=free)
    np.maximum(free, 0.0, out=free)
    np.divide(free, snapshot.size, out=free)
    return free


def combine(profile: Profile, f: Floats, g: Floats, raw: Raw, out: Floats | None = None) -> Floats:
    """The weighted sum; `f` is used up. Halves are exact, so that (f + g) / 2 times a weight is f + g times half of
    it."""
    total: Floats = np.add(f, g, out=out)
    if profile.most:
        spent = (1 - total / 2) * profile.most
    total *= profile.least / 2
    if profile.most:
        total += spent
    if profile.balanced:
        np.subtract(f, g, out=f)
        np.abs(f, out=f)
        np.subtract(1.0, f, out=f)
        f *= profile.balanced
        total += f
    for _, weight, other in raw.parts(profile):
        total += weight * other
    return total


def score(snapshot: Snapshot, known: Frame, profile: Profile) -> Floats:
    """Of every node for one more of the class, before it is there."""
    f, g = shares(snapshot, known)
    return combine(profile, f, g, raw_parts(snapshot, known, profile))


def score_at(snapshot: Snapshot, known: Frame, profile: Profile, raw: Raw, row: int) -> float:
    """`score` of one node, with what other nodes' pods say unchanged since `raw` was made."""
    free = [
        max(snapshot.room.item(resource, row) - wanted, 0.0) / snapshot.size.item(resource, row)
        for resource, wanted in enumerate(known.pods.load)
    ]
    total = 0.0
    for _, weight, part in load_parts(profile, free[0], free[1]):
        total += weight * part
    return raw.at(profile, row, total)


def score_parts(snapshot: Snapshot, known: Frame, profile: Profile) -> dict[str, Floats]:
    """Each part's value on every node, unweighted; those of the profile that are not zero everywhere."""
    f, g = shares(snapshot, known)
    found = {name: part for name, _, part in load_parts(profile, f, g)}
    raw = raw_parts(snapshot, known, profile)
    return found | {name: part.astype(np.float64) for name, _, part in raw.parts(profile)}
