"""How a node reaches registries: mirrors, insecure ones, private authorities, patience. Pure.

registries:
  docker.io: {mirrors: ["http://10.0.0.1:5000"]}
  registry.example.com: {ca: /etc/shoal/registry-ca.crt}
  10.0.0.1:5000: {insecure: true}
  "*": {mirrors: [...]}      # for every registry that is not listed
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shoal.agent.images.names import DEFAULT_DOMAIN, is_domain
from shoal.agent.images.streams import MIB

DEFAULT_HOST = "registry-1.docker.io"  # where docker.io's registry is
ANY = "*"
KEYS = ("mirrors", "insecure", "ca")
MAX_MIRRORS = 16


@dataclass(frozen=True, slots=True)
class Registry:
    """`mirrors`: URLs, tried in order before the registry itself. `insecure`: certificates are not checked, and http
    serves when https does not. `ca`: a PEM file to trust besides the system's own."""

    mirrors: Sequence[str] = ()
    insecure: bool = False
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds, and how often something is tried."""

    connect_s: float = 10.0
    stall_s: float = 30.0  # without a byte
    answer_s: float = 60.0  # for a whole small answer
    attempts: int = 4
    backoff_s: float = 0.5  # doubled each time
    longest_wait_s: float = 8.0  # a registry that asks for more is left to the caller


@dataclass(frozen=True, slots=True)
class Settings:
    registries: Mapping[str, Registry] = field(default_factory=dict)
    credentials: Path | None = None  # docker's config.json
    reserve: int = 128 * MIB  # bytes of the disk that no pull takes, or a twentieth of it if that is less
    patience: Patience = Patience()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place that serves a registry's content. `schemes` are tried in order."""

    host: str  # host[:port]
    prefix: str = ""  # of the path, before /v2/
    schemes: Sequence[str] = ("https",)
    verify: bool = True
    ca: Path | None = None
    registry: str = ""  # as credentials name it

    def __str__(self) -> str:
        return self.registry or self.host


def endpoints(registries: Mapping[str, Registry], domain: str) -> list[Endpoint]:
    """The mirrors of a registry, then the registry itself."""
    settings = registries.get(domain) or registries.get(ANY) or Registry()
    mirrors = [_mirror(registries, url) for url in settings.mirrors]
    return [*mirrors, own_endpoint(registries, domain)]


def own_endpoint(registries: Mapping[str, Registry], domain: str) -> Endpoint:
    """Plain http only for what is configured so, or is this very machine (and has no `ca`), as docker does."""
    settings = registries.get(domain) or registries.get(ANY) or Registry()
    host = DEFAULT_HOST if domain == DEFAULT_DOMAIN else domain
    lax = settings.insecure or (settings.ca is None and is_loopback(host))
    return Endpoint(host, "", ("https", "http") if lax else ("https",), not lax, settings.ca, domain)


def _mirror(registries: Mapping[str, Registry], url: str) -> Endpoint:
    parts = urlsplit(url)
    settings = registries.get(parts.netloc) or Registry()
    lax = settings.insecure or (settings.ca is None and is_loopback(parts.netloc))
    return Endpoint(parts.netloc, parts.path.rstrip("/"), (parts.scheme,), not lax, settings.ca, parts.netloc)


def is_loopback(host: str) -> bool:
    """Of host[:port]."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def parse(table: Any) -> Mapping[str, Registry]:
    """The configuration's `registries`. Raises ValueError that says where and what to write."""
    if not isinstance(table, dict):
        raise ValueError("must be a table of registries, such as {docker.io: {mirrors: [http://10.0.0.1:5000]}}")
    return {_name(name): _registry(str(name), value) for name, value in table.items()}


def _name(name: Any) -> str:
    if name != ANY and not (isinstance(name, str) and is_domain(name)):
        raise ValueError(f"{name!r} is not a registry's host[:port], nor '*' for all others")
    return str(name)


def _registry(name: str, value: Any) -> Registry:
    if not isinstance(value, dict) or any(key not in KEYS for key in value):
        raise ValueError(f"{name}: a registry has {', '.join(KEYS)}, not {value!r}")
    mirrors, insecure, ca = value.get("mirrors", []), value.get("insecure", False), value.get("ca")
    if not isinstance(mirrors, list) or len(mirrors) > MAX_MIRRORS:
        raise ValueError(f"{name}.mirrors must be a list of at most {MAX_MIRRORS} URLs")
    if not isinstance(insecure, bool):
        raise ValueError(f"{name}.insecure must be true or false, not {insecure!r}")
    if ca is not None and (not isinstance(ca, str) or not ca.startswith("/")):
        raise ValueError(f"{name}.ca must be the absolute path of a PEM file, not {ca!r}")
    return Registry(tuple(mirror(f"{name}.mirrors", url) for url in mirrors), insecure, Path(ca) if ca else None)


def mirror(where: str, url: Any) -> str:
    """Raises ValueError."""
    parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
    plain = not (parts.username or parts.query or parts.fragment)
    if parts.scheme not in ("http", "https") or not is_domain(parts.netloc) or not plain:
        raise ValueError(f"{where}: {url!r} is not a mirror's URL, such as https://mirror.example.com:5000")
    return str(url)
