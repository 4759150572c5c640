"""The agent's configuration: a YAML file and flags, checked as a whole. All mistakes are reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from shoal.agent.eviction import DEFAULT_EVICTION, Eviction, ImageGC, parse_eviction, parse_image_gc
from shoal.agent.images import settings as registries
from shoal.agent.images.settings import Registry
from shoal.agent.machine import Capacity
from shoal.agent.machines import DEFAULT_PODS, Overrides
from shoal.agent.reserve import RESOURCES
from shoal.proto import names, quantity
from shoal.proto.logs import FORMATS
from shoal.proto.rules.labels import MAX_LABELS
from shoal.proto.rules.resources import GPU, GPU_MILLI, LARGEST, not_extended
from shoal.proto.settings_file import SettingsFileError, read_settings

DEFAULT_DATA = "/var/lib/shoal"
DEFAULT_RUN = "/run/shoal"
DEFAULT_CGROUP = "shoal"
MOST_GPUS = 64  # each is a device of its own to the scheduler
AMOUNTS = ("cpu", "memory", "pods", "ephemeral-storage")
KEYS = {
    "node": str,
    "masters": list,
    "ca": str,
    "certificate": str,
    "key": str,
    "address": str,
    "uplink": str,
    "data": str,
    "run": str,
    "cgroup": str,
    "http": list,
    "capacity": dict,
    "reserved": dict,
    "extended_resources": dict,
    "labels": dict,
    "boot_id": str,
    "spawner": str,
    "resolv_conf": str,
    "registries": dict,
    "registry_credentials": str,
    "eviction": dict,
    "image_gc": dict,
    "log_level": str,
    "log_format": str,
}
REQUIRED = ("node", "masters", "ca", "certificate", "key", "address")


class ConfigError(Exception):
    """The configuration cannot be used; one line per mistake."""


@dataclass(frozen=True, slots=True)
class Config:
    node: str
    masters: Sequence[str]
    ca: Path
    certificate: Path
    key: Path
    address: str
    uplink: str = ""  # "": the link of the default route
    data: Path = Path(DEFAULT_DATA)
    run: Path = Path(DEFAULT_RUN)
    cgroup: str = DEFAULT_CGROUP
    http: Sequence[tuple[str, int]] = ()
    capacity: Mapping[str, int] = field(default_factory=dict)  # cpu in thousandths, the others whole
    reserved: Mapping[str, int] = field(default_factory=dict)  # likewise, and pids; what is missing has a default
    extended_resources: Mapping[str, int] = field(default_factory=dict)  # devices, by domain/name
    labels: Mapping[str, str] = field(default_factory=dict)
    boot_id: str = ""
    spawner: str = "own"  # the agent starts it; "external": a unit of its own does
    resolv_conf: Path = Path("/etc/resolv.conf")
    registries: Mapping[str, Registry] = field(default_factory=dict)
    registry_credentials: Path | None = None  # docker's config.json
    eviction: Eviction = DEFAULT_EVICTION
    image_gc: ImageGC = field(default_factory=ImageGC)
    log_level: str = "INFO"
    log_format: str = "logfmt"

    def overrides(self) -> Overrides:
        get = self.capacity.get
        return Overrides(get("cpu"), get("memory"), get("pods"), get("ephemeral-storage"), self.boot_id)

    def dev_capacity(self) -> Capacity | None:
        """The whole capacity, when all of it is told: that is a node of a development cluster."""
        if not {"cpu", "memory", "ephemeral-storage"} <= self.capacity.keys():
            return None
        pods = self.capacity.get("pods", DEFAULT_PODS)
        return Capacity(self.capacity["cpu"], self.capacity["memory"], pods, self.capacity["ephemeral-storage"])


def load(path: Path | None, flags: Mapping[str, Any]) -> Config:
    """The file's settings with the flags over them. Raises ConfigError."""
    settings: dict[str, Any] = {}
    if path is not None:
        try:
            settings = read_settings(path)
        except SettingsFileError as fault:
            raise ConfigError(str(fault)) from fault
    settings.update({name: value for name, value in flags.items() if value not in (None, [], {})})
    return check(settings, str(path or "flags"))


