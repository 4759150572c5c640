"""`shoal login`: tries a registry's password from a node, then keeps it, for us or as a Secret for pods."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from shoal.deploy.cli.credentials import (
    DEFAULT_REGISTRY,
    MAX_LENGTH,
    Credential,
    auths_of,
    entry_of,
    keep,
    own_path,
    parse,
    registry_of,
)
from shoal.deploy.cli.failures import FAILED, OK, USAGE, CommandError, Refused
from shoal.deploy.cli.options import Session, with_session

SECRET_TYPE, SECRET_KEY = "kubernetes.io/dockerconfigjson", ".dockerconfigjson"


def _refuse_password(_context: click.Context, _option: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise CommandError(
            "a password on the command line is seen by everybody on this machine (ps), and stays in the shell's"
            " history: leave it out to be asked, or pipe it in with --password-stdin; change the one just typed",
            USAGE,
        )


@click.command("login")
@with_session
@click.argument("registry", default=DEFAULT_REGISTRY, metavar="[REGISTRY]")
@click.option("-u", "--username", metavar="NAME", help="Else it is asked for.")
@click.option("-p", "--password", hidden=True, expose_value=False, callback=_refuse_password)
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--secret", metavar="NAME", help="Keep it as a Secret for imagePullSecrets instead.")
@click.option("--node", default="", metavar="NAME", help="Try it from this node (else any ready one).")
def command(
    session: Session, registry: str, username: str | None, password_stdin: bool, secret: str | None, node: str
) -> int:
    """Keep a registry's password, once a node has tried it.

    \b
    shoal login registry.example.com:5000 -u anna                     for `shoal image pull` and `push`
    shoal login quay.io -u anna --password-stdin --secret quay -n web    for the pods of namespace web
    """
    credential = _asked(registry_of(registry), username, password_stdin)
    _try(session, credential, node)
    if secret is None:
        keep(credential, own_path())
        print(f"logged in to {credential.registry}; the password is kept in {own_path()}")
        return OK
    return _keep_secret(session, secret, credential)


def _asked(registry: str, username: str | None, password_stdin: bool) -> Credential:
    """From the terminal, without an echo, or from a pipe. Raises CommandError."""
    terminal = sys.stdin.isatty()
    if password_stdin:
        if not username:
            raise CommandError("--password-stdin needs -u NAME", USAGE)
        password = sys.stdin.buffer.read(MAX_LENGTH + 3).decode(errors="replace").removesuffix("\n").removesuffix("\r")
    elif not terminal:
        raise CommandError("there is no terminal to ask at: pipe the password in with --password-stdin", USAGE)
    else:
        username = username or click.prompt(f"User at {registry}", err=True)
        password = click.prompt(f"Password of {username} at {registry}", hide_input=True, err=True)
    assert username is not None
    if not password:
        raise CommandError("the password is empty", USAGE)
    if ":" in username:
        raise CommandError("a user's name has no colon (RFC 7617)", USAGE)
    if max(len(username), len(password)) > MAX_LENGTH or not (username + password).isprintable():
        raise CommandError(
            f"the user or the password has over {MAX_LENGTH} characters, or such that cannot be printed", USAGE
        )
    return Credential(registry, username, password)


def _try(session: Session, credential: Credential, node: str) -> None:
    """Raises CommandError with the registry's words."""
    from shoal.deploy.cli.printers.text import clean
    from shoal.proto.v1 import cluster_pb2 as c
    from shoal.proto.v1 import session_pb2 as s

    sent = s.RegistryCredential(
        registry=credential.registry, username=credential.username, password=credential.password
    )
    request = c.ImageRequest(nodes=[node] if node else [], login=s.LoginOpen(credential=sent))
    answers = [line for line in session.client.image(request) if line.done]
    if not answers:
        raise CommandError("no node answered: nothing is kept")
    for line in answers:
        if line.error:
            raise CommandError(f"{line.node}: {clean(line.error)}; nothing is kept", FAILED)


def _keep_secret(session: Session, name: str, credential: Credential) -> int:
    """Creates the Secret, or puts the registry among the others that it has. Raises CommandError."""
    from shoal.deploy.cli.client import refused_by
    from shoal.proto.v1 import objects_pb2 as o

    what, auths = f"secret/{name}", dict[str, Any]()
    try:
        found = session.client.get("Secret", session.namespace, name)
    except Refused as refused:
        if refused.reason != "NotFound":
            raise
    else:
        assert isinstance(found, o.Secret)
        if found.type != SECRET_TYPE:
            raise CommandError(f"{what} is there already and has the type {found.type}: choose another name")
        auths = auths_of(what, parse(what, found.data[SECRET_KEY]))
    made = o.Secret(apiVersion="v1", kind="Secret", type=SECRET_TYPE)
    made.metadata.name, made.metadata.namespace = name, session.namespace
    made.data[SECRET_KEY] = json.dumps({"auths": {**auths, credential.registry: entry_of(credential)}}).encode()
    [result] = session.client.apply([made])
    if result.HasField("failure"):
        raise refused_by(result.failure)
    print(f"{what} {result.action} in namespace {session.namespace}: name it in a pod's imagePullSecrets")
    return OK
