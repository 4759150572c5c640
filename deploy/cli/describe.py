"""`shoal describe`: shows objects in detail, with their events."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from shoal.deploy.cli.completing import objects
from shoal.deploy.cli.failures import FAILED, OK, USAGE, CommandError, Refused
from shoal.deploy.cli.naming import Wanted, namespaced, shown, wanted
from shoal.deploy.cli.options import Session, all_namespaces_option, check_selectors, selector_option, with_session


@click.command("describe")
@with_session
@click.argument("what", nargs=-1, metavar="KIND [NAME...] | KIND/NAME...", shell_complete=objects)
@all_namespaces_option
@selector_option
def command(session: Session, what: tuple[str, ...], selector: str) -> int:
    """Show objects in detail, with their events."""
    from shoal.deploy.cli.printers.details import describe

    asked = wanted(what)
    check_selectors(selector, "", [])
    code, first = OK, True
    for item in asked:
        if item.names and (selector or session.all_namespaces):
            raise CommandError("names exclude -l and -A", USAGE)
        objects, missing = _fetch(session, item, selector)
        code = FAILED if missing else code
        for obj in objects:
            if not first:
                print("\n")
            first = False
            print(
                "\n".join(describe(obj, time.time(), _events(session, obj), _pods(session, obj), _deaths(session, obj)))
            )
    if first and code == OK:
        print("No resources found.", file=sys.stderr)
    return code


def _fetch(session: Session, item: Wanted, selector: str) -> tuple[list[Any], int]:
    scope = session.scope if namespaced(item.kind) else ""
    if not item.names:
        return list(session.client.list_objects(item.kind, scope, selector).objects), 0
    found, missing = [], 0
    for name in item.names:
        try:
            found.append(session.client.get(item.kind, scope, name))
        except Refused as refused:
            if refused.reason != "NotFound":
                raise
            print(f"error: {shown(item.kind, name)} not found", file=sys.stderr)
            missing += 1
    return found, missing


def _events(session: Session, obj: Any) -> list[Any]:
    """The object's own events. (An object that was deleted and made anew has another uid.)"""
    from shoal.deploy.cli.printers.happenings import with_derived

    if obj.kind == "Event":
        return []
    fields = f"involvedObject.kind={obj.kind},involvedObject.name={obj.metadata.name}"
    stored: list[Any] = list(session.client.list_objects("Event", obj.metadata.namespace, fields=fields).objects)
    own = [e for e in stored if e.involvedObject.uid in ("", obj.metadata.uid)]
    return with_derived(own, [obj] if obj.kind == "Pod" else [])


def _deaths(session: Session, obj: Any) -> list[Any]:
    """What is kept of a pod's failed runs."""
    if obj.kind != "Pod":
        return []
    return list(
        session.client.list_objects("Death", obj.metadata.namespace, fields=f"pod.uid={obj.metadata.uid}").objects
    )


def _pods(session: Session, obj: Any) -> list[Any]:
    """The pods that belong to a node."""
    if obj.kind != "Node":
        return []
    return list(session.client.list_objects("Pod", fields=f"spec.nodeName={obj.metadata.name}").objects)
