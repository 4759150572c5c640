"""`shoal get`: lists objects, or shows some."""

from __future__ import annotations

import sys
from typing import Any

import click

from shoal.deploy.cli.completing import objects
from shoal.deploy.cli.failures import FAILED, OK, USAGE, CommandError, Refused
from shoal.deploy.cli.naming import Wanted, namespaced, shown, wanted
from shoal.deploy.cli.options import (
    Session,
    all_namespaces_option,
    check_selectors,
    fields_option,
    selector_option,
    with_session,
)


@click.command("get")
@with_session
@click.argument("what", nargs=-1, metavar="KIND[,KIND] [NAME...] | KIND/NAME...", shell_complete=objects)
@all_namespaces_option
@selector_option
@fields_option
@click.option("-o", "--output", type=click.Choice(["wide", "yaml", "json", "name"]), help="Another form.")
@click.option("-w", "--watch", is_flag=True, help="Go on showing changes.")
@click.option("--no-headers", is_flag=True, help="Without the line of headings.")
@click.option("--show-labels", is_flag=True, help="With a column of labels.")
@click.option("--sort-by", metavar="FIELD", help="Such as .metadata.creationTimestamp.")
def command(session: Session, what: tuple[str, ...], **options: Any) -> int:
    """List objects, or show some.

    Kinds: pods, deployments, replicasets, nodes, namespaces, configmaps, secrets, events; `all` is the first three.
    """
    asked = wanted(what)
    check_selectors(options["selector"], options["field_selector"], [item.kind for item in asked])
    if any(item.names for item in asked):
        if options["selector"] or options["field_selector"]:
            raise CommandError("names and selectors exclude each other", USAGE)
        if session.all_namespaces:
            raise CommandError("an object cannot be found by name across all namespaces: use -n", USAGE)
    if options["sort_by"]:
        from shoal.deploy.cli.printers.whole import check_path

        for item in asked:
            check_path(item.kind, options["sort_by"])
    from shoal.deploy.cli.listing import Listing

    listing = Listing(session, options)
    if options["watch"]:
        if len({item.kind for item in asked}) != 1 or sum(len(item.names) for item in asked) > 1:
            raise CommandError("-w watches one kind, or one object", USAGE)
        return _watch(session, asked[0], listing, options)
    code = OK
    groups: list[tuple[str, list[Any]]] = []
    for item in asked:
        objects, missing = _fetch(session, item, options)
        code = FAILED if missing else code
        groups.append((item.kind, objects))
    listing.show(groups, single=_is_single(asked), failed=code != OK)
    return code


def _is_single(asked: list[Wanted]) -> bool:
    return len(asked) == 1 and len(asked[0].names) == 1


def _fetch(session: Session, item: Wanted, options: dict[str, Any]) -> tuple[list[Any], int]:
    """(objects, how many of those named are missing, which is said on stderr)."""
    scope = session.scope if namespaced(item.kind) else ""
    if not item.names:
        return session.client.list_objects(item.kind, scope, options["selector"], options["field_selector"]).objects, 0
    objects, missing = [], 0
    for name in item.names:
        try:
            objects.append(session.client.get(item.kind, scope, name))
        except Refused as refused:
            if refused.reason != "NotFound":
                raise
            where = f" in namespace {scope}" if scope else ""
            print(f"error: {shown(item.kind, name)} not found{where}", file=sys.stderr)
            missing += 1
    return objects, missing


def _watch(session: Session, item: Wanted, listing: Any, options: dict[str, Any]) -> int:
    scope = session.scope if namespaced(item.kind) else ""
    fields = f"metadata.name={item.names[0]}" if item.names else options["field_selector"]
    known: dict[Any, str] = {}  # what was printed, by its revision: a list begun anew repeats what did not change
    while True:
        found = session.client.list_objects(item.kind, scope, options["selector"], fields)
        fresh = [obj for obj in found.objects if known.get(_key(obj)) != obj.metadata.resourceVersion]
        known = {_key(obj): obj.metadata.resourceVersion for obj in found.objects}
        if fresh:
            listing.more(item.kind, fresh)
        try:
            for _, changes in session.client.watch(
                [item.kind], scope, found.revision, labels=options["selector"], fields=fields
            ):
                for change in changes:
                    known[_key(change.object)] = change.object.metadata.resourceVersion
                    listing.more(item.kind, [change.object])
        except Refused as refused:
            if refused.reason != "Expired":
                raise


def _key(obj: Any) -> tuple[str, str]:
    return obj.metadata.namespace, obj.metadata.name
