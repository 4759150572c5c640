"""`shoal image load` and `save`: images as archives, from here to the nodes and back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from shoal.deploy.cli.failures import FAILED, OK, USAGE, CommandError
from shoal.deploy.cli.image_lines import follow, names_of, node_option, nodes_option
from shoal.deploy.cli.options import Session, with_session
from shoal.deploy.cli.printers.text import clean, size

if TYPE_CHECKING:
    from shoal.proto.v1 import cluster_pb2 as c


@click.command("load")
@with_session
@click.argument("archives", nargs=-1, required=True, metavar="FILE...|-")
@nodes_option
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
    return max(follow(session.client.load_image(start, _chunks(archive)), _loaded) for archive in archives)


def _loaded(line: c.LoadImageResponse) -> str:
    names = f" ({names_of(line)})" if line.images else ""
    return f"{clean(line.progress) or 'done'}{names}"


def _chunks(archive: str) -> Iterator[bytes]:
    from shoal.deploy.cli.client import FRAME_BYTES

    if archive == "-":
        while chunk := sys.stdin.buffer.read(FRAME_BYTES):
            yield chunk
        return
    with open(archive, "rb") as file:
        while chunk := file.read(FRAME_BYTES):
            yield chunk


@click.command("save")
@with_session
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-o", "--output", default="-", metavar="FILE", help="Instead of standard output.")
@node_option
def save(session: Session, names: tuple[str, ...], output: str, node: str) -> int:
    """Write images as one archive, which docker, skopeo and `shoal image load` read."""
    from shoal.proto.v1 import cluster_pb2 as c

    if output == "-" and sys.stdout.isatty():
        raise CommandError("an archive is nothing for a terminal: say -o FILE", USAGE)
    written = 0
    with _written(output) as file:
        for frame in session.client.save_image(c.SaveImageRequest(names=names, node=node)):
            if frame.HasField("end"):
                if frame.end.error or frame.end.exit_code:
                    raise CommandError(clean(frame.end.error) or "the node could not write the archive", FAILED)
                break
            file.write(frame.data)
            written += len(frame.data)
        else:
            raise CommandError("the stream broke off: the archive is not complete")
    if output != "-":
        print(f"wrote {output} ({size(written)})")
    return OK


@contextmanager
def _written(output: str) -> Iterator[BinaryIO]:
    """A file is there as a whole or not at all."""
    if output == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(output)
    if path.exists() and not path.is_file():
        with path.open("wb") as device:  # /dev/null, a pipe; a folder says so
            yield device
        return
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as file:
            yield file
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
