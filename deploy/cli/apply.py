"""`shoal apply`: makes the cluster hold what manifests say."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from shoal.deploy.cli.failures import FAILED, OK, USAGE, CommandError
from shoal.deploy.cli.naming import shown
from shoal.deploy.cli.options import DURATION, Session, with_session
from shoal.deploy.cli.printers.text import clean

if TYPE_CHECKING:
    from shoal.proto.kinds import Object

DEFAULT_TIMEOUT_SECONDS = 300.0
# What others need comes first, whatever the order in the files.
ORDER = {"Namespace": 0, "PriorityClass": 0, "Node": 1, "ConfigMap": 2, "Secret": 2, "PodGroup": 2}


@click.command("apply")
@with_session
@click.option("-f", "--filename", "names", multiple=True, metavar="FILE", help="File, folder or -.")
@click.option("-R", "--recursive", is_flag=True, help="Read folders with all that is in them.")
@click.option("--plan", "plan", metavar="PLAN", help="Carry out what shoal plan --out has written, if it still holds.")
@click.option("--dry-run", is_flag=True, help="Let the cluster check everything, but change nothing.")
@click.option("--skip-unsupported", is_flag=True, help="Apply the rest when some kinds are not supported.")
@click.option("--wait", is_flag=True, help="Wait until everything applied is ready.")
@click.option("--timeout", type=DURATION, default=DEFAULT_TIMEOUT_SECONDS, metavar="TIME", help="For --wait (5m).")
@click.option("-o", "--output", type=click.Choice(["name", "yaml", "json"]), help="Print the objects instead.")
def command(
    session: Session,
    names: tuple[str, ...],
    recursive: bool,
    plan: str | None,
    dry_run: bool,
    skip_unsupported: bool,
    wait: bool,
    timeout: float,
    output: str | None,
) -> int:
    """Make the cluster hold what manifests say. Nothing is applied when any of them has an error."""
    if plan is not None:
        if names or recursive or skip_unsupported or dry_run:
            raise CommandError("--plan says what is applied: it excludes -f, -R, --dry-run, --skip-unsupported", USAGE)
        objects, results = _carried_out(session, plan)
    elif not names:
        raise CommandError("say what to apply: -f FILE, or --plan PLAN", USAGE)
    else:
        objects = ordered(session, names, recursive, skip_unsupported)
        if not objects:
            return OK
        results = session.client.apply(objects, dry_run)
    applied: list[Object] = []
    failed = 0
    for obj, result in zip(objects, results, strict=True):
        if result.HasField("failure"):
            failed += 1
            _complain(obj, result.failure)
        else:
            applied.append(_answered(obj, result))
            _report(applied[-1], result.action, dry_run, output)
    if output in ("yaml", "json"):
        from shoal.deploy.cli.printers.whole import print_whole

        print_whole(applied, output)
    if failed:
        return FAILED
    if wait and not dry_run:
        from shoal.deploy.cli.waiting import wait_ready

        return wait_ready(session.client, applied, timeout)
    return OK


def ordered(session: Session, names: tuple[str, ...], recursive: bool, skip_unsupported: bool) -> list[Object]:
    """The objects of the manifests, what others need first; none only when all may be skipped. Raises CommandError."""
    objects = read_objects(session, names, recursive, skip_unsupported)
    if not objects:
        if skip_unsupported:
            print("nothing to apply", file=sys.stderr)
            return []
        raise CommandError(f"{', '.join('<stdin>' if name == '-' else name for name in names)}: holds no objects")
    objects.sort(key=lambda obj: ORDER.get(obj.kind, 3))
    return objects


def _carried_out(session: Session, path: str) -> tuple[list[Object], Sequence[Any]]:
    """The plan's objects and what became of each. Raises CommandError when the plan does not hold any more."""
    from shoal.deploy.cli import planfile

    plan = planfile.read(path)
    for obj in plan.objects:
        _set_namespace(obj, session)
    answer = session.client.carry_out(plan.objects, plan.expected)
    if answer.changed:
        told = [f"{path}: the cluster has changed, so that this plan does not hold any more:"]
        raise CommandError("\n  ".join([*told, *answer.changed]) + "\nNothing was applied: plan again")
    return plan.objects, answer.results


def read_objects(
    session: Session, names: tuple[str, ...], recursive: bool, skip_unsupported: bool, check: bool = True
) -> list[Object]:
    """The objects of the manifests with their namespaces. Raises CommandError with all that is wrong."""
    from shoal.deploy.cli.sources import read_manifests
    from shoal.proto.manifest import unsupported_message

    parsed = read_manifests(names, recursive=recursive, check=check)
    errors = [str(problem) for problem in parsed.errors]
    if parsed.unsupported and skip_unsupported:
        print(f"warning: skipping {unsupported_message(parsed.unsupported)}", file=sys.stderr)
    elif parsed.unsupported:
        places = sorted({item.source for item in parsed.unsupported})
        errors.append(
            f"{', '.join(places)}: {unsupported_message(parsed.unsupported)} (--skip-unsupported: do the rest)"
        )
    if errors:
        raise CommandError(
            "\n".join(errors) if len(errors) == 1 else "\n  ".join(["the manifests are wrong:", *errors])
        )
    objects = [found.message for found in parsed.objects]
    for obj in objects:
        _set_namespace(obj, session)
    return objects


def _set_namespace(obj: Object, session: Session) -> None:
    from shoal.deploy.cli.naming import namespaced

    if not namespaced(obj.kind):
        return
    chosen = session.namespace_option
    if chosen and obj.metadata.namespace not in ("", chosen):
        name = shown(obj.kind, obj.metadata.name)
        raise CommandError(
            f'{name} says namespace "{obj.metadata.namespace}", but -n says "{chosen}": drop one of them'
        )
    obj.metadata.namespace = obj.metadata.namespace or session.namespace


def _answered(obj: Object, result: Any) -> Object:
    from shoal.deploy.cli.client import decode

    return decode(result.object) if result.object.body else obj


def _report(obj: Object, action: str, dry_run: bool, output: str | None) -> None:
    name = shown(obj.kind, obj.metadata.name)
    if output == "name":
        print(name)
    elif output is None:
        print(f"{name} {action}{' (dry run)' if dry_run else ''}")


def _complain(obj: Object, failure: Any) -> None:
    from shoal.deploy.cli.client import refused_by

    name = shown(obj.kind, obj.metadata.name)
    if len(failure.fields) < 2:
        print(f"error: {name}: {refused_by(failure)}", file=sys.stderr)
    else:
        print("\n  ".join([f"error: {name} is invalid:", *problem_lines(failure.fields)]), file=sys.stderr)


def problem_lines(fields: Iterable[Any]) -> list[str]:
    """A line for each wrong field; what several say in brackets at their end is said once, after them."""
    lines: dict[str, list[str]] = {}  # by what is in brackets
    for field in fields:
        what, _, why = field.message.rpartition(" (") if field.message.endswith(")") else (field.message, "", "")
        lines.setdefault(why.removesuffix(")"), []).append(f"{field.path}: {what}" if field.path else what)
    out: list[str] = []
    for why, group in lines.items():
        several = [*group, f"because {why}"] if why else group
        out += several if len(group) > 1 or not why else [f"{group[0]} ({why})"]
    return [clean(line) for line in out]
