"""Scheduling profiles: the weights of the parts of a score. A pod names its profile with spec.schedulerName."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

DEFAULT_PROFILE = "default-scheduler"


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
