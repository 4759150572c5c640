"""Why a pod waits, in words and counts."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.master.scheduler.classes import CPU, MEMORY, STORAGE
from shoal.master.scheduler.filters import OUTSIDE, USAGE_REASONS, Frame, blocked_by, filter_reasons, lacking
from shoal.master.scheduler.snapshot import Bools, Snapshot

NO_NODES = "no nodes are registered"
FULL = "Too many pods"
UNITS = (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))
_SHORT = re.compile(r" \(short of .*?\)")
_COUNT = re.compile(r"^\d+ ")


@dataclass(frozen=True, slots=True)
class Explanation:
    """`message` is for people; `reasons` (without counts) says when the story has changed; `by_usage` whether other
    pods' coming or going could help; `margins` is (resource, the smallest amount that a node lacks of it)."""

    message: str
    reasons: frozenset[str]
    counts: tuple[tuple[str, int], ...]
    by_usage: bool
    margins: tuple[tuple[str, int], ...] = ()


def nowhere(snapshot: Snapshot, why: str) -> Explanation:
    """The same reason on every node."""
    if not len(snapshot):
        return Explanation(f"0/0 nodes are available: {NO_NODES}.", frozenset({NO_NODES}), (), False)
    message = f"0/{len(snapshot)} nodes are available: {why}."
    return Explanation(message, frozenset({why}), ((why, len(snapshot)),), False)


def explain(snapshot: Snapshot, known: Frame, inside: Bools | None = None) -> Explanation:
    """Counts the first failing reason of every node, most frequent first, with the smallest shortage there is; `inside`
    are the nodes of a gang's domain."""
    if not len(snapshot):
        return nowhere(snapshot, NO_NODES)
    if blocked := blocked_by(snapshot, known):
        return nowhere(snapshot, blocked)
    first, words = filter_reasons(snapshot, known)
    if inside is not None and (beyond := (first < 0) & ~inside).any():
        first[beyond] = len(words)
        words.append(OUTSIDE)
    tally = np.bincount(first[first >= 0], minlength=len(words)).tolist()
    counted = dict(zip(words, tally, strict=True))
    margins = _margins(snapshot, known, first, words)
    parts = []
    for word, number in sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])):
        text = f"{number} {word}"
        if word in margins:
            name, lack = margins[word]
            text += f" (short of {spell(name, lack)} at best)"
        parts.append(text)
    message = f"0/{len(snapshot)} nodes are available: {', '.join(parts)}."
    by_usage = any(word in USAGE_REASONS or word.startswith("Insufficient ") or word == FULL for word in words)
    short = tuple(sorted(margins.values()))
    return Explanation(message, frozenset(words), tuple(sorted(counted.items())), by_usage, short)


def _margins(
    snapshot: Snapshot, known: Frame, first: npt.NDArray[np.int32], words: list[str]
) -> dict[str, tuple[str, int]]:
    """Reason -> (resource, the smallest amount that a node lacks of it)."""
    found = {}
    for name, wanted in known.pods.requests:
        word = lacking(name)
        if word in words and word != FULL:
            found[word] = (name, wanted - int(snapshot.free(name)[first == words.index(word)].max()))
    return found


def spell(resource: str, amount: int) -> str:
    """An amount as a manifest would write it, rounded up."""
    if resource == CPU:
        return f"{amount}m"
    if resource in (MEMORY, STORAGE):
        for suffix, size in UNITS:
            if amount >= size:
                return f"{-(-amount // size)}{suffix}"
    return str(amount)


def same_story(old: str, new: str) -> bool:
    """True when two messages differ in counts and shortages only: not worth a write."""
    return _story(old) == _story(new)


def _story(message: str) -> frozenset[str]:
    _, _, tail = message.rstrip(".").partition(": ")
    return frozenset(_COUNT.sub("", part) for part in _SHORT.sub("", tail).split(", "))
