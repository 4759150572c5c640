"""`shoal version`: the versions of the command and the cluster."""

from __future__ import annotations

import click

from shoal import __version__
from shoal.deploy.cli.failures import OK
from shoal.deploy.cli.options import Session, with_session


@click.command("version")
@with_session
@click.option("--client", "client_only", is_flag=True, help="Without asking the cluster.")
def command(session: Session, client_only: bool) -> int:
    """Show the versions of the command and the cluster."""
    print(f"command: {__version__}")
    if client_only:
        return OK
    answer = session.client.version()
    print(f"cluster: {answer.version} (context {session.context.name})")
    print(f"leader:  {answer.leader or 'none'}, epoch {answer.epoch}")
    print(f"etcd:    {answer.etcd_version or 'unknown'}")
    print(f"incarnation: {answer.cluster_incarnation or 'unknown'}")
    return OK
