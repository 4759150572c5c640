"""A master's configuration: a YAML file, flags that win over it, and what is wrong with either."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.master.dispatcher.nodes import Ranges
from shoal.master.scheduler.profiles import BUILT_IN, Profile, parse_profiles
from shoal.proto.errors import nearest
from shoal.proto.logs import FORMATS
from shoal.proto.settings_file import SettingsFileError, read_settings

LISTS = ("listen", "http", "etcd_endpoints")
TEXTS = (
    "name", "advertise", "ca", "certificate", "key", "etcd_ca", "etcd_certificate", "etcd_key", "cluster_cidr",
    "log_format", "decision_log",
)  # fmt: skip
NUMBERS = {"heartbeat_ms": 50, "deaths_kept_hours": 1, "decision_log_mib": 2}  # and the least that each may be
REQUIRED = ("name", "listen", "advertise", "ca", "certificate", "key", "etcd_endpoints")
DEFAULT_CIDR = "10.244.0.0/16"
HELP = {
    "name": "this master's name, for logs and metrics",
    "listen": "HOST:PORT to serve on, and nowhere else; may be repeated",
    "advertise": "HOST:PORT where agents and other masters reach this one",
    "http": "HOST:PORT for /metrics, /healthz, /readyz and /sd/nodes; may be repeated",
    "ca": "file with the cluster's certificate authority",
    "certificate": "file with this master's certificate",
    "key": "file with its key",
    "etcd_endpoints": "HOST:PORT of etcd; may be repeated",
    "etcd_ca": "file with etcd's certificate authority; without it etcd is spoken to in plain text",
    "etcd_certificate": "file with the certificate for etcd",
    "etcd_key": "file with its key",
    "cluster_cidr": "addresses of all pods; each node gets a /24 of it: a /16 is enough for 256 nodes, a /11 for 8,192",
    "heartbeat_ms": "the least period of agents' heartbeats, in milliseconds",
    "deaths_kept_hours": "for how long death certificates are kept, in hours",
    "log_format": "logfmt or json",
    "decision_log": "file for the scheduler's decisions, for `shoal scheduler replay`; without it none are kept",
    "decision_log_mib": "what it may take on disk with the file before it, FILE.1, in MiB (64)",
}


class ConfigError(Exception):
    """What is wrong with the configuration, where, and what to do."""


@dataclass(frozen=True, slots=True)
class Config:
    """Addresses are host:port, files are paths."""

    name: str
    listen: tuple[str, ...]
    advertise: str
    ca: Path
    certificate: Path
    key: Path
    etcd_endpoints: tuple[str, ...]
    etcd_ca: Path | None = None
    etcd_certificate: Path | None = None
    etcd_key: Path | None = None
    http: tuple[str, ...] = ()
    cluster_cidr: str = DEFAULT_CIDR
    heartbeat_ms: int = 5000
    deaths_kept_hours: int = 7 * 24
    log_format: str = "logfmt"
    decision_log: Path | None = None
    decision_log_mib: int = 64
    loops: bool = True
    profiles: Mapping[str, Profile] = field(default_factory=lambda: BUILT_IN)


def load(arguments: Sequence[str]) -> Config:
    """The configuration that flags and file give together. Raises ConfigError; SystemExit for --help and bad flags."""
    flags = vars(_parser().parse_args(arguments))
    path = flags.pop("config")
    values: dict[str, Any] = _read(Path(path)) if path else {}
    values.update({name: value for name, value in flags.items() if value is not None})
    return parse(values, path or "the flags")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shoal.master.main", description="Runs one master of a Shoal cluster."
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; flags win over it")
    for name in (*TEXTS, *NUMBERS):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, type=int if name in NUMBERS else str, help=HELP[name])
    for name in LISTS:
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, action="append", help=HELP[name])
    return parser


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = read_settings(path)
    except SettingsFileError as fault:
        raise ConfigError(str(fault)) from fault
    etcd = tree.pop("etcd", {})
    if not isinstance(etcd, dict):
        raise ConfigError(f"{path}: etcd must hold endpoints and, with TLS, ca, certificate and key")
    return tree | {f"etcd_{name}": value for name, value in etcd.items()}


def parse(values: Mapping[str, Any], source: str) -> Config:
    """Checks every value. Raises ConfigError with all problems, one a line."""
    problems: list[str] = []
    known = {*LISTS, *TEXTS, *NUMBERS, "loops", "profiles"}
    for name in values:
        if name not in known:
            meant = nearest(str(name), known)
            problems.append(f"{name}: there is no such setting" + (f"; did you mean {meant}?" if meant else ""))
    problems += [f"{name}: is missing: {HELP[name]}" for name in REQUIRED if not values.get(name)]
    made = {name: _value(name, values[name], problems) for name in sorted(known & values.keys())}
    problems += _together(made)
    if problems:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems))
    return Config(**made)


def _value(name: str, value: Any, problems: list[str]) -> Any:
    if name in LISTS:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            problems.append(f"{name}: must be a list of HOST:PORT")
            return ()
        problems += [f"{name}: {item!r} is not HOST:PORT" for item in value if not is_address(item)]
        return tuple(value)
    if name in NUMBERS:
        if not isinstance(value, int) or isinstance(value, bool) or value < NUMBERS[name]:
            problems.append(f"{name}: must be a whole number of at least {NUMBERS[name]}, it is {value!r}")
        return value
    if name == "loops":
        return bool(value)
    if name == "profiles":
        profiles, wrong = parse_profiles(value)
        problems += [f"profiles: {text}" for text in wrong]
        return profiles
    if not isinstance(value, str):
        problems.append(f"{name}: must be a text, it is {value!r}")
        return ""
    is_path = name.rpartition("_")[2] in ("ca", "certificate", "key") or name == "decision_log"
    return Path(value) if is_path else value


def _together(made: Mapping[str, Any]) -> list[str]:
    problems = []
    if "advertise" in made and not is_address(made["advertise"]):
        problems.append(f"advertise: {made['advertise']!r} is not HOST:PORT")
    if made.get("log_format", "logfmt") not in FORMATS:
        problems.append(f"log_format: use one of {', '.join(FORMATS)}")
    given = [name for name in ("etcd_ca", "etcd_certificate", "etcd_key") if made.get(name)]
    if given and len(given) != 3:
        problems.append(f"etcd: TLS needs ca, certificate and key; only {', '.join(given)} given")
    try:
        Ranges(made.get("cluster_cidr", DEFAULT_CIDR))
    except ValueError as error:
        problems.append(f"cluster_cidr: {error}; write it as {DEFAULT_CIDR}")
    return problems


def is_address(text: str) -> bool:
    """HOST:PORT, with an IPv6 host in brackets."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return False
    return bool(host and colon) and port.isdecimal() and 0 <= int(port) <= 65535
