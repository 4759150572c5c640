"""Plain data of the scheduler as JSON and back: frozen dataclasses, named tuples, tuples, sets, maps and scalars.

A dataclass or named tuple is {"@": its name, field: value, ...} without the fields that have their defaults.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, TypeAlias

from shoal.master.model import Key
from shoal.master.scheduler.classes import PodClass, Tolerance
from shoal.master.scheduler.gpus import Shape, Want
from shoal.master.scheduler.groups import Budget, Group
from shoal.master.scheduler.nodes import NodeFacts, TaintKey
from shoal.master.scheduler.profiles import Profile
from shoal.master.scheduler.terms import NodeTerm, PodMatch, PodTerm, Rule, Selector, Spread

Json: TypeAlias = Any  # what json.loads gives

CLASSES: tuple[type[Any], ...] = (PodClass, Tolerance, Budget, Group, NodeFacts, Profile, NodeTerm, PodMatch, PodTerm,
                                  Rule, Selector, Spread)  # fmt: skip
TUPLES: tuple[type[Any], ...] = (Key, TaintKey, Shape, Want)
_NAMES = {made.__name__: made for made in (*CLASSES, *TUPLES)}
_FIELDS = {made: [(one.name, one.default) for one in fields(made) if one.init] for made in CLASSES}


class PlainError(ValueError):
    """The JSON is not what this version writes."""


def encode(value: Any) -> Json:
    """Raises PlainError for anything that is not plain data."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if type(value) in _FIELDS:
        said = {"@": type(value).__name__}
        for name, default in _FIELDS[type(value)]:
            found = getattr(value, name)
            if default is MISSING or found != default:
                said[name] = encode(found)
        return said
    if type(value) in TUPLES:
        return {"@": type(value).__name__} | {name: encode(one) for name, one in value._asdict().items()}
    if isinstance(value, tuple):
        return [encode(one) for one in value]
    if isinstance(value, frozenset):
        return {"@": "set", "of": [encode(one) for one in sorted(value)]}
    if isinstance(value, dict):
        return {"@": "map", "of": [[encode(key), encode(one)] for key, one in value.items()]}
    raise PlainError(f"{type(value).__name__} is not plain data")


def decode(said: Json) -> Any:
    """What `encode` was given. Raises PlainError."""
    if isinstance(said, list):
        return tuple(decode(one) for one in said)
    if not isinstance(said, dict):
        return said
    name = said.get("@")
    if name in ("set", "map") and not isinstance(said.get("of"), list):
        raise PlainError(f"a {name} without its parts")
    if name == "set":
        return frozenset(decode(one) for one in said["of"])
    if name == "map":
        return {decode(key): decode(one) for key, one in said["of"]}
    made = _NAMES.get(str(name))
    if made is None:
        raise PlainError(f"{name!r} is not known to this version")
    try:
        return made(**{key: decode(one) for key, one in said.items() if key != "@"})
    except TypeError as error:
        raise PlainError(f"{name}: {error}") from None
