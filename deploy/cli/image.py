"""`shoal image`: images on the nodes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from shoal.deploy.cli import image_files, image_show
from shoal.deploy.cli.failures import USAGE, CommandError
from shoal.deploy.cli.image_lines import document_of, follow, names_of, node_option, nodes_option
from shoal.deploy.cli.options import Session, with_session
from shoal.deploy.cli.printers.text import clean, size

if TYPE_CHECKING:
    from shoal.proto.v1 import cluster_pb2 as c
    from shoal.proto.v1 import session_pb2 as s


@click.group("image")
def command() -> None:
    """Pull, push, load, list and remove images on the nodes."""


for verb in (image_files.load, image_files.save, image_show.list_images, image_show.inspect):
    command.add_command(verb)


@command.command("pull")
@with_session
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@nodes_option
def pull(session: Session, names: tuple[str, ...], nodes: tuple[str, ...]) -> int:
    """Pull images from their registries onto the nodes, before pods need them.

    The password that `shoal login` (or docker) keeps for the registry goes along.
    """
    from shoal.proto.v1 import cluster_pb2 as c
    from shoal.proto.v1 import session_pb2 as s

    def one(name: str) -> int:
        wanted = s.ImagePullOpen(name=name, credentials=_credentials(name))
        return follow(session.client.image(c.ImageRequest(nodes=nodes, pull=wanted)), _pulled)

    return max(list(map(one, names)))


def _pulled(line: c.LoadImageResponse) -> str:
    told = document_of(line)
    return f"pulled {names_of(line)} ({size(int(told.get('size', 0)))}, {clean(str(told.get('digest', '')))})"


def _credentials(name: str) -> list[s.RegistryCredential]:
    """What is kept for the image's registry; nothing else leaves this machine."""
    from shoal.deploy.cli.credentials import for_image
    from shoal.proto.v1 import session_pb2 as s

    found, warning = for_image(name)
    if warning:
        print(f"warning: {clean(warning)}", file=sys.stderr)
    return [s.RegistryCredential(registry=one.registry, username=one.username, password=one.password) for one in found]


@command.command("push")
@with_session
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@node_option
def push(session: Session, names: tuple[str, ...], node: str) -> int:
    """Push images from a node that has them to the registries in their names.

    \b
    shoal image tag myapp:1 registry.example.com/team/myapp:1
    shoal image push registry.example.com/team/myapp:1
    """
    from shoal.proto.v1 import cluster_pb2 as c
    from shoal.proto.v1 import session_pb2 as s

    def one(name: str) -> int:
        wanted = s.ImagePushOpen(name=name, credentials=_credentials(name))
        return follow(session.client.image(c.ImageRequest(nodes=[node] if node else [], push=wanted)), _pushed)

    return max(list(map(one, names)))


def _pushed(line: c.LoadImageResponse) -> str:
    return f"pushed {names_of(line)} ({clean(str(document_of(line).get('digest', '')))})"


@command.command("tag")
@with_session
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="NAME")
@nodes_option
def tag(session: Session, source: str, target: str, nodes: tuple[str, ...]) -> int:
    """Give an image another name, on every node that has it."""
    from shoal.proto.v1 import cluster_pb2 as c
    from shoal.proto.v1 import session_pb2 as s

    request = c.ImageRequest(nodes=nodes, tag=s.ImageTagOpen(source=source, target=target))
    return follow(session.client.image(request), lambda _: f"tagged {source} as {target}", some=not nodes)


@command.command("rm")
@with_session
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@nodes_option
def remove(session: Session, names: tuple[str, ...], nodes: tuple[str, ...]) -> int:
    """Remove images from the nodes that have them."""
    from shoal.proto.v1 import cluster_pb2 as c

    def one(name: str) -> int:
        lines = session.client.remove_image(c.RemoveImageRequest(name=name, nodes=nodes))
        return follow(lines, lambda _: f"removed {name}", some=not nodes)

    return max(list(map(one, names)))


@command.command("prune")
@with_session
@click.option("-a", "--all", "every", is_flag=True, help="All that no pod uses, not only what has no name.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@nodes_option
def prune(session: Session, every: bool, dry_run: bool, yes: bool, nodes: tuple[str, ...]) -> int:
    """Remove images that no pod uses."""
    from shoal.proto.v1 import cluster_pb2 as c
    from shoal.proto.v1 import session_pb2 as s

    if not dry_run and not yes:
        _confirm("every image that no pod uses" if every else "every image without a name that no pod uses", nodes)
    freed = 0

    def pruned(line: c.LoadImageResponse) -> str:
        nonlocal freed
        bytes_freed = int(document_of(line).get("freed", 0))
        freed += bytes_freed
        if not line.images and not bytes_freed:
            return "nothing to remove"
        names = names_of(line) or "what no image needs any more"
        return f"{'would remove' if dry_run else 'removed'} {names} ({size(bytes_freed)})"

    request = c.ImageRequest(nodes=nodes, prune=s.ImagePruneOpen(all=every, dry_run=dry_run))
    code = follow(session.client.image(request), pruned)
    print(f"{'would free' if dry_run else 'freed'} {size(freed)}")
    return code


def _confirm(what: str, nodes: tuple[str, ...]) -> None:
    """Raises CommandError when nobody is there to be asked, or they say no."""
    if not sys.stdin.isatty():
        raise CommandError("there is no terminal to ask at: say -y, or --dry-run to see what would go", USAGE)
    where = f"node {', '.join(nodes)}" if nodes else "all ready nodes"
    if not click.confirm(f"Remove {what} from {where}?", err=True):
        raise CommandError("nothing was removed")
