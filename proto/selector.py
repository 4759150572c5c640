"""Label and field selectors: kubectl's string syntax and the LabelSelector message, with matching."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.proto.v1 import objects_pb2 as o

MAX_TEXT = 16 * 1024  # characters
LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", re.ASCII)
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)

FIELDS: Mapping[str, frozenset[str]] = {
    "": frozenset({"metadata.name", "metadata.namespace"}),
    "Death": frozenset({"pod.name", "pod.uid", "node", "container"}),
    "PersistentVolume": frozenset({"spec.claimRef.name", "spec.claimRef.namespace", "status.phase"}),
    "PersistentVolumeClaim": frozenset({"spec.volumeName", "status.phase"}),
    "Pod": frozenset({"spec.nodeName", "spec.restartPolicy", "status.phase", "status.podIP"}),
    "Namespace": frozenset({"status.phase"}),
    "ReplicaSet": frozenset({"status.replicas"}),
    "Secret": frozenset({"type"}),
    "Event": frozenset(
        {
            "involvedObject.kind",
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.fieldPath",
            "reason",
            "source.component",
            "type",
        }
    ),
}


class SelectorError(ValueError):
    """The selector cannot be read; the message quotes the offending part and says what is expected."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label. `operator`: In, NotIn, Exists, DoesNotExist, Gt, Lt."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        if self.operator == "In":
            return self.key in labels and labels[self.key] in self.values
        if self.operator == "NotIn":
            return self.key not in labels or labels[self.key] not in self.values
        if self.operator == "Exists":
            return self.key in labels
        if self.operator == "DoesNotExist":
            return self.key not in labels
        return self._compares(labels)

    def _compares(self, labels: Mapping[str, str]) -> bool:
        try:
            have, bound = int(labels[self.key]), int(next(iter(self.values)))
        except (KeyError, ValueError):
            return False
        return have > bound if self.operator == "Gt" else have < bound


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All requirements must hold; without any, everything matches."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)

    @property
    def empty(self) -> bool:
        return not self.requirements

    def equalities(self) -> list[tuple[str, str]]:
        """The (key, value) pairs that must be equal: what an index can answer."""
        return [(r.key, next(iter(r.values))) for r in self.requirements if r.operator == "In" and len(r.values) == 1]


def from_message(selector: o.LabelSelector) -> LabelSelector:
    """The selector of a LabelSelector message; validation has checked its keys, operators and values."""
    equal = [Requirement(key, "In", frozenset({value})) for key, value in sorted(selector.matchLabels.items())]
    expressions = [Requirement(e.key, e.operator, frozenset(e.values)) for e in selector.matchExpressions]
    return LabelSelector((*equal, *expressions))


# ---- kubectl's string syntax: a=b, a==b, a!=b, a in (x,y), a notin (x), a, !a, a>1, a<2 ----
_TOKEN = re.compile(r"\s*(?:(==|!=|=|!|>|<|\(|\)|,)|([^\s=!<>(),]+))")
_SIGNS = {"=": "In", "==": "In", "!=": "NotIn", ">": "Gt", "<": "Lt"}
_WORDS = {"in": "In", "notin": "NotIn"}


def parse_selector(text: str) -> LabelSelector:
    """Reads kubectl's -l syntax. Raises SelectorError."""
    if len(text) > MAX_TEXT:
        raise SelectorError(f"the selector has {len(text)} characters: at most {MAX_TEXT} are read")
    tokens = _tokens(text)
    requirements = []
    while tokens:
        requirements.append(_requirement(tokens, text))
        if tokens and _take(tokens) != ",":
            raise _bad(text, "expected a comma between the requirements")
        if not tokens and text.rstrip().endswith(","):
            raise _bad(text, "it ends with a comma")
    return LabelSelector(tuple(requirements))


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    stripped = text.rstrip()
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None:
            raise _bad(text, f"cannot read {stripped[position : position + 10]!r}")
        tokens.append(match[1] or match[2])
        position = match.end()
    tokens.reverse()  # a stack: the next one is last
    return tokens


