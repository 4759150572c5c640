"""The configuration file with the clusters that the command knows (~/.config/shoal/config, or $SHOAL_CONFIG).

current-context: dev
contexts:
- name: dev
  servers: ["127.0.0.1:7600"]
  ca: ca.crt               # a path (relative ones from this file's folder), or the PEM text itself
  certificate: admin.crt
  key: admin.key
  namespace: default       # optional
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.deploy.cli.failures import CommandError

PEM = "-----BEGIN"
_REQUIRED = ("servers", "ca", "certificate", "key")
_KNOWN = frozenset({"name", "namespace", *_REQUIRED})


@dataclass(frozen=True, slots=True)
class Context:
    """One cluster and the identity to use there. `ca`, `certificate` and `key` are absolute paths or PEM texts."""

    name: str
    servers: tuple[str, ...]
    ca: str
    certificate: str
    key: str
    namespace: str = "default"

    def pem(self, what: str) -> bytes:
        """The bytes of "ca", "certificate" or "key". Raises CommandError."""
        value: str = getattr(self, what)
        if value.startswith(PEM):
            return value.encode()
        try:
            return Path(value).read_bytes()
        except OSError as error:
            reason = error.strerror or str(error)
            raise CommandError(f"context {self.name}: cannot read the {what} file {value}: {reason}") from None


@dataclass(slots=True)
class Config:
    """The whole file."""

    path: Path
    current: str = ""
    contexts: dict[str, Context] = field(default_factory=dict)

    def choose(self, name: str | None) -> Context:
        """The context of that name, else the current one. Raises CommandError."""
        wanted = name or self.current
        if not self.contexts:
            raise CommandError(
                f"no cluster is configured in {self.path}: `shoal up` starts one on this machine,"
                " or write a context for yours there"
            )
        if not wanted:
            raise CommandError(f"{self.path} has no current-context: use --context or `shoal config use-context`")
        if wanted not in self.contexts:
            raise CommandError(f'there is no context "{wanted}" in {self.path}: it has {", ".join(self.contexts)}')
        return self.contexts[wanted]


def config_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the file is."""
    named = environment.get("SHOAL_CONFIG")
    if named:
        return Path(named).absolute()
    home = environment.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "shoal/config"


def load(path: Path | None = None) -> Config:
    """Reads the file; an empty configuration when there is none. Raises CommandError."""
    path = path or config_path()
    try:
        text = path.read_text()
    except FileNotFoundError:
        return Config(path)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    import yaml

    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CommandError(f"{path} is not valid YAML: {error}") from None
    return _parse(path, tree)


def _parse(path: Path, tree: Any) -> Config:
    if tree is None:
        return Config(path)
    entries = tree.get("contexts") if isinstance(tree, dict) else None
    current = tree.get("current-context") or "" if isinstance(tree, dict) else ""
    if not isinstance(entries, list) or not isinstance(current, str):
        raise CommandError(f"{path}: must hold current-context (a name) and contexts (a list)")
    config = Config(path, current)
    for index, entry in enumerate(entries):
        context = _context(path, f"contexts[{index}]", entry)
        if context.name in config.contexts:
            raise CommandError(f"{path}: contexts[{index}].name: {context.name} is given twice")
        config.contexts[context.name] = context
    return config


def _context(path: Path, where: str, entry: Any) -> Context:
    if not isinstance(entry, dict):
        raise CommandError(f"{path}: {where}: must be a set of fields with name, {', '.join(_REQUIRED)}")
    for key in entry:
        if key not in _KNOWN:
            raise CommandError(f"{path}: {where}.{key}: unknown field; known are {', '.join(sorted(_KNOWN))}")
    servers = entry.get("servers")
    if not isinstance(servers, list) or not servers or not all(isinstance(s, str) and ":" in s for s in servers):
        raise CommandError(f'{path}: {where}.servers: must be a list of host:port, such as ["127.0.0.1:7600"]')
    values: dict[str, str] = {}
    for key in ("name", "ca", "certificate", "key"):
        value = entry.get(key)
        if not isinstance(value, str) or not value:
            raise CommandError(f"{path}: {where}.{key}: is missing or not a text")
        values[key] = value if key == "name" or value.startswith(PEM) else str(path.parent / Path(value).expanduser())
    namespace = entry.get("namespace", "default")
    if not isinstance(namespace, str) or not namespace:
        raise CommandError(f"{path}: {where}.namespace: must be a text")
    return Context(servers=tuple(servers), namespace=namespace, **values)


def save(config: Config) -> None:
    """Writes the file, readable by its owner only. Raises CommandError."""
    import yaml

    tree = {"current-context": config.current, "contexts": [_entry(context) for context in config.contexts.values()]}
    new = config.path.with_name(f".{config.path.name}.{os.getpid()}.new")
    try:
        config.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            yaml.safe_dump(tree, file, sort_keys=False)
        os.replace(new, config.path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise CommandError(f"cannot write {config.path}: {error.strerror or error}") from None


def put(context: Context, *, path: Path | None = None, use: bool = True) -> None:
    """Adds or replaces a context in the file, and makes it the current one. Raises CommandError."""
    config = load(path)
    config.contexts[context.name] = context
    if use or not config.current:
        config.current = context.name
    save(config)


def remove(name: str, *, path: Path | None = None) -> None:
    """Takes a context out of the file, when it is there. Raises CommandError."""
    config = load(path)
    if config.contexts.pop(name, None) is None:
        return
    if config.current == name:
        config.current = next(iter(config.contexts), "")
    save(config)


def _entry(context: Context) -> dict[str, Any]:
    return {
        "name": context.name,
        "servers": list(context.servers),
        "ca": context.ca,
        "certificate": context.certificate,
        "key": context.key,
        **({"namespace": context.namespace} if context.namespace != "default" else {}),
    }
