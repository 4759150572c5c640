"""`shoal exec`: runs a command in a container, and ends with its exit code."""

from __future__ import annotations

import sys

import click

from shoal.deploy.cli.completing import containers, pods
from shoal.deploy.cli.options import Session, with_session


@click.command("exec", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": True})
@with_session
@click.argument("target", metavar="POD | TYPE/NAME", shell_complete=pods)
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND [ARGUMENT...]")
@click.option("-c", "--container", metavar="NAME", help="Which container.", shell_complete=containers)
@click.option("-i", "--stdin", "interactive", is_flag=True, help="Pass our standard input on.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal (-it: ours).")
def command(
    session: Session, target: str, words: tuple[str, ...], container: str | None, interactive: bool, tty: bool
) -> int:
    """Run a command in a container; its exit code becomes ours.

    \b
    shoal exec web-0 -- ls -l /data
    shoal exec -it deploy/web -c app -- sh
    """
    from shoal.deploy.cli.frames import copy_out
    from shoal.deploy.cli.pods import container_of, find_pod
    from shoal.deploy.cli.terminal import lent_to
    from shoal.proto.v1 import cluster_pb2 as c
    from shoal.proto.v1 import session_pb2 as s

    pod = find_pod(session, target)
    if tty and interactive and not sys.stdin.isatty():
        print("warning: no terminal for -t: our standard input is none", file=sys.stderr)
        tty = False
    options = s.ExecOpen(container=container_of(pod, container), command=list(words), stdin=interactive, tty=tty)
    key = c.Key(kind="Pod", namespace=pod.metadata.namespace, name=pod.metadata.name)
    with lent_to(interactive=interactive, tty=tty) as frames:
        return copy_out(session.client.exec(key, options, frames))
