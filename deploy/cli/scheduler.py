"""`shoal scheduler`: the scheduler's decision log, read again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from shoal.deploy.cli.failures import FAILED, OK, USAGE, CommandError
from shoal.deploy.cli.printers.text import clean

if TYPE_CHECKING:
    from shoal.master.scheduler.profiles import Profile
    from shoal.master.scheduler.replay import Difference, Report

SHOWN = 20  # differences


@click.group("scheduler")
def command() -> None:
    """Read the scheduler's decision log again."""


@command.command("replay")
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="LOG")
@click.option(
    "--profile", metavar="NAME|FILE", help="Decide by this profile: a built-in one, or a YAML file of weights."
)
@click.option("--all", "every", is_flag=True, help=f"Every difference, not the first {SHOWN}.")
@click.option("-o", "--output", type=click.Choice(["yaml", "json"]), help="For programs.")
def replay_verb(log: Path, profile: str | None, every: bool, output: str | None) -> int:
    """Make every decision of a decision log again, from what it was made from, and compare.

    Without --profile each must come out as it was: the command ends with 1 when one does not. With it the decisions
    that would be others are shown; each starts from the state that there really was.

    \b
    shoal scheduler replay /var/lib/shoal/decisions.log
    shoal scheduler replay decisions.log --profile bin-packing
    """
    from shoal.master.scheduler.journal import JournalError, read
    from shoal.master.scheduler.replay import replay

    chosen = _profile(profile) if profile else None
    try:
        with log.open("rb") as file:
            report = replay(read(file), chosen)
            torn = _is_torn(file)
    except JournalError as fault:
        raise CommandError(f"{log}: {fault}") from None
    except OSError as error:
        raise CommandError(f"cannot read {log}: {error.strerror}") from None
    if output:
        from shoal.proto.printing import to_json, to_yaml

        print((to_yaml if output == "yaml" else to_json)(_tree(report)).rstrip("\n"))
    else:
        print("\n".join(_text(report, profile, None if every else SHOWN)))
        if torn:
            print("note: its last line is not whole (it is being written, or was cut off) and was left out")
    return FAILED if report.differences and chosen is None else OK


def _is_torn(file: BinaryIO) -> bool:
    """True when the last line has no end."""
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _profile(said: str) -> Profile:
    """Raises CommandError (usage)."""
    from shoal.master.scheduler.profiles import BUILT_IN, parse_profiles
    from shoal.proto.errors import nearest
    from shoal.proto.settings_file import SettingsFileError, read_settings

    if said in BUILT_IN:
        return BUILT_IN[said]
    path = Path(said)
    if not path.exists():
        meant = nearest(said, BUILT_IN)
        advice = f"did you mean {meant}?" if meant else f"there are {', '.join(BUILT_IN)}"
        raise CommandError(f"{said} is neither a built-in profile nor a file: {advice}", USAGE)
    try:
        profiles, problems = parse_profiles({"profile": read_settings(path)})
    except SettingsFileError as fault:
        raise CommandError(str(fault), USAGE) from None
    if problems:
        raise CommandError("\n".join(f"{path}: {problem}" for problem in problems), USAGE)
    return profiles["profile"]


def _text(report: Report, profile: str | None, limit: int | None) -> Iterator[str]:
    yield (
        f"{_number(report.plans, 'plan')}, {_number(report.decisions, 'decision')}: {report.placed} placed on"
        f" {_number(len(report.nodes), 'node')}, {report.preempting} preempting; logged by version {report.version}"
    )
    different = len(report.differences)
    if not report.decisions:
        yield "There is no decision in it."
    elif profile:
        yield (
            f"With profile {profile}: {report.placed_again} placed on {_number(len(report.nodes_again), 'node')};"
            f" {different or 'none'} of the decisions would be {'another' if different == 1 else 'others'}."
        )
    elif not different:
        yield "Every decision came out the same again."
    else:
        yield f"{different} of the decisions came out otherwise."
    yield from _lines(islice(report.differences, limit))
    if limit is not None and different > limit:
        yield f"... and {different - limit} more: see them with --all"


def _lines(found: Iterable[Difference]) -> Iterator[str]:
    for one in found:
        name = f"{one.pod.namespace}/{one.pod.name}"
        yield clean(f"  plan {one.window}: {name}: {one.recorded}  ->  {one.replayed}")


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _tree(report: Report) -> dict[str, Any]:
    return {
        "version": report.version,
        "plans": report.plans,
        "decisions": report.decisions,
        "recorded": {"placed": report.placed, "nodes": len(report.nodes), "preempting": report.preempting},
        "replayed": {"placed": report.placed_again, "nodes": len(report.nodes_again)},
        "differences": [
            {
                "line": one.line,
                "plan": one.window,
                "namespace": one.pod.namespace,
                "pod": one.pod.name,
                "recorded": _decided(one.recorded),
                "replayed": _decided(one.replayed),
            }
            for one in report.differences
        ],
    }


def _decided(one: Any) -> dict[str, Any]:
    said = {name: list(value) if isinstance(value, tuple) else value for name, value in one._asdict().items()}
    return {name: value for name, value in said.items() if value}