def check(settings: Mapping[str, Any], source: str) -> Config:
    """Raises ConfigError with every mistake."""
    errors = [f"{source}: {text}" for text in _mistakes(settings)]
    values: dict[str, Any] = {}
    for name, value in settings.items():
        try:
            values[name] = _value(name, value)
        except (ValueError, TypeError, AttributeError) as fault:
            errors.append(f"{source}: {name}: {fault}")
    if errors:
        raise ConfigError("\n".join(errors))
    return Config(**values)


def _mistakes(settings: Mapping[str, Any]) -> list[str]:
    known = ", ".join(sorted(KEYS))
    unknown = [f"{name} is not a setting; known are {known}" for name in settings if name not in KEYS]
    missing = [f"{name} is missing" for name in REQUIRED if not settings.get(name)]
    wrong = [
        f"{name} must be a {KEYS[name].__name__}, not {value!r}"
        for name, value in settings.items()
        if name in KEYS and not isinstance(value, KEYS[name])
    ]
    return unknown + missing + wrong


def _value(name: str, value: Any) -> Any:
    match name:
        case "ca" | "certificate" | "key" | "data" | "run" | "resolv_conf" | "registry_credentials":
            return Path(value)
        case "address":
            return str(IPv4Address(value))  # other nodes route to it
        case "masters":
            return tuple("{}:{}".format(*host_port(item)) for item in value)
        case "http":
            return tuple(host_port(item) for item in value)
        case "capacity":
            return amounts(value)
        case "reserved":
            return amounts(value, RESOURCES)
        case "extended_resources":
            return devices(value)
        case "eviction":
            return parse_eviction(value)
        case "image_gc":
            return parse_image_gc(value)
        case "registries":
            return registries.parse(value)
        case "labels":
            return node_labels(value)
        case "log_level":
            if value.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
                raise ValueError(f"{value!r} is not one of DEBUG, INFO, WARNING, ERROR")
            return value.upper()
        case "log_format":
            if value not in FORMATS:
                raise ValueError(f"{value!r} is not one of {', '.join(FORMATS)}")
            return value
        case "spawner":
            if value not in ("own", "external"):
                raise ValueError(f"{value!r} is neither own (the agent starts it) nor external (a unit does)")
            return value
        case "cgroup":
            parts = value.split("/")
            if not parts[0] or ".." in parts or not any(part.startswith("shoal") for part in parts):
                raise ValueError(f"{value!r} must be a relative path with a part that begins with 'shoal'")
            return value
    return value


def host_port(text: Any) -> tuple[str, int]:
    """ "10.0.0.1:7000" or "[::1]:7000". Raises ValueError."""
    host, colon, port = str(text).rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not host:port, such as 10.0.0.1:7000")
    return host, int(port)


def amounts(table: Mapping[str, Any], known: Sequence[str] = AMOUNTS) -> dict[str, int]:
    """cpu in thousandths, the others whole. Raises ValueError."""
    unknown = [name for name in table if name not in known]
    if unknown:
        raise ValueError(f"{', '.join(map(str, unknown))} is not a resource of a node; known are {', '.join(known)}")
    return {
        name: quantity.milli(str(text)) if name == "cpu" else quantity.whole(str(text)) for name, text in table.items()
    }


def node_labels(table: Mapping[str, Any]) -> dict[str, str]:
    """Raises ValueError, with the first mistake."""
    if len(table) > MAX_LABELS:
        raise ValueError(f"has {len(table)} entries: at most {MAX_LABELS} are allowed")
    found = {str(key): str(label) for key, label in table.items()}
    for key, label in found.items():
        wrong = names.not_label_key(key) or names.not_label_value(label)
        if wrong is not None:
            raise ValueError(f"{key}: {wrong}")
    return found


def devices(table: Mapping[str, Any]) -> dict[str, int]:
    """Whole numbers of devices of each sort. Raises ValueError."""
    found: dict[str, int] = {}
    for name, text in table.items():
        if name == GPU_MILLI:
            raise ValueError(f"{name} is what pods ask for: tell how many whole devices there are with {GPU}")
        wrong = not_extended(str(name))
        if wrong is not None:
            raise ValueError(wrong)
        amount = quantity.parse(str(text))
        most = MOST_GPUS if name == GPU else LARGEST
        if amount.nanos % quantity.NANOS_PER_UNIT or not 0 <= amount.whole() <= most:
            raise ValueError(f"{name} must be a whole number from 0 to {most}, but it is {text}")
        found[str(name)] = amount.whole()
    return found
