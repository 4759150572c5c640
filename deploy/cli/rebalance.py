"""`shoal rebalance`: moves pods off full nodes, one at a time, each by an eviction that the budgets allow."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from shoal.deploy.cli.failures import FAILED, OK, CommandError
from shoal.deploy.cli.options import DURATION, Session, with_session

if TYPE_CHECKING:
    from shoal.proto.v1 import cluster_pb2 as c

MOST_MOVES = 1000
USUAL_MOVES = 20
MOVE_SECONDS = 300.0


@click.command("rebalance")
@with_session
@click.option("--dry-run", is_flag=True, help="Show the moves only.")
@click.option(
    "--max-moves",
    type=click.IntRange(1, MOST_MOVES),
    default=USUAL_MOVES,
    show_default=True,
    metavar="N",
    help="At most so many pods.",
)
@click.option("--timeout", type=DURATION, default=MOVE_SECONDS, metavar="TIME", help="For one move (5m).")
@click.option("-o", "--output", type=click.Choice(["wide", "yaml", "json"]), help="Every node; or, dry, for programs.")
def command(session: Session, dry_run: bool, max_moves: int, timeout: float, output: str | None) -> int:
    """Move pods off full nodes. A move evicts one pod of a deployment or replicaset so that its replacement, placed
    by the scheduler as ever, lands on an emptier node. One move at a time: the next begins when the replacement is
    ready where it was expected. Stopping at any time leaves a whole cluster.
    """
    from shoal.deploy.cli.plan import show_tree

    if output in ("yaml", "json") and not dry_run:
        raise CommandError(f"-o {output} is for --dry-run", 2)
    plan = session.client.rebalance(max_moves)
    if output in ("yaml", "json"):
        show_tree(plan, output)
        return OK
    print("\n".join(_lines(plan, wide=output == "wide")))
    if dry_run or not plan.moves:
        return OK
    done = 0
    try:
        for done, move in enumerate(plan.moves, start=1):
            print(f"{done}/{len(plan.moves)} pod/{move.pod.name}: {_made(session, move, timeout)}", flush=True)
    except (CommandError, KeyboardInterrupt):
        left = len(plan.moves) - done
        print(f"stopped in move {done} of {len(plan.moves)}; {left} were not begun", file=sys.stderr)
        raise
    return OK


def _lines(plan: c.RebalanceResponse, wide: bool) -> Iterator[str]:
    from shoal.deploy.cli.printers.plans import shown
    from shoal.deploy.cli.printers.text import clean, table

    rows = [["#", "POD", "OWNER", "FROM", "TO", "FULLER NODE"]] if plan.moves else []
    for number, move in enumerate(plan.moves, start=1):
        share = f"{move.before:.0%} -> {move.after:.0%}"
        pod = clean(f"{move.pod.namespace}/{move.pod.name}")
        rows.append([str(number), pod, shown(move.owner), clean(getattr(move, "from")), clean(move.to), share])
    yield from table(rows)
    touched = [one for one in plan.nodes if wide or one.before != one.after]
    rows = [["NODE", "LOAD NOW", "LOAD THEN"]] if touched else []
    rows += [[clean(one.node), f"{one.before:.0%}", f"{one.after:.0%}"] for one in touched]
    yield from table(rows)
    fullest = [max((load for load in loads), default=0.0) for loads in _columns(plan)]
    moves = f"{len(plan.moves)} {'move' if len(plan.moves) == 1 else 'moves'}"
    yield f"fullest node: {fullest[0]:.0%} now, {fullest[1]:.0%} after {moves}; {clean(plan.stopped)}"


def _columns(plan: c.RebalanceResponse) -> tuple[list[float], list[float]]:
    return [one.before for one in plan.nodes], [one.after for one in plan.nodes]


# ---- one move ----
def _made(session: Session, move: c.Move, timeout: float) -> str:
    """Evicts the pod and waits for its replacement; says where it is. Raises CommandError when reality differs."""
    from shoal.deploy.cli.client import refused_by

    client: Any = session.client
    before = {pod.metadata.uid: pod for pod in client.list_objects("Pod", move.pod.namespace).objects}
    old = before.get(move.uid)
    if old is None or old.spec.nodeName != getattr(move, "from"):
        raise CommandError(f"pod/{move.pod.name} is not on {getattr(move, 'from')} any more: rebalance again")
    owner = _owner(old)
    result = client.evict(move.pod, move.uid)
    if result.HasField("failure"):
        raise CommandError(f"{refused_by(result.failure)}: later, rebalance again")
    name, node = _replacement(client, move, owner, set(before), time.monotonic() + timeout)
    if node != move.to:
        raise CommandError(
            f"its replacement pod/{name} has landed on {node} rather than {move.to}: the cluster has changed, "
            "rebalance again"
        )
    return f"{getattr(move, 'from')} -> {node} (now pod/{name})"


def _owner(pod: Any) -> str:
    return next((ref.uid for ref in pod.metadata.ownerReferences if ref.controller), "")


def _replacement(client: Any, move: c.Move, owner: str, before: set[str], deadline: float) -> tuple[str, str]:
    """Name and node of the pod that its owner has made instead, when that is ready, or is not where it should be."""
    from shoal.deploy.cli.follow import follow
    from shoal.deploy.cli.printers.reasons import why_not_ready
    from shoal.deploy.cli.printers.status import is_true

    seen: Any = None
    for state in follow(client, ["Pod"], move.pod.namespace, deadline):
        found: list[Any] = [pod for pod in state.values() if pod.metadata.uid not in before and _owner(pod) == owner]
        seen = min(found, key=lambda pod: pod.metadata.creationTimestamp.seconds, default=None)
        if seen is None:
            continue
        if seen.status.phase == "Failed":
            break
        landed = seen.spec.nodeName
        if landed and (landed != move.to or is_true(seen.status.conditions, "Ready")):
            return seen.metadata.name, landed
    if seen is None:
        raise CommandError(f"nobody has made a replacement of pod/{move.pod.name} in time", FAILED)
    raise CommandError(f"its replacement pod/{seen.metadata.name} is not ready in time: {why_not_ready(seen)}", FAILED)
