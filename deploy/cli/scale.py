"""`shoal scale`: sets the number of replicas."""

from __future__ import annotations

import click

from shoal.deploy.cli.completing import objects
from shoal.deploy.cli.failures import OK, USAGE, CommandError
from shoal.deploy.cli.naming import shown, wanted
from shoal.deploy.cli.options import DURATION, Session, with_session

SCALABLE = ("Deployment", "ReplicaSet")
DEFAULT_TIMEOUT_SECONDS = 300.0


@click.command("scale")
@with_session
@click.argument("what", nargs=-1, required=True, metavar="deployment/NAME...", shell_complete=objects)
@click.option("--replicas", type=click.IntRange(min=0, max=2**31 - 1), required=True, metavar="N")
@click.option("--current-replicas", type=click.IntRange(min=0), metavar="N", help="Only when it has so many now.")
@click.option("--wait", is_flag=True, help="Wait until so many are ready.")
@click.option("--timeout", type=DURATION, default=DEFAULT_TIMEOUT_SECONDS, metavar="TIME", help="For --wait (5m).")
def command(
    session: Session, what: tuple[str, ...], replicas: int, current_replicas: int | None, wait: bool, timeout: float
) -> int:
    """Set the number of replicas of deployments or replicasets."""
    from shoal.deploy.cli.client import decode, refused_by
    from shoal.proto.v1 import cluster_pb2 as c

    scaled = []
    for item in wanted(what):
        if item.kind not in SCALABLE:
            raise CommandError(f"a {item.kind} has no replicas: scale a deployment or a replicaset", USAGE)
        if not item.names:
            raise CommandError(f"which {item.kind}? Give its name", USAGE)
        for name in item.names:
            key = c.Key(kind=item.kind, namespace=session.namespace, name=name)
            result = session.client.scale(key, replicas, current_replicas)
            if result.HasField("failure"):
                raise refused_by(result.failure)
            print(f"{shown(item.kind, name)} {result.action or 'scaled'}")
            scaled.append(decode(result.object))
    if wait:
        from shoal.deploy.cli.waiting import wait_ready

        return wait_ready(session.client, scaled, timeout)
    return OK
