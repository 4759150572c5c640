"""Where a pod was put and why, or why it waits and what would change that, in plain words. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from shoal.deploy.cli.printers.stories import wrapped
from shoal.deploy.cli.printers.text import age, clean
from shoal.proto.v1 import cluster_pb2 as c

SMALL = 5e-4  # differences between scores that are not worth a word
REASONS_SHOWN = 8
LEAST_WAIT_S = 0.001  # that is worth a number


def lines(found: c.WhyResponse, now: float, *, gated: bool = False) -> Iterator[str]:
    """What `why` adds to the story of a pod; `gated` while its scheduling gates are closed."""
    if found.node and not found.nominated:
        yield from _placed(found, now)
    elif gated:
        yield f"Without its gates, as the cluster is now: {_could(found)}"
        yield from _rejected(found)
    else:
        yield from _pending(found)


def _placed(found: c.WhyResponse, now: float) -> Iterator[str]:
    if found.kept:
        tried = "" if found.attempts < 2 else f", attempt {found.attempts}"
        when = f"{age(now - found.at)} ago, {_seconds(found.waited_seconds)}{tried}, at revision {found.revision}"
        yield f"Placed on node {found.node} {when}"
        if found.victims:
            yield from wrapped(f"evicted to make room for it: {_victims(found)}", "  ")
    else:
        yield f"On node {found.node}; how that was decided is not kept: this is how it would be decided now"
    together = f"; {found.alike} pods alike were placed in one go" if found.alike > 1 else ""
    yield f"  {_could(found)}{together}"
    yield from _rejected(found)
    if found.best:
        yield f"  best by profile {found.profile or 'default-scheduler'}, its score and weight x value of each part:"
        width = max(len(one.node) for one in found.best)
        yield from (f"    {one.node:<{width}}  {one.score:10.4f}  {_parts(one)}".rstrip() for one in found.best)
    yield from _ahead(found)


def _could(found: c.WhyResponse) -> str:
    return (
        f"{found.open} of {found.nodes} nodes could take it"
        if found.open != 1
        else (f"1 of {found.nodes} node{'' if found.nodes == 1 else 's'} could take it")
    )


def _parts(one: c.Candidate) -> str:
    return ", ".join(f"{part.name} {part.weight * part.value:+.4f}" for part in one.parts if part.value)


def _ahead(found: c.WhyResponse) -> Iterator[str]:
    """What made the difference between the first two."""
    if len(found.best) < 2:
        return
    first, second = found.best[0], found.best[1]
    if first.score == second.score:
        yield f"  {first.node} and {second.node} are equally good: the first name wins"
        return
    there = {part.name: part.weight * part.value for part in second.parts}
    gains = [(part.weight * part.value - there.get(part.name, 0.0), part.name) for part in first.parts]
    told = [
        f"{name} ({gain:+.4f})" for gain, name in sorted(gains, key=lambda pair: -abs(pair[0])) if abs(gain) > SMALL
    ]
    if told:
        yield f"  {first.node} is ahead of {second.node} by {', '.join(told)}"
    if found.alike == 1 and found.node != first.node and found.kept:
        yield f"  it went to {found.node} all the same: things had changed by its turn"


def _rejected(found: c.WhyResponse) -> Iterator[str]:
    for one in found.rejected[:REASONS_SHOWN]:
        yield clean(f"  {one.nodes} of {found.nodes}: {one.reason}")
    if len(found.rejected) > REASONS_SHOWN:
        yield f"  and {len(found.rejected) - REASONS_SHOWN} reasons more: see them with -o yaml"


def _pending(found: c.WhyResponse) -> Iterator[str]:
    if found.nominated:
        going = f" when these have gone: {_victims(found)}" if found.victims else " when what is ending there has gone"
        yield clean(f"Room is held for it on node {found.node}; it gets it{going}")
    elif found.open and not found.kept:
        yield f"{_could(found)} now: its turn comes"
    elif found.short and not found.message:
        yield "The nearest node is short of " + " and ".join(f"{one.amount} {one.resource}" for one in found.short)
    if found.advice:
        what = "What would place it at once" if found.nominated else "What would change that"
        yield f"{what}, each by itself, as the cluster is now:"
        for one in found.advice:
            yield from wrapped(
                f"- {one.text}" + ("" if one.node in one.text else f": it then goes to {one.node}"), "  "
            )
    elif found.advised and not found.nominated and not found.open:
        yield "No single change of its requests, selectors, tolerations or terms helps now, nor moving one other pod."


def _victims(found: c.WhyResponse) -> str:
    return ", ".join(f"{one.namespace}/{one.name}" for one in found.victims)


def _seconds(seconds: float) -> str:
    """What it has waited."""
    if seconds < LEAST_WAIT_S:
        return "at once"
    return f"after {seconds * 1000:.0f} ms" if seconds < 1 else f"after {seconds:.1f} s"


def tree(found: c.WhyResponse) -> dict[str, Any]:
    """For -o json and yaml."""
    said: dict[str, Any] = {
        "node": found.node,
        "nominated": found.nominated,
        "kept": found.kept,
        "at": found.at,
        "revision": found.revision,
        "waitedSeconds": found.waited_seconds,
        "attempts": found.attempts,
        "nodes": found.nodes,
        "feasibleNodes": found.open,
        "placedTogether": found.alike,
        "profile": found.profile,
        "message": found.message,
        "rejected": [{"reason": one.reason, "nodes": one.nodes} for one in found.rejected],
        "short": [{"resource": one.resource, "amount": one.amount} for one in found.short],
        "best": [
            {"node": one.node, "score": one.score, "parts": [_part(part) for part in one.parts]} for one in found.best
        ],
        "victims": [f"{one.namespace}/{one.name}" for one in found.victims],
        "advice": [
            {"kind": one.kind, "text": one.text, "node": one.node, "change": json.loads(one.change)}
            for one in found.advice
        ],
    }
    return {name: value for name, value in said.items() if value not in ("", [], 0, 0.0, None)}


def _part(part: c.ScorePart) -> dict[str, Any]:
    return {"name": part.name, "weight": part.weight, "value": part.value}
