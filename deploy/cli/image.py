"""`shoal image`: images on the nodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from shoal.deploy.cli.failures import FAILED, OK, USAGE, CommandError
from shoal.deploy.cli.options import Session, with_session
from shoal.deploy.cli.printers.text import clean

if TYPE_CHECKING:
    from shoal.proto.v1 import cluster_pb2 as c


@click.group("image")
def command() -> None:
    """Load, list and remove images on the nodes."""


@command.command("load")
@with_session
@click.argument("archives", nargs=-1, required=True, metavar="FILE...|-")
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="Only there (else on every ready node).")
@click.option("--name", default="", metavar="IMAGE", help="For an archive that carries no name.")
def load(session: Session, archives: tuple[str, ...], nodes: tuple[str, ...], name: str) -> int:
    """Load docker or OCI archives onto the nodes."""
    from shoal.proto.v1 import cluster_pb2 as c

    if name and len(archives) > 1:
        raise CommandError("--name is for a single archive", USAGE)
    for archive in archives:
        if archive != "-":
            with open(archive, "rb"):  # what cannot be read is told before anything is sent
                pass
    start = c.LoadImageStart(nodes=nodes, name=name)
    return max(_follow(session.client.load_image(start, _chunks(archive))) for archive in archives)


def _chunks(archive: str) -> Iterator[bytes]:
    from shoal.deploy.cli.client import FRAME_BYTES

    if archive == "-":
        while chunk := sys.stdin.buffer.read(FRAME_BYTES):
            yield chunk
        return
    with open(archive, "rb") as file:
        while chunk := file.read(FRAME_BYTES):
            yield chunk


@command.command("rm")
@with_session
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="Only there (else on every ready node).")
def remove(session: Session, names: tuple[str, ...], nodes: tuple[str, ...]) -> int:
    """Remove images from the nodes."""
    from shoal.proto.v1 import cluster_pb2 as c

    codes = [_follow(session.client.remove_image(c.RemoveImageRequest(name=name, nodes=nodes))) for name in names]
    return max(codes)


def _follow(lines: Iterator[c.LoadImageResponse]) -> int:
    """Prints a line per node and step; 1 when any node failed or nobody answered."""
    done = failed = 0
    for line in lines:
        if line.error:
            failed += 1
            print(f"error: {line.node}: {clean(line.error)}", file=sys.stderr)
        elif line.done:
            done += 1
            print(f"{line.node}: {clean(line.progress) or 'done'}{_names(line)}")
        elif line.progress:
            print(f"{line.node}: {clean(line.progress)}", file=sys.stderr)
    if not done and not failed:
        print("error: no node answered", file=sys.stderr)
    return OK if done and not failed else FAILED


def _names(line: c.LoadImageResponse) -> str:
    return f" ({', '.join(map(clean, line.images))})" if line.images else ""


@command.command("ls")
@with_session
@click.option("--no-headers", is_flag=True, help="Without the line of headings.")
def list_images(session: Session, no_headers: bool) -> int:
    """List the images and the nodes that have them."""
    from shoal.deploy.cli.printers.images import HEADINGS, image_rows
    from shoal.deploy.cli.printers.text import table

    rows = image_rows(session.client.list_objects("Node").objects)
    if not rows:
        print("No images found.", file=sys.stderr)
        return OK
    for line in table(rows if no_headers else [HEADINGS, *rows]):
        print(line)
    return OK
