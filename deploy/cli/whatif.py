"""`shoal whatif`: what would become of the pods if nodes failed, were drained or added, or workloads scaled."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from shoal.deploy.cli.completing import nodes
from shoal.deploy.cli.failures import OK, USAGE, CommandError
from shoal.deploy.cli.options import Session, with_session

if TYPE_CHECKING:
    from shoal.proto.v1 import cluster_pb2 as c

TROUBLE = 4  # the exit code of --detailed-exitcode
MOST = 2**31 - 1


@click.command("whatif")
@with_session
@click.option("--fail", "fail", multiple=True, metavar="NODE", help="The node dies.", shell_complete=nodes)
@click.option("--drain", "drain", multiple=True, metavar="NODE", help="The node is drained.", shell_complete=nodes)
@click.option(
    "--add", "add", multiple=True, type=click.IntRange(1, MOST), metavar="N", help="N nodes more: --like says."
)
@click.option("--like", "like", multiple=True, metavar="NODE", help="For --add: which node they are like.")
@click.option("--scale", "scale", multiple=True, metavar="NAME=N", help="A deployment (or KIND/NAME) has N replicas.")
@click.argument("words", nargs=-1, metavar="[LIKE NODE]")
@click.option("--detailed-exitcode", "detailed", is_flag=True, help="End with 4 when pods would wait or be stuck.")
@click.option("-o", "--output", type=click.Choice(["wide", "yaml", "json"]), help="Every pod; or for programs.")
def command(
    session: Session,
    fail: tuple[str, ...],
    drain: tuple[str, ...],
    add: tuple[int, ...],
    like: tuple[str, ...],
    scale: tuple[str, ...],
    words: tuple[str, ...],
    detailed: bool,
    output: str | None,
) -> int:
    """Show which pods would go where, which would wait and why, which budgets a drain would break, and what room
    there is before and after. Nothing is changed. Everything can be given several times and together: added nodes
    are there first, then nodes fail, then nodes are drained, then sizes change.

    shoal whatif --fail node-1 --add 2 LIKE node-2
    """
    from shoal.deploy.cli.plan import show_tree
    from shoal.proto.v1 import cluster_pb2 as c

    if not (fail or drain or add or scale):
        raise CommandError("say what: --fail NODE, --drain NODE, --add N LIKE NODE or --scale NAME=N", USAGE)
    if both := sorted({*fail} & {*drain}):
        raise CommandError(f"{both[0]} cannot both fail and be drained: choose one", USAGE)
    request = c.WhatIfRequest(fail=fail, drain=drain, scale=[_scaled(session, text) for text in scale])
    request.add.extend(c.WhatIfRequest.Added(count=n, like=node) for n, node in _added(add, like, words))
    found = session.client.what_if(request)
    if output in ("yaml", "json"):
        show_tree(found, output)
    else:
        _show(found, wide=output == "wide")
    trouble = bool(found.blocked) or any(pod.fate == "pending" for pod in found.pods)
    return TROUBLE if detailed and trouble else OK


def _added(add: tuple[int, ...], like: tuple[str, ...], words: tuple[str, ...]) -> list[tuple[int, str]]:
    """Both ways to write it: --add 3 LIKE node-1, and --add 3 --like node-1. Raises CommandError (usage)."""
    wrong = next((word for word in words[::2] if word.upper() != "LIKE"), None)
    if wrong is not None:
        raise CommandError(f'"{wrong}" is not understood: write --add N LIKE NODE', USAGE)
    if like and words:
        raise CommandError("write either LIKE NODE or --like NODE, not both", USAGE)
    models = like or words[1::2]
    if len(models) != len(add) or len(words) % 2:
        raise CommandError(f"--add is given {len(add)} times and LIKE NODE {len(models)} times: one for each", USAGE)
    return list(zip(add, models, strict=True))


def _scaled(session: Session, text: str) -> c.WhatIfRequest.Scaled:
    """NAME=N or KIND/NAME=N. Raises CommandError (usage)."""
    from shoal.deploy.cli.naming import kind_of
    from shoal.proto.v1 import cluster_pb2 as c

    match = re.fullmatch(r"(?:([^/=]+)/)?([^/=]+)=(\d{1,9})", text)
    if match is None:
        raise CommandError(f'"{text}" is not understood: write --scale NAME=N, such as web=5', USAGE)
    kind = kind_of(match[1]) if match[1] else "Deployment"
    key = c.Key(kind=kind, namespace=session.namespace, name=match[2])
    return c.WhatIfRequest.Scaled(key=key, replicas=int(match[3]))


def _show(found: c.WhatIfResponse, wide: bool) -> None:
    from shoal.deploy.cli.printers import plans
    from shoal.deploy.cli.printers.text import clean

    if not found.pods:
        print("no pod would move, come or go")
    print("\n".join([*plans.owners(found.pods, wide), *(f"note: {clean(note)}" for note in found.notes)]), end="")
    print("\n" if found.pods or found.notes else "", end="")
    for one in found.blocked:
        what = f"pod/{one.pod.name} (namespace {one.pod.namespace}) stays on {one.node}"
        print(clean(f"{what}: PodDisruptionBudget {one.budget.name} forbids its eviction: {one.reason}"))
    print(f"pods: {plans.counts(found.pods)}\n")
    print("\n".join(plans.headroom_lines(found.headroom)))
