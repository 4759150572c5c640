"""`shoal exec`: runs a command in a container, and ends with its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from shoal.deploy.cli.completing import pods
from shoal.deploy.cli.failures import USAGE, CommandError
from shoal.deploy.cli.options import Session, with_session

if TYPE_CHECKING:
    from shoal.proto.v1 import session_pb2 as s


@click.command("exec", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": True})
@with_session
@click.argument("target", metavar="POD", shell_complete=pods)
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND [ARGUMENT...]")
@click.option("-c", "--container", metavar="NAME", help="Which container, when there are several.")
@click.option("-i", "--stdin", "interactive", is_flag=True, help="Pass our standard input on.")
@click.option("-t", "--tty", is_flag=True, help="A terminal (not supported yet).")
def command(
    session: Session, target: str, words: tuple[str, ...], container: str | None, interactive: bool, tty: bool
) -> int:
    """Run a command in a container; its exit code becomes ours."""
    if tty:
        raise CommandError("a terminal (-t) is not supported yet: use -i alone", USAGE)
    from shoal.deploy.cli.frames import copy_out
    from shoal.deploy.cli.pods import container_of, find_pod
    from shoal.proto.v1 import cluster_pb2 as c
    from shoal.proto.v1 import session_pb2 as s

    pod = find_pod(session, target)
    options = s.ExecOpen(container=container_of(pod, container), command=list(words), stdin=interactive)
    key = c.Key(kind="Pod", namespace=pod.metadata.namespace, name=pod.metadata.name)
    frames = _input() if interactive else iter(())
    return copy_out(session.client.exec(key, options, frames))


def _input() -> Iterator[s.TunnelFrame]:
    """Our standard input as frames; it is read by the call's own thread, as it comes."""
    from shoal.deploy.cli.client import FRAME_BYTES
    from shoal.proto.v1 import session_pb2 as s

    descriptor = sys.stdin.fileno()
    while data := os.read(descriptor, FRAME_BYTES):
        yield s.TunnelFrame(data=data)
    yield s.TunnelFrame(close_input=True)
