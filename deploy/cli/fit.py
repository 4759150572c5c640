"""`shoal fit`: counts how many more pods of a manifest's templates fit into the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shoal.deploy.cli.failures import OK
from shoal.deploy.cli.options import Session, with_session

if TYPE_CHECKING:
    from shoal.proto.v1 import cluster_pb2 as c

MOST_PODS = 100_000
MOST_NODES = 20  # that are listed without -o wide


@click.command("fit")
@with_session
@click.option("-f", "--filename", "names", multiple=True, required=True, metavar="FILE", help="File, folder or -.")
@click.option("-R", "--recursive", is_flag=True, help="Read folders with all that is in them.")
@click.option("--limit", type=click.IntRange(1, MOST_PODS), default=MOST_PODS, metavar="N", help="Stop counting at N.")
@click.option("-o", "--output", type=click.Choice(["wide", "yaml", "json"]), help="Every node; or for programs.")
def command(session: Session, names: tuple[str, ...], recursive: bool, limit: int, output: str | None) -> int:
    """Count how many more pods of each Pod, Deployment or ReplicaSet fit, besides what runs now, and say what is
    missing for the next one. Each is counted as if it came alone; nobody is evicted for it. Nothing is changed.
    """
    from shoal.deploy.cli.apply import ordered
    from shoal.deploy.cli.plan import show_tree

    objects = ordered(session, names, recursive, skip_unsupported=False)
    found = session.client.fit(objects, limit)
    if output in ("yaml", "json"):
        show_tree(found, output)
    else:
        for result in found.results:
            print("\n".join(_lines(result, wide=output == "wide")))
    return OK


def _lines(result: c.FitResult, wide: bool) -> list[str]:
    from shoal.deploy.cli.printers import plans
    from shoal.deploy.cli.printers.text import clean

    least = "at least " if result.at_least else ""
    fit = "fits" if result.count == 1 and not least else "fit"
    lines = [f"{plans.shown(result.key)}: {least}{result.count} more {'pod' if result.count == 1 else 'pods'} {fit}"]
    shown = result.nodes if wide else result.nodes[:MOST_NODES]
    lines += [f"  {clean(one.node)}: {one.count}" for one in shown]
    if len(shown) < len(result.nodes):
        lines.append(f"  and {len(result.nodes) - len(shown)} more nodes (-o wide lists all)")
    return [*lines, f"  the next one: {clean(result.reason)}"] if result.reason else lines
