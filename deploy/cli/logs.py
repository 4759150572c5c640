"""`shoal logs`: shows what a container has written."""

from __future__ import annotations

import time

import click

from shoal.deploy.cli.completing import pods
from shoal.deploy.cli.options import DURATION, Session, with_session


@click.command("logs")
@with_session
@click.argument("target", metavar="POD | deployment/NAME", shell_complete=pods)
@click.argument("container_name", required=False, metavar="[CONTAINER]")
@click.option("-c", "--container", metavar="NAME", help="Which container, when there are several.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what it writes from now on.")
@click.option("-p", "--previous", is_flag=True, help="Of the run before the last restart.")
@click.option("--tail", type=click.IntRange(min=-1), default=-1, metavar="LINES", help="Only the last lines.")
@click.option("--since", type=DURATION, metavar="TIME", help="Only what is not older, such as 5m.")
@click.option("--timestamps", is_flag=True, help="With the time of each line.")
def command(
    session: Session,
    target: str,
    container_name: str | None,
    container: str | None,
    follow: bool,
    previous: bool,
    tail: int,
    since: float | None,
    timestamps: bool,
) -> int:
    """Show what a container has written."""
    from shoal.deploy.cli.frames import copy_out
    from shoal.deploy.cli.pods import container_of, find_pod
    from shoal.proto.v1 import cluster_pb2 as c
    from shoal.proto.v1 import objects_pb2 as o
    from shoal.proto.v1 import session_pb2 as s

    pod = find_pod(session, target)
    options = s.LogsOpen(
        container=container_of(pod, container or container_name),
        follow=follow,
        previous=previous,
        tail_lines=tail if tail >= 0 else None,
        since=o.Time(seconds=int(time.time() - since)) if since is not None else None,
        timestamps=timestamps,
    )
    key = c.Key(kind="Pod", namespace=pod.metadata.namespace, name=pod.metadata.name)
    return copy_out(session.client.logs(key, options))
