"""What `why` prints: a story as text for people, or as a tree for programs. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from shoal.deploy.cli.printers.reasons import Finding, Story
from shoal.deploy.cli.printers.text import age, clean, coloured
from shoal.proto.causes import cause
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.walker import to_tree

WIDTH = 110
PROBES_SHOWN = 3
MORE_LINES = 3  # of the logs of deaths before the last


def as_tree(story: Story) -> dict[str, Any]:
    """For -o json and yaml; deaths as they are kept."""
    return {
        "subject": story.subject,
        "namespace": story.namespace,
        "headline": story.headline,
        "wrong": story.wrong,
        "findings": [{"about": one.about, "what": one.what, "text": one.text} for one in story.findings],
        "deaths": [to_tree(death) for death in story.deaths],
    }


def text(story: Story, now: float, lines: int, *, colours: bool = False) -> list[str]:
    """`lines`: of each log's end."""
    head = _paint(clean(story.headline), "red" if story.wrong else "green", colours)
    out = [head, *(line for one in story.findings for line in _finding(one, colours))]
    told = {one.text for one in story.findings}
    seen: list[o.Death] = []
    for death in story.deaths:
        alike = next((one for one in seen if _same(one, death)), None)
        if alike is None:
            seen.append(death)
            out += ["", *_death(death, now, lines if len(seen) == 1 else min(lines, MORE_LINES), told)]
        else:
            when = age(now - death.finishedAt.seconds)
            out.append(f"  likewise {when} ago (run {death.attempt + 1})")
    if story.deaths:
        names = story.deaths[0].metadata.name
        out += ["", f"More: shoal describe death {clean(names)}"]
    return out


def _same(one: o.Death, other: o.Death) -> bool:
    """Of one crash loop: only its measurements and times differ."""
    fields = ("container", "reason", "exitCode", "signal", "message", "changes", "logTail")
    return all(getattr(one, name) == getattr(other, name) for name in fields)


def _paint(line: str, colour: str, on: bool) -> str:
    return coloured(line, colour) if on else line


def _finding(one: Finding, on: bool) -> Iterator[str]:
    about = "" if one.about == "pod" else f"{one.about}: "
    head = about if one.text.startswith(one.what) else f"{about}{one.what}: "
    lines = wrapped(f"{head}{one.text}", "  ")
    first = next(lines)
    yield first.replace(one.what, _paint(one.what, "yellow", on), 1) if one.what else first
    yield from lines


def wrapped(line: str, indent: str) -> Iterator[str]:
    """Lines of at most WIDTH, those after the first deeper."""
    yield from textwrap.wrap(
        clean(line),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    ) or [indent]


def _death(death: o.Death, now: float, lines: int, told: set[str]) -> Iterator[str]:
    who = f"{'init ' if death.initContainer else ''}container {death.container}"
    lived = ""
    if death.startedAt.seconds:
        lived = f" after {age(death.finishedAt.seconds - death.startedAt.seconds)}"
    when = age(now - death.finishedAt.seconds)
    yield clean(f"Death of {who} {when} ago on node {death.node} (run {death.attempt + 1}, it ended{lived}):")
    why = death.cause or cause(death)
    if not any(why in one for one in told):
        yield from wrapped(why, "  ")
    if death.changes:
        since = f" ({age(now - death.lastHealthyAt.seconds)} ago)" if death.lastHealthyAt.seconds else ""
        yield f"  changed since it was last healthy{since}:"
        yield from (f"    {clean(one)}" for one in death.changes)
    elif death.lastHealthyAt.seconds:
        yield f"  last healthy {age(now - death.lastHealthyAt.seconds)} ago; nothing that its node knows has changed"
    yield from _probes(death.probes, now)
    if lines and death.logTail:
        yield "  its last lines:"
        yield from (f"    | {clean(line)}" for line in death.logTail[-lines:])
    elif lines:
        yield "  it has written nothing"


def _probes(probes: Sequence[o.ProbeRecord], now: float) -> Iterator[str]:
    for one in probes[-PROBES_SHOWN:]:
        how = "passed" if one.passed else "failed"
        said = f": {one.message}" if one.message else ""
        yield clean(f"  {one.probe} probe {how} {age(now - one.at.seconds)} ago, in {one.milliseconds} ms{said}")
