"""What the nodes say while they work on images, a line per node and step; and which nodes are meant."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from shoal.deploy.cli.completing import nodes as node_names
from shoal.deploy.cli.failures import FAILED, OK
from shoal.deploy.cli.printers.text import clean

if TYPE_CHECKING:
    from shoal.proto.v1 import cluster_pb2 as c

NOT_FOUND = "NotFound:"  # begins what a node says of an image that it has not
Describe = Callable[["c.LoadImageResponse"], str]

nodes_option = click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NAME",
    help="Only there (else on every ready node).",
    shell_complete=node_names,
)
node_option = click.option(
    "--node", default="", metavar="NAME", help="That one (else any ready node that has it).", shell_complete=node_names
)


def follow(lines: Iterator[c.LoadImageResponse], describe: Describe, *, some: bool = False) -> int:
    """Prints what comes; 1 when any node failed or nobody answered. `some`: it is no failure that a node does not
    have the image, as long as another one does."""
    done = failed = 0
    without: list[c.LoadImageResponse] = []
    for line in lines:
        if some and line.error.startswith(NOT_FOUND):
            without.append(line)
        elif line.error:
            failed += 1
            print(f"error: {line.node}: {clean(line.error)}", file=sys.stderr)
        elif line.done:
            done += 1
            print(f"{line.node}: {describe(line)}")
        elif line.progress:
            print(f"{line.node}: {clean(line.progress)}", file=sys.stderr)
    if without and not done and not failed:
        why = clean(without[0].error.removeprefix(NOT_FOUND)).strip()
        print(f"error: none of {len(without)} node(s) can: {why}", file=sys.stderr)
    elif not done and not failed:
        print("error: no node answered", file=sys.stderr)
    return OK if done and not failed else FAILED


def names_of(line: c.LoadImageResponse) -> str:
    return ", ".join(map(clean, line.images))


def document_of(line: c.LoadImageResponse) -> dict[str, Any]:
    """What a node answered for programs; {} when that does not read."""
    try:
        found = json.loads(line.json)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
