"""Scheduling profiles: the weights of the parts of a score. A pod names its profile with spec.schedulerName."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any

from shoal.proto import names
from shoal.proto.errors import nearest

DEFAULT_PROFILE = "default-scheduler"
BASE = "base"  # in a profile's settings: the one whose weights it begins with
MAX_WEIGHT = 1e9


@dataclass(frozen=True, slots=True)
class Profile:
    """Weights, in the order in which the parts are summed. The defaults let one sibling outweigh what least, balanced
    and images can say together, a preference many siblings, and a soft taint everything."""

    least: float = 0.5
    most: float = 0.0
    balanced: float = 0.25
    images: float = 0.2
    siblings: float = 1.0
    preference: float = 16.0
    company: float = 16.0
    spread: float = 2.0
    devices: float = 64.0
    taints: float = 65536.0


PARTS: tuple[str, ...] = tuple(part.name for part in fields(Profile))
BUILT_IN: Mapping[str, Profile] = {
    DEFAULT_PROFILE: Profile(),
    "bin-packing": Profile(least=0.0, most=0.5, balanced=0.0, siblings=0.0),
    "balanced": Profile(least=0.0, balanced=0.75),
}


def parse_profiles(tree: Any) -> tuple[dict[str, Profile], list[str]]:
    """The built-in profiles with those of a configuration, NAME: {base: OTHER, PART: WEIGHT, ...}, over them; and what
    is wrong with it. A profile begins with `base`, else with the built-in one of its name, else with the default."""
    found, problems = dict(BUILT_IN), list[str]()
    if not isinstance(tree, dict):
        return found, ["must hold a profile's weights under its name, such as packed: {base: bin-packing}"]
    for name, settings in tree.items():
        wrong = names.not_dns_subdomain(name) if isinstance(name, str) else f"{name!r} is not a name"
        if wrong is not None:
            problems.append(wrong)
        elif not isinstance(settings, dict):
            problems.append(f"{name}: must hold weights, such as least: 0.5, and may name its base")
        else:
            found[name] = _parse(name, settings, problems)
    return found, problems


def _parse(name: str, settings: Mapping[Any, Any], problems: list[str]) -> Profile:
    base = settings.get(BASE, name if name in BUILT_IN else DEFAULT_PROFILE)
    if base not in BUILT_IN:
        problems.append(f"{name}.{BASE}: {base!r} is none of {', '.join(BUILT_IN)}")
    weights: dict[str, float] = {}
    for part, weight in settings.items():
        if part == BASE:
            continue
        if part not in PARTS:
            meant = nearest(str(part), PARTS)
            advice = f"did you mean {meant}?" if meant else f"there are {', '.join(PARTS)}"
            problems.append(f"{name}: {part} is no part of a score; {advice}")
        elif isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MAX_WEIGHT:
            problems.append(f"{name}.{part}: must be a number from 0 to {MAX_WEIGHT:g}, but it is {weight!r}")
        elif isfinite(weight):
            weights[part] = float(weight)
    return replace(BUILT_IN.get(base, Profile()), **weights)
