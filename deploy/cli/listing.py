"""How `get` and `events` show objects: tables, names, YAML, JSON, once or as they change."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from shoal.deploy.cli.naming import namespaced, shown
from shoal.deploy.cli.options import Session
from shoal.deploy.cli.printers.tables import COLUMNS, headings, row_of
from shoal.deploy.cli.printers.text import colour_of, coloured, table


def colours_wanted() -> bool:
    """Colours go to terminals only, and not to people who do not want them (no-color.org)."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


class Listing:
    """Prints objects in the form that the options ask for."""

    def __init__(self, session: Session, options: dict[str, Any]) -> None:
        self._session = session
        self._form = options["output"] or ""
        self._headers = not options["no_headers"]
        self._labels = options["show_labels"]
        self._sort = options["sort_by"]
        self._widths: list[int] = []
        self._begun = False

    def show(self, groups: Sequence[tuple[str, list[Any]]], *, single: bool, failed: bool) -> None:
        """All objects at once; `single`: one object was asked for by name."""
        for _, objects in groups:
            self._sorted(objects)
        everything = [obj for _, objects in groups for obj in objects]
        if self._form in ("yaml", "json"):
            from shoal.deploy.cli.printers.whole import print_whole

            if everything or not failed:
                print_whole(everything, self._form, as_list=not single)
        elif self._form == "name":
            for obj in everything:
                print(shown(obj.kind, obj.metadata.name))
        else:
            self._tables(groups, everything, failed)

    def _sorted(self, objects: list[Any]) -> None:
        if self._sort:
            from shoal.deploy.cli.printers.whole import sort_value

            objects.sort(key=lambda obj: sort_value(obj, self._sort))
        else:
            objects.sort(key=lambda obj: (obj.metadata.namespace, obj.metadata.name))

    def _tables(self, groups: Sequence[tuple[str, list[Any]]], everything: list[Any], failed: bool) -> None:
        if not everything:
            if not failed:
                cluster = all(not namespaced(kind) for kind, _ in groups) or self._session.all_namespaces
                where = "" if cluster else f" in {self._session.namespace} namespace"
                print(f"No resources found{where}.", file=sys.stderr)
            return
        several = len([kind for kind, objects in groups if objects]) > 1
        first = True
        for kind, objects in groups:
            if objects:
                if not first:
                    print()
                first = False
                self._table(kind, objects, [], header=self._headers, prefix=several)

    def _table(self, kind: str, objects: list[Any], widths: list[int], *, header: bool, prefix: bool = False) -> None:
        now = time.time()
        with_namespace = self._session.all_namespaces and namespaced(kind)
        form: dict[str, Any] = {"wide": self._form == "wide", "namespace": with_namespace, "labels": self._labels}
        before = f"{kind.lower()}/" if prefix else ""
        rows = [headings(kind, **form)] if header else []
        rows += [row_of(obj, now, prefix=before, **form) for obj in objects]
        for index, line in enumerate(table(rows, widths)):
            print(line if header and index == 0 else self._painted(line, rows[index], kind, form))

    def _painted(self, line: str, row: list[str], kind: str, form: dict[str, Any]) -> str:
        """The line with its status in colour, on a terminal."""
        heading = COLUMNS[kind].coloured
        if not heading or not colours_wanted():
            return line
        cell = row[headings(kind, **form).index(heading)]
        colour = colour_of(cell)
        return line.replace(f" {cell}", f" {coloured(cell, colour)}", 1) if colour else line

    def more(self, kind: str, objects: list[Any]) -> None:
        """Some objects of a watch, in columns that stay where the first ones were."""
        if self._form in ("yaml", "json"):
            from shoal.deploy.cli.printers.whole import whole_text

            for obj in objects:
                print(("---\n" if self._form == "yaml" and self._begun else "") + whole_text([obj], self._form))
                self._begun = True
        elif self._form == "name":
            for obj in objects:
                print(shown(obj.kind, obj.metadata.name))
        else:
            self._table(kind, objects, self._widths, header=self._headers and not self._begun)
            self._begun = True
        sys.stdout.flush()