def _take(tokens: list[str]) -> str:
    return tokens.pop() if tokens else ""


def _requirement(tokens: list[str], text: str) -> Requirement:
    first = _take(tokens)
    if first == "!":
        return Requirement(_key(_take(tokens), text), "DoesNotExist")
    key = _key(first, text)
    following = tokens[-1] if tokens else ","
    if following == ",":
        return Requirement(key, "Exists")
    sign = _take(tokens)
    if sign in _WORDS:
        return Requirement(key, _WORDS[sign], _set(tokens, text))
    if sign not in _SIGNS:
        raise _bad(text, f'"{sign}" after "{key}" is no operator: use =, ==, !=, in, notin, > or <')
    value = _take(tokens) if tokens and tokens[-1] != "," else ""
    if _SIGNS[sign] in ("Gt", "Lt") and not re.fullmatch(r"-?[0-9]{1,18}", value):
        raise _bad(text, f'"{key}{sign}" needs a whole number')
    return Requirement(key, _SIGNS[sign], frozenset({_value(value, text)}))


def _set(tokens: list[str], text: str) -> frozenset[str]:
    if _take(tokens) != "(":
        raise _bad(text, 'expected "(" after in or notin, as in: tier in (web,api)')
    values, pending = [], ""
    while True:
        part = _take(tokens)
        if part == "":
            raise _bad(text, 'a ")" is missing')
        if part in (",", ")"):
            values.append(_value(pending, text))
            pending = ""
            if part == ")":
                return frozenset(values)
        elif pending:
            raise _bad(text, "expected a comma between the values")
        else:
            pending = part


def _key(key: str, text: str) -> str:
    prefix, slash, name = key.rpartition("/")
    if (slash and not SUBDOMAIN.fullmatch(prefix)) or not LABEL_NAME.fullmatch(name) or len(prefix) > 253:
        raise _bad(text, f'"{key}" is not a label key')
    return key


def _value(value: str, text: str) -> str:
    if not LABEL_VALUE.fullmatch(value):
        raise _bad(text, f'"{value}" is not a label value')
    return value


def _bad(text: str, why: str) -> SelectorError:
    shown = text if len(text) <= 100 else text[:100] + "..."
    return SelectorError(f'cannot read the selector "{shown}": {why}')


# ---- field selectors ----
@dataclass(frozen=True, slots=True)
class FieldSelector:
    """Conditions (path, equal, value) on an object's fields; all must hold."""

    terms: tuple[tuple[str, bool, str], ...] = ()

    def matches(self, obj: Any) -> bool:
        """Whether the object (a message of one of the kinds) has the values that are asked for."""
        return all((field_value(obj, path) == value) is equal for path, equal, value in self.terms)

    @property
    def empty(self) -> bool:
        return not self.terms


def parse_fields(text: str, kind: str) -> FieldSelector:
    """Reads kubectl's --field-selector syntax for objects of `kind`. Raises SelectorError."""
    if len(text) > MAX_TEXT:
        raise SelectorError(f"the selector has {len(text)} characters: at most {MAX_TEXT} are read")
    known = FIELDS[""] | FIELDS.get(kind, frozenset())
    terms = []
    for part in re.split(r"(?<!\\),", text) if text.strip() else []:
        match = re.fullmatch(r"\s*([A-Za-z.]+)\s*(==|!=|=)(.*)", part, re.DOTALL)
        if match is None:
            raise _bad(text, f'"{part}" should look like status.phase=Running')
        path, sign, value = match[1], match[2], match[3].strip()
        if path not in known:
            raise _bad(text, f'a {kind} cannot be selected by "{path}": use one of {", ".join(sorted(known))}')
        terms.append((path, sign != "!=", re.sub(r"\\(.)", r"\1", value)))
    return FieldSelector(tuple(terms))


def field_value(obj: Any, path: str) -> str:
    """The value of a scalar field as text; "" when it is unset."""
    for name in path.split("."):
        obj = getattr(obj, name)
    return str(obj)
