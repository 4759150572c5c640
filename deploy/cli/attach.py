"""`shoal attach`: our terminal, or our input and output, at a running container's own streams."""

from __future__ import annotations

import sys

import click

from shoal.deploy.cli.completing import containers, pods
from shoal.deploy.cli.failures import CommandError
from shoal.deploy.cli.options import Session, with_session


@click.command("attach")
@with_session
@click.argument("target", metavar="POD | TYPE/NAME", shell_complete=pods)
@click.option("-c", "--container", metavar="NAME", help="Which container.", shell_complete=containers)
@click.option("-i", "--stdin", "interactive", is_flag=True, help="Pass our standard input on.")
@click.option("-t", "--tty", is_flag=True, help="Our input is a terminal (-it: lend it to the container).")
def command(session: Session, target: str, container: str | None, interactive: bool, tty: bool) -> int:
    """Show what a container writes from now on, and with -i give it input.

    \b
    shoal attach web-0            its output
    shoal attach -it shell-0      work in its terminal
    """
    from shoal.deploy.cli.frames import copy_out
    from shoal.deploy.cli.pods import container_of, find_pod, spec_of
    from shoal.deploy.cli.terminal import lent_to
    from shoal.proto.v1 import cluster_pb2 as c
    from shoal.proto.v1 import session_pb2 as s

    pod = find_pod(session, target)
    spec = spec_of(pod, container_of(pod, container))
    if interactive and not spec.stdin:
        raise CommandError(f"container {spec.name} takes no input: it needs `stdin: true` in its manifest")
    if tty and not spec.tty:
        print(f"warning: container {spec.name} has no terminal (`tty: true`): -t does nothing", file=sys.stderr)
        tty = False
    options = s.AttachOpen(container=spec.name, stdin=interactive)
    key = c.Key(kind="Pod", namespace=pod.metadata.namespace, name=pod.metadata.name)
    if interactive and tty and sys.stdin.isatty():
        print("If there is no prompt, try Enter.", file=sys.stderr)
    with lent_to(interactive=interactive, tty=tty) as frames:
        return copy_out(session.client.attach(key, options, frames))
