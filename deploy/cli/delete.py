"""`shoal delete`: deletes objects and waits until they are gone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from shoal.deploy.cli.completing import objects
from shoal.deploy.cli.failures import FAILED, OK, USAGE, CommandError
from shoal.deploy.cli.naming import namespaced, shown, wanted
from shoal.deploy.cli.options import (
    DURATION,
    Session,
    all_namespaces_option,
    check_selectors,
    fields_option,
    selector_option,
    with_session,
)

if TYPE_CHECKING:
    from shoal.proto.kinds import Object

DEFAULT_TIMEOUT_SECONDS = 300.0
PROPAGATION = {"background": "Background", "foreground": "Foreground", "orphan": "Orphan"}


@click.command("delete")
@with_session
@click.argument("what", nargs=-1, metavar="KIND NAME... | KIND/NAME... | KIND -l|--all", shell_complete=objects)
@click.option("-f", "--filename", "files", multiple=True, metavar="FILE", help="What is in these manifests.")
@click.option("-R", "--recursive", is_flag=True, help="Read folders with all that is in them.")
@all_namespaces_option
@selector_option
@fields_option
@click.option("--all", "everything", is_flag=True, help="All of the kind, in the namespace.")
@click.option(
    "--grace-period", type=click.IntRange(min=-1), default=-1, metavar="SECONDS", help="Instead of the pod's."
)
@click.option("--now", "at_once", is_flag=True, help="With a grace period of 1 s.")
@click.option("--force", is_flag=True, help="With a grace period of 0 s, not waiting for a node that is cut off.")
@click.option("--cascade", type=click.Choice(list(PROPAGATION)), default="background", help="What becomes of its pods.")
@click.option("--wait/--no-wait", default=True, help="Wait until they are gone (the default).")
@click.option("--timeout", type=DURATION, default=DEFAULT_TIMEOUT_SECONDS, metavar="TIME", help="For --wait (5m).")
@click.option("--ignore-not-found", is_flag=True, help="What is not there counts as deleted.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted.")
def command(session: Session, what: tuple[str, ...], **options: Any) -> int:
    """Delete objects by name, by labels, or those of manifests."""
    keys = _keys(session, what, options)
    if not keys:
        print("No resources found.", file=sys.stderr)
        return OK
    if options["force"] and (options["at_once"] or options["grace_period"] > 0):
        raise CommandError("--force is a grace period of 0: leave out --now and --grace-period", USAGE)
    grace = 0 if options["force"] else 1 if options["at_once"] else options["grace_period"]
    results = session.client.delete(
        keys,
        grace=None if grace < 0 else grace,
        propagation=PROPAGATION[options["cascade"]],
        dry_run=options["dry_run"],
    )
    code, going = OK, []
    for key, result in zip(keys, results, strict=True):
        name = shown(key.kind, key.name)
        if result.HasField("failure"):
            if result.failure.reason == "NotFound" and options["ignore_not_found"]:
                continue
            from shoal.deploy.cli.client import refused_by

            print(f"error: {name}: {refused_by(result.failure)}", file=sys.stderr)
            code = FAILED
        else:
            print(f"{name} deleted{' (dry run)' if options['dry_run'] else ''}")
            if result.object.body:
                going.append(_target(result.object))
    if options["wait"] and not options["dry_run"] and going:
        from shoal.deploy.cli.waiting import wait_gone

        return wait_gone(session.client, going, options["timeout"]) or code
    return code


def _target(envelope: Any) -> tuple[tuple[str, str, str], str]:
    from shoal.deploy.cli.client import decode

    obj = decode(envelope)
    return (obj.kind, obj.metadata.namespace, obj.metadata.name), obj.metadata.uid


def _keys(session: Session, what: tuple[str, ...], options: dict[str, Any]) -> list[Any]:
    from shoal.proto.v1 import cluster_pb2 as c

    if options["files"]:
        if what or options["selector"] or options["everything"]:
            raise CommandError("-f excludes kinds, names, -l and --all", USAGE)
        return [_key(obj) for obj in _from_files(session, options)]
    chosen: list[Any] = []
    for item in wanted(what):
        if item.names:
            _only_names(session, options)
            scope = session.scope if namespaced(item.kind) else ""
            chosen += [c.Key(kind=item.kind, namespace=scope, name=name) for name in item.names]
        else:
            if not (options["selector"] or options["field_selector"] or options["everything"]):
                raise CommandError(f"which {item.kind}s? Give names, -l or --all", USAGE)
            check_selectors(options["selector"], options["field_selector"], [item.kind])
            scope = session.scope if namespaced(item.kind) else ""
            found = session.client.list_objects(item.kind, scope, options["selector"], options["field_selector"])
            chosen += [_key(obj) for obj in found.objects]
    return chosen


def _only_names(session: Session, options: dict[str, Any]) -> None:
    if options["selector"] or options["field_selector"] or options["everything"]:
        raise CommandError("names exclude -l, --field-selector and --all", USAGE)
    if session.all_namespaces:
        raise CommandError("names are of one namespace: use -n instead of -A", USAGE)


def _from_files(session: Session, options: dict[str, Any]) -> list[Object]:
    """Last things first: what was applied first goes last. Kinds that are not supported cannot be there."""
    from shoal.deploy.cli.apply import ORDER, read_objects

    objects = read_objects(session, options["files"], options["recursive"], True, check=False)
    return sorted(objects, key=lambda obj: -ORDER.get(obj.kind, 3))


def _key(obj: Object) -> Any:
    from shoal.proto.v1 import cluster_pb2 as c

    return c.Key(kind=obj.kind, namespace=obj.metadata.namespace, name=obj.metadata.name)
