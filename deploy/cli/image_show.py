"""`shoal image ls` and `inspect`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from shoal.deploy.cli.failures import FAILED, OK, USAGE, CommandError, Refused
from shoal.deploy.cli.image_lines import document_of, node_option
from shoal.deploy.cli.options import Session, with_session
from shoal.deploy.cli.printers.text import clean


@click.command("ls")
@with_session
@click.argument("words", nargs=-1, metavar="[WORD...]")
@click.option("-o", "--output", type=click.Choice(["wide", "json", "yaml", "name"]), help="Another form.")
@click.option("-q", "--quiet", is_flag=True, help="Only the names (as -o name).")
@click.option("--no-headers", is_flag=True, help="Without the line of headings.")
def list_images(session: Session, words: tuple[str, ...], output: str | None, quiet: bool, no_headers: bool) -> int:
    """List the images and the nodes that have them; with WORDs, those with one of them in their names."""
    from shoal.deploy.cli.printers.images import HEADINGS, found_images, row
    from shoal.deploy.cli.printers.text import table

    if quiet and output not in (None, "name"):
        raise CommandError(f"-q and -o {output} exclude each other", USAGE)
    nodes = list(session.client.list_objects("Node").objects)
    images = [one for one in found_images(nodes) if not words or any(word in one.name for word in words)]
    if output in ("json", "yaml"):
        _print([one.document() for one in images], output)
        return OK
    if output == "name" or quiet:
        for name in dict.fromkeys(one.name or one.digest for one in images):
            print(clean(name))
        return OK
    if not images:
        print("No images found.", file=sys.stderr)
        return OK
    rows = [row(one, len(nodes), wide=output == "wide") for one in images]
    for line in table(rows if no_headers else [HEADINGS, *rows]):
        print(line)
    return OK


@click.command("inspect")
@with_session
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), default="json", help="The form (json).")
@node_option
def inspect(session: Session, names: tuple[str, ...], output: str, node: str) -> int:
    """Show images in detail: layers, history and configuration, as a node has them."""
    documents, code = list[dict[str, Any]](), OK
    for name in names:
        try:
            documents.append(_inspected(session, name, node))
        except Refused as refused:
            if refused.reason != "NotFound":
                raise
            print(f"error: {clean(str(refused))}", file=sys.stderr)
            code = FAILED
    if documents:
        _print(documents, output)
    return code


def _inspected(session: Session, name: str, node: str) -> dict[str, Any]:
    from shoal.proto.v1 import cluster_pb2 as c
    from shoal.proto.v1 import session_pb2 as s

    request = c.ImageRequest(nodes=[node] if node else [], inspect=s.ImageInspectOpen(name=name))
    for line in session.client.image(request):
        if line.error:
            reason = "NotFound" if line.error.startswith("NotFound:") else "Failed"
            raise Refused(reason, f"{line.node}: {clean(line.error)}")
        if line.done:
            return {"node": line.node, **document_of(line)}
    raise CommandError("no node answered")


def _print(document: Any, output: str) -> None:
    if output == "json":
        print(json.dumps(document, indent=4))
        return
    import yaml

    print(yaml.safe_dump(document, sort_keys=False, allow_unicode=False), end="")
