"""The settings of node pressure (`eviction`, `image_gc` of agent.yaml), with the kubelet's defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.agent.pressure import DISK, IMAGE_DISK, INODES, MEMORY, PIDS, SHARES, Level, Threshold
from shoal.proto import quantity

SIGNALS = (MEMORY, DISK, IMAGE_DISK, INODES, PIDS)
DEFAULT_HARD: Mapping[str, Any] = {MEMORY: "100Mi", DISK: "10%", IMAGE_DISK: "15%", INODES: "5%", PIDS: "5%"}
TABLES = ("hard", "soft", "soft_grace", "minimum_reclaim")
PERIODS = ("max_pod_grace", "transition_period")
PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,3})?)%")
TIME = re.compile(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6}(?:\.\d{1,3})?)s)?")


@dataclass(frozen=True, slots=True)
class Eviction:
    thresholds: Sequence[Threshold]
    max_pod_grace: float = 60.0  # seconds, of pods that go for a soft threshold
    transition_period: float = 300.0  # a condition stays so long after its cause

    def hard(self, signal: str, capacity: int) -> int:
        """What a hard threshold keeps off the pods; 0 without one."""
        levels = (one.level.of(capacity) for one in self.thresholds if one.signal == signal and one.hard)
        return next(levels, 0)


@dataclass(frozen=True, slots=True)
class ImageGC:
    """Images that nobody uses go once more than `high` percent of the disk is used, until `low` percent is."""

    high: float = 85.0
    low: float = 80.0
    min_age: float = 120.0  # seconds; what was used since then stays


def parse_eviction(table: Mapping[str, Any]) -> Eviction:
    """Raises ValueError with every mistake. A signal set to 0 has no threshold."""
    mistakes = [f"{name} is not a setting; known are {', '.join((*TABLES, *PERIODS))}" for name in _unknown(table)]
    tables: dict[str, dict[str, Any]] = {}
    for name in TABLES:
        given = table.get(name, {})
        if not isinstance(given, Mapping):
            mistakes.append(f"{name} must be a mapping such as {MEMORY}: 100Mi, not {given!r}")
            given = {}
        mistakes += [f"{name}: {key} is no signal; known are {', '.join(SIGNALS)}" for key in given.keys() - {*SIGNALS}]
        reader = seconds if name == "soft_grace" else level
        tables[name] = {}
        for key, value in {**(DEFAULT_HARD if name == "hard" else {}), **given}.items():
            _read(tables[name], mistakes, f"{name}: {key}", key, reader, value)
    periods: dict[str, float] = {}
    for name in PERIODS:
        if name in table:
            _read(periods, mistakes, name, name, seconds, table[name])
    mistakes += _pairs(tables)
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return Eviction(_thresholds(tables), **periods)


def _unknown(table: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in table if name not in (*TABLES, *PERIODS)]


def _read(into: dict[str, Any], mistakes: list[str], what: str, key: str, reader: Any, value: Any) -> None:
    try:
        into[key] = reader(value)
    except ValueError as fault:
        mistakes.append(f"{what}: {fault}")


def _pairs(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Soft thresholds and their graces belong together, and only a soft one above the hard one has a meaning."""
    soft, graces, hard = tables["soft"], tables["soft_grace"], tables["hard"]
    wrong = [f"soft: {name} needs a grace period in soft_grace, such as 1m30s" for name in soft if name not in graces]
    wrong += [f"soft_grace: {name} has no threshold in soft" for name in graces if name not in soft]
    for name in soft.keys() & hard.keys():
        over, under = soft[name], hard[name]
        alike = bool(over.amount) == bool(under.amount)
        if alike and (over.amount, over.percent) <= (under.amount, under.percent):
            wrong.append(f"soft: {name} must be more than the hard threshold, else it is never met first")
    return wrong


def _thresholds(tables: Mapping[str, Mapping[str, Any]]) -> tuple[Threshold, ...]:
    found = []
    for which in ("hard", "soft"):
        for name in SIGNALS:
            wanted = tables[which].get(name, Level())
            if wanted == Level():
                continue
            grace = tables["soft_grace"][name] if which == "soft" else None
            reclaim = tables["minimum_reclaim"].get(name, Level())
            found += [Threshold(one, wanted, grace, reclaim) for one in (name, SHARES.get(name, "")) if one]
    return tuple(found)


def level(value: Any) -> Level:
    """ "100Mi" or "10%". Raises ValueError."""
    text = str(value).strip()
    share = PERCENT.fullmatch(text)
    if share is None:
        amount = quantity.whole(text)
        if amount < 0:
            raise ValueError(f"{text!r} is less than nothing")
        return Level(amount)
    if float(share[1]) >= 100:
        raise ValueError(f"{text!r} leaves nothing: a share of the capacity is below 100%")
    return Level(percent=float(share[1]))


def seconds(value: Any) -> float:
    """ "1m30s", or a number of seconds. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 10**7:
        return float(value)
    form = TIME.fullmatch(value) if isinstance(value, str) and value else None
    if form is None:
        raise ValueError(f"{value!r} is not a time such as 90s or 1m30s")
    hours, minutes, rest = (float(part or 0) for part in form.groups())
    return hours * 3600 + minutes * 60 + rest


def parse_image_gc(table: Mapping[str, Any]) -> ImageGC:
    """Raises ValueError."""
    known = ("high", "low", "min_age")
    unknown = [str(name) for name in table if name not in known]
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is not a setting; known are {', '.join(known)}")
    shares = {}
    for name in ("high", "low"):
        value = table.get(name, getattr(ImageGC(), name))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
            raise ValueError(f"{name} must be a percentage of the disk from 0 to 100, not {value!r}")
        shares[name] = float(value)
    if shares["low"] >= shares["high"]:
        raise ValueError(f"low ({shares['low']:g}) must be below high ({shares['high']:g})")
    return ImageGC(**shares, min_age=seconds(table.get("min_age", ImageGC().min_age)))


DEFAULT_EVICTION = parse_eviction({})
