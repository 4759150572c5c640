"""`shoal events`: lists what happened."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from shoal.deploy.cli.failures import OK, USAGE, CommandError, Refused
from shoal.deploy.cli.naming import kind_of
from shoal.deploy.cli.options import Session, all_namespaces_option, with_session
from shoal.deploy.cli.printers.text import table


@click.command("events")
@with_session
@all_namespaces_option
@click.option("--for", "about", metavar="KIND/NAME", help="Only of this object.")
@click.option("--types", metavar="TYPE[,TYPE]", help="Only Normal or Warning ones.")
@click.option("-w", "--watch", is_flag=True, help="Go on with what happens from now on.")
@click.option("--no-headers", is_flag=True, help="Without the line of headings.")
def command(session: Session, about: str | None, types: str | None, watch: bool, no_headers: bool) -> int:
    """List what happened, the oldest first."""
    fields, name = _fields(about)
    chosen = _types(types)
    printer = _Printer(session.all_namespaces, not no_headers)
    while True:
        found = session.client.list_objects("Event", session.scope, fields=fields)
        events = _with_starts(session, found.objects, about, name)
        printer.show([event for event in events if not chosen or event.type in chosen], last=not watch)
        if not watch:
            return OK
        try:
            for _, changes in session.client.watch(["Event"], session.scope, found.revision, fields=fields):
                fresh: list[Any] = [change.object for change in changes if change.type != "DELETED"]
                printer.show([event for event in fresh if not chosen or event.type in chosen], last=False)
        except Refused as refused:
            if refused.reason != "Expired":
                raise


def _with_starts(session: Session, events: list[Any], about: str | None, name: str) -> list[Any]:
    from shoal.deploy.cli.printers.happenings import with_derived

    pods: list[Any] = []
    if about is None or kind_of(about.partition("/")[0]) == "Pod":
        only = f"metadata.name={name}" if name else ""
        pods = list(session.client.list_objects("Pod", session.scope, fields=only).objects)
    return with_derived(events, pods)


def _fields(about: str | None) -> tuple[str, str]:
    """(the field selector, the object's name)."""
    if about is None:
        return "", ""
    kind, slash, name = about.partition("/")
    if not slash or not name:
        raise CommandError(f'--for "{about}": write KIND/NAME, such as pod/web', USAGE)
    return f"involvedObject.kind={kind_of(kind)},involvedObject.name={name}", name


def _types(types: str | None) -> frozenset[str]:
    chosen = frozenset(part.strip().capitalize() for part in (types or "").split(",") if part.strip())
    if not chosen <= {"Normal", "Warning"}:
        raise CommandError(f'--types "{types}": use Normal, Warning or both', USAGE)
    return chosen


class _Printer:
    """Rows in columns that stay where the first ones were."""

    def __init__(self, namespace: bool, header: bool) -> None:
        self._namespace = namespace
        self._header = header
        self._widths: list[int] = []
        self._seen: dict[tuple[str, str, str], str] = {}

    def show(self, events: list[Any], *, last: bool) -> None:
        fresh = [event for event in events if self._is_new(event)]
        if not fresh:
            if last:
                print("No events found.", file=sys.stderr)
            return
        from shoal.deploy.cli.printers.tables import headings, row_of

        now = time.time()
        rows = [headings("Event", namespace=self._namespace)] if self._header else []
        self._header = False
        rows += [row_of(event, now, namespace=self._namespace) for event in fresh]
        for line in table(rows, self._widths):
            print(line)
        sys.stdout.flush()

    def _is_new(self, event: Any) -> bool:
        # What is derived from a pod's status has no name: the object and the text stand for it.
        about = event.metadata.name or f"{event.involvedObject.name}/{event.reason}/{event.message}"
        key = (event.metadata.namespace, event.involvedObject.kind, about)
        version = event.metadata.resourceVersion or str(event.lastTimestamp.seconds)
        known = self._seen.get(key)
        self._seen[key] = version
        return known != version
