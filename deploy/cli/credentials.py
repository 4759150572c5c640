"""The passwords of registries that a person keeps: a file of the command's own, and docker's. Both hold what docker's
config.json does: {"auths": {"registry": {"auth": base64 of user:password}}}.

A password goes to the cluster only with a pull or push of an image in its registry, and is never shown.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.deploy.cli.contexts import config_path
from shoal.deploy.cli.failures import CommandError

DEFAULT_REGISTRY = "docker.io"
DOCKER_HOSTS = ("index.docker.io", "registry-1.docker.io")
MAX_FILE = 1 << 20
MAX_LENGTH = 4096  # characters of a user's name, and of a password
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?(?:/[a-z0-9._/-]+)?")

Auths = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Credential:
    """`registry` is host[:port], or that with the beginning of a repository's path."""

    registry: str
    username: str
    password: str = field(repr=False)


def own_path(environment: Mapping[str, str] = os.environ) -> Path:
    """The command's own file, beside the one with the clusters."""
    config = config_path(environment)
    return config.with_name(f"{config.name}-registries.json")


def docker_path(environment: Mapping[str, str] = os.environ) -> Path:
    """docker's file (it need not be there)."""
    folder = environment.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def registry_of(text: str) -> str:
    """`https://index.docker.io/v1/` -> docker.io; `quay.io/team` stays. Raises CommandError."""
    rest = re.sub(r"^https?://", "", text.strip(), flags=re.IGNORECASE).rstrip("/")
    rest = re.sub(r"/v[12]$", "", rest)
    host, slash, path = rest.partition("/")
    host = host.lower()
    found = (DEFAULT_REGISTRY if host in DOCKER_HOSTS else host) + slash + path
    if len(found) > MAX_LENGTH or not _HOST.fullmatch(found):
        raise CommandError(f"{text[:80]!r} is not a registry: write its host[:port], such as registry.example.com:5000")
    return found


def repository_of(image: str) -> str:
    """The registry and path in an image's name: `nginx:1` -> docker.io/library/nginx. What is no name is not refused
    here: a node says what is wrong with it."""
    name = image.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    name = head if colon and "/" not in tag else name
    host, slash, rest = name.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, rest = DEFAULT_REGISTRY, name
    host = DEFAULT_REGISTRY if host in DOCKER_HOSTS else host
    return f"{host}/library/{rest}" if host == DEFAULT_REGISTRY and "/" not in rest else f"{host}/{rest}"


def for_image(image: str, environment: Mapping[str, str] = os.environ) -> tuple[list[Credential], str]:
    """The credentials for an image's repository, the longest prefix first, our own before docker's; and what keeps
    docker's from being used, if anything does. Raises CommandError."""
    repository, docker = repository_of(image), docker_path(environment)
    own = own_path(environment)
    found = _fitting(own, read(own, own=True), repository)
    try:
        document = read(docker, own=False)
        theirs = _fitting(docker, document, repository)
    except CommandError as error:  # it is not ours to mend, and the image may need none of it
        return found, str(error)
    return [*found, *theirs], "" if found or theirs else _helper_warning(docker, document, repository)


def _fitting(path: Path, document: Mapping[str, Any], repository: str) -> list[Credential]:
    every = [credential_of(path, name, entry) for name, entry in auths_of(path, document).items()]
    fits = [one for one in every if one is not None and covers(one.registry, repository)]
    return sorted(fits, key=lambda one: len(one.registry), reverse=True)


def covers(registry: str, repository: str) -> bool:
    """Whether a credential for `registry` (host[/path]) is for the repository; by whole parts."""
    given, wanted = registry.split("/"), repository.split("/")
    return wanted[: len(given)] == given


def _helper_warning(path: Path, document: Mapping[str, Any], repository: str) -> str:
    """docker can keep passwords in other programs; we run none of them."""
    helpers = document.get("credHelpers")
    host = repository.partition("/")[0]
    helper = helpers.get(host) if isinstance(helpers, dict) else None
    listed = document.get("auths")
    if not helper and isinstance(listed, dict) and any(_same_host(name, host) for name in listed):
        helper = document.get("credsStore")
    if not helper:
        return ""
    return (
        f"{path} keeps the password of {host} in docker's helper {helper!s:.80}, which shoal does not run:"
        f" `shoal login {host}` if it is needed"
    )


def _same_host(name: str, host: str) -> bool:
    try:
        return registry_of(name).partition("/")[0] == host
    except CommandError:
        return False


def read(path: Path, *, own: bool) -> dict[str, Any]:
    """The whole file; {} when there is none. Raises CommandError that never repeats what is in it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror or error}") from None
    if own and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise CommandError(f"{path} holds passwords and others can read or write it: chmod 600 it")
    return parse(path, data)


def parse(what: object, data: bytes) -> dict[str, Any]:
    """docker's config.json. Raises CommandError that never repeats what is in it."""
    if len(data) > MAX_FILE:
        raise CommandError(f"{what} has more than {MAX_FILE} bytes: it is no file of credentials")
    try:
        document = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        raise CommandError(f"{what} is not valid JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("auths", {}), dict):
        raise CommandError(f'{what} must be {{"auths": {{"registry": {{"auth": "..."}}}}}}')
    return document


def auths_of(what: object, document: Mapping[str, Any]) -> Auths:
    """Raises CommandError."""
    table: Auths = document.get("auths", {})
    for name, entry in table.items():
        if not isinstance(entry, dict):
            raise CommandError(f"{what}: the entry of {name[:80]!r} must be an object")
    return table


def credential_of(what: object, name: str, entry: Mapping[str, Any]) -> Credential | None:
    """None for one that holds no password. Raises CommandError."""
    username, password, auth = (entry.get(key) or "" for key in ("username", "password", "auth"))
    if auth:
        try:
            username, _, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (TypeError, ValueError, binascii.Error):
            raise CommandError(f"{what}: auth of {name[:80]!r} is not base64 of user:password") from None
    if not password or not isinstance(username, str) or not isinstance(password, str):
        return None
    return Credential(registry_of(name), username, password)


def entry_of(credential: Credential) -> dict[str, Any]:
    """As docker writes it."""
    return {"auth": base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()}


def keep(credential: Credential, path: Path) -> None:
    """Adds or replaces one in the command's own file. Raises CommandError."""
    document = read(path, own=True)
    auths = auths_of(path, document)
    write(path, {**document, "auths": {**auths, credential.registry: entry_of(credential)}})


def forget(registry: str, path: Path) -> bool:
    """Takes one out of the command's own file; False when it was not there. Raises CommandError."""
    document = read(path, own=True)
    auths = auths_of(path, document)
    if registry not in auths:
        return False
    write(path, {**document, "auths": {name: entry for name, entry in auths.items() if name != registry}})
    return True


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Readable by its owner only, there as a whole or not at all. Raises CommandError."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from None
