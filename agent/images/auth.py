"""Credentials for registries: docker's files, pull secrets, and the challenges that registries answer with.

Sources: docker's config.json; Kubernetes' kubernetes.io/dockerconfigjson and kubernetes.io/dockercfg secrets;
distribution-spec's token authentication; RFC 9110, section 11.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from shoal.agent.images.names import DEFAULT_DOMAIN
from shoal.agent.images.port import Credential, ImageFault
from shoal.agent.images.streams import MIB
from shoal.proto.v1.objects_pb2 import Secret

CONFIG_JSON, CONFIG_JSON_KEY = "kubernetes.io/dockerconfigjson", ".dockerconfigjson"
CONFIG_OLD, CONFIG_OLD_KEY = "kubernetes.io/dockercfg", ".dockercfg"
DOCKER_HOSTS = ("index.docker.io", "registry-1.docker.io")
MAX_FILE = MIB
MAX_CREDENTIALS = 1000
MAX_HEADER = 8192  # characters of WWW-Authenticate that are looked at
MAX_LENGTH = 4096  # characters of a user's name, and of a password

_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_SCHEME = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9_-]*)(?=\s+[A-Za-z0-9_-]+\s*=|\s*$|\s*,)")


class BadCredentials(Exception):
    """Docker's file of credentials cannot be read; the message never repeats what is in it."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a registry offers: `scheme` is bearer or basic."""

    scheme: str
    parameters: Mapping[str, str]


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """What WWW-Authenticate says; nonsense is passed over."""
    found: list[Challenge] = []
    for header in headers:
        text, at = header[:MAX_HEADER], 0
        while scheme := _SCHEME.match(text, at):
            at, parameters = scheme.end(), dict[str, str]()
            while parameter := _PARAMETER.match(text, at):
                at = parameter.end()
                quoted = parameter[2]
                value = parameter[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                parameters[parameter[1].lower()] = value
            found.append(Challenge(scheme[1].lower(), parameters))
    return found


def basic(credential: Credential) -> str:
    """The value of Authorization (RFC 7617)."""
    text = f"{credential.username}:{credential.password}"
    return "Basic " + base64.b64encode(text.encode()).decode()


def matching(credentials: Sequence[Credential], registry: str, path: str) -> list[Credential]:
    """Those for this repository, the longest prefix first."""
    wanted = (*_host_and_path(f"{registry}/{path}"),)
    fits = [one for one in credentials if _fits(_host_and_path(one.registry), wanted)]
    return sorted(fits, key=lambda one: len(one.registry), reverse=True)


def _host_and_path(text: str) -> tuple[str, Sequence[str]]:
    host, _, path = text.partition("/")
    return host, [part for part in path.split("/") if part]


def _fits(given: tuple[str, Sequence[str]], wanted: tuple[str, Sequence[str]]) -> bool:
    """A `*` stands for one part of a host, as in `*.example.com`."""
    labels, wanted_labels = given[0].split("."), wanted[0].split(".")
    if len(labels) != len(wanted_labels) or not all(map(_label_fits, wanted_labels, labels)):
        return False
    return list(wanted[1][: len(given[1])]) == list(given[1])


def _label_fits(label: str, pattern: str) -> bool:
    return label == pattern or ("*" in pattern and fnmatchcase(label, pattern.replace("[", "[[]")))


def credentials_of(secret: Secret) -> list[Credential]:
    """What a pull secret holds. Raises ImageFault(Unauthorized) that names the secret and never its content."""
    what = f"the pull secret {secret.metadata.namespace}/{secret.metadata.name}"
    keys = {CONFIG_JSON: CONFIG_JSON_KEY, CONFIG_OLD: CONFIG_OLD_KEY}
    key = keys.get(secret.type)
    if key is None:
        kinds = " or ".join(keys)
        raise ImageFault("Unauthorized", f"{what} has the type {secret.type or 'Opaque'!r}: it must be {kinds}")
    if key not in secret.data:
        raise ImageFault("Unauthorized", f"{what} has no {key} in its data")
    try:
        return parse(secret.data[key], wrapped=key == CONFIG_JSON_KEY)
    except BadCredentials as bad:
        raise ImageFault("Unauthorized", f"{what}: {key}: {bad}") from None


def parse(data: bytes, wrapped: bool = True) -> list[Credential]:
    """docker's config.json; the older .dockercfg is only its `auths`. Raises BadCredentials."""
    if len(data) > MAX_FILE:
        raise BadCredentials(f"it has {len(data)} bytes; at most {MAX_FILE} are read")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise BadCredentials("it is not valid JSON") from None
    table = document.get("auths", {}) if wrapped and isinstance(document, dict) else document
    if not isinstance(table, dict):
        raise BadCredentials('it must be {"auths": {"registry": {"auth": "..."}}}' if wrapped else "it is no object")
    if len(table) > MAX_CREDENTIALS:
        raise BadCredentials(f"it lists {len(table)} registries; at most {MAX_CREDENTIALS} are read")
    return [one for name, entry in table.items() if (one := _entry(name, entry)) is not None]


def _entry(name: str, entry: Any) -> Credential | None:
    if not isinstance(entry, dict):
        raise BadCredentials(f"the entry of {name[:200]!r} must be an object")
    fields = {key: entry.get(key) or "" for key in ("username", "password", "auth", "identitytoken")}
    for key, value in fields.items():
        if not isinstance(value, str):
            raise BadCredentials(f"{key} of {name[:200]!r} must be a string")
    username, password = fields["username"], fields["password"]
    if fields["auth"]:
        username, password = _decoded(name, fields["auth"])
    if fields["identitytoken"]:
        raise BadCredentials(f"{name[:200]!r} has an identitytoken, which is not supported: give username and password")
    if not username and not password:
        return None  # docker writes empty entries where a helper keeps the password
    if max(len(username), len(password)) > MAX_LENGTH or not (username + password).isprintable():
        raise BadCredentials(f"the user or password of {name[:200]!r} is too long or not printable")
    return Credential(registry_of(name), username, password)


def _decoded(name: str, auth: str) -> tuple[str, str]:
    try:
        username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise BadCredentials(f"auth of {name[:200]!r} is not base64 of user:password") from None
    if not colon:
        raise BadCredentials(f"auth of {name[:200]!r} is not base64 of user:password: it has no colon")
    return username, password.rstrip("\0")  # some writers pad


def registry_of(name: str) -> str:
    """`https://index.docker.io/v1/` -> docker.io; `quay.io/team` stays."""
    rest = re.sub(r"^https?://", "", name.strip(), flags=re.IGNORECASE).rstrip("/")
    rest = re.sub(r"/v[12]$", "", rest)
    host, slash, path = rest.partition("/")
    host = host.lower()
    return (DEFAULT_DOMAIN if host in DOCKER_HOSTS else host) + slash + path


class NodeCredentials:
    """The node's own file in docker's format; read again when it changes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._held: list[Credential] = []

    def read(self) -> list[Credential]:
        """Blocks for a small file. A missing one holds none. Raises ImageFault."""
        if self._path is None:
            return []
        try:
            with self._path.open("rb") as file:
                state = os.fstat(file.fileno())
                seen = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_mode)
                if seen != self._seen:
                    self._held, self._seen = self._parsed(file.read(MAX_FILE + 1), state.st_mode), seen
        except FileNotFoundError:
            self._held, self._seen = [], ()
        except OSError as error:
            raise ImageFault("Unauthorized", f"{self._path} cannot be read: {error.strerror}") from error
        return self._held

    def _parsed(self, data: bytes, mode: int) -> list[Credential]:
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            raise ImageFault(
                "Unauthorized", f"{self._path} holds passwords and everybody can read or write it: chmod 600 it"
            )
        try:
            return parse(data)
        except BadCredentials as bad:
            raise ImageFault("Unauthorized", f"{self._path}: {bad}") from None
