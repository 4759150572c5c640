"""`shoal logout`: forgets a registry's password."""

from __future__ import annotations

import sys

import click

from shoal.deploy.cli.credentials import DEFAULT_REGISTRY, auths_of, docker_path, forget, own_path, read, registry_of
from shoal.deploy.cli.failures import FAILED, OK


@click.command("logout")
@click.argument("registry", default=DEFAULT_REGISTRY, metavar="[REGISTRY]")
def command(registry: str) -> int:
    """Forget a registry's password. What docker keeps, and Secrets in the cluster, stay."""
    name, path = registry_of(registry), own_path()
    if forget(name, path):
        print(f"logged out of {name}")
        return OK
    known = ", ".join(sorted(auths_of(path, read(path, own=True)))) or "none"
    print(f"error: there is no login at {name} in {path} (it has {known})", file=sys.stderr)
    if name in auths_of(docker_path(), read(docker_path(), own=False)):
        print(f"       docker has one in {docker_path()}: `docker logout {name}` takes it away", file=sys.stderr)
    return FAILED
