"""`shoal exec`: runs a command in a container, and ends with its exit code."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import click

from shoal.deploy.cli.completing import pods
from shoal.deploy.cli.options import Session, with_session


@click.command("exec", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": True})
@with_session
@click.argument("target", metavar="POD", shell_complete=pods)
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND [ARGUMENT...]")
@click.option("-c", "--container", metavar="NAME", help="Which container, when there are several.")
@click.option("-i", "--stdin", "interactive", is_flag=True, help="Pass our standard input on.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal (-it: ours).")
def command(
    session: Session, target: str, words: tuple[str, ...], container: str | None, interactive: bool, tty: bool
) -> int:
    """Run a command in a container; its exit code becomes ours."""
    from shoal.deploy.cli.frames import copy_out
    from shoal.deploy.cli.pods import container_of, find_pod
    from shoal.deploy.cli.terminal import Input, lent
    from shoal.proto.v1 import cluster_pb2 as c
    from shoal.proto.v1 import session_pb2 as s

    pod = find_pod(session, target)
    if tty and interactive and not sys.stdin.isatty():
        print("warning: no terminal for -t: our standard input is none", file=sys.stderr)
        tty = False
    options = s.ExecOpen(container=container_of(pod, container), command=list(words), stdin=interactive, tty=tty)
    key = c.Key(kind="Pod", namespace=pod.metadata.namespace, name=pod.metadata.name)
    source = Input(reading=interactive, terminal=tty)
    frames = source.frames() if interactive or tty else iter(())
    with lent(source, raw=interactive) if tty else nullcontext():
        return copy_out(session.client.exec(key, options, frames))
