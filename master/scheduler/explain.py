"""Why a pod waits, in words and counts."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from shoal.master.scheduler.classes import CPU, MEMORY, STORAGE, PodClass
from shoal.master.scheduler.filters import VolumeFilter, lacking, reasons
from shoal.master.scheduler.snapshot import Snapshot

NO_NODES = "no nodes are registered"
UNITS = (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))
_SHORT = re.compile(r" \(short of .*?\)")
_COUNT = re.compile(r"^\d+ ")


@dataclass(frozen=True, slots=True)
class Explanation:
    """`message` is for people; `reasons` (without counts) says when the story has changed; `by_usage` whether room
    that becomes free could help."""

    message: str
    reasons: frozenset[str]
    counts: tuple[tuple[str, int], ...]
    by_usage: bool


def explain(snapshot: Snapshot, pods: PodClass) -> Explanation:
    """Counts the first failing reason of every node, most frequent first, with the smallest shortage there is."""
    if not len(snapshot):
        return Explanation(f"0/0 nodes are available: {NO_NODES}.", frozenset({NO_NODES}), (), False)
    if blocked := VolumeFilter.of(snapshot, pods).blocked:
        total = len(snapshot)
        return Explanation(
            f"0/{total} nodes are available: {blocked}.", frozenset({blocked}), ((blocked, total),), False
        )
    first, words = reasons(snapshot, pods)
    tally = np.bincount(first[first >= 0], minlength=len(words))
    counted = Counter({word: int(tally[index]) for index, word in enumerate(words)})
    short = {lacking(name): (name, value) for name, value in pods.requests}
    parts = []
    for word, number in sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])):
        text = f"{number} {word}"
        if word in short and word != "Too many pods":
            name, value = short[word]
            missing = value - int(snapshot.free(name)[first == words.index(word)].max())
            text += f" (short of {spell(name, missing)} at best)"
        parts.append(text)
    message = f"0/{len(snapshot)} nodes are available: {', '.join(parts)}."
    by_usage = any(word in short for word in words)
    return Explanation(message, frozenset(words), tuple(sorted(counted.items())), by_usage)


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
