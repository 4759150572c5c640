"""Trees (dicts, lists and scalars, as YAML and JSON give them) to messages and back, over the descriptors.

Everything wrong with a tree is reported at once, each with its path. The tables are compiled once per message type.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from math import isfinite
from typing import Any, TypeAlias, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from shoal.proto import known, quantity
from shoal.proto.errors import MAX_PROBLEMS, FieldError, join, keyed, nearest, shorten

Tree: TypeAlias = Any  # dict[str, Tree] | list[Tree] | str | int | float | bool | None
Reader: TypeAlias = Callable[[Any, str, "list[FieldError]"], Any]  # returns None after it has reported a problem
M = TypeVar("M", bound=Message)

# Shown even when they are zero, as Kubernetes does: scripts read them.
ALWAYS_SHOWN: Mapping[str, frozenset[str]] = {
    "ContainerStatus": frozenset({"ready", "restartCount"}),
    "ContainerStateTerminated": frozenset({"exitCode"}),
    "ReplicaSetStatus": frozenset({"replicas"}),
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MIN_SECONDS, _MAX_SECONDS = -62135596800, 253402300799  # years 1 to 9999
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)


def from_tree(tree: Tree, cls: type[M]) -> tuple[M, list[FieldError]]:
    """The message that the tree describes, and all that is wrong with it; what is wrong is left out of the message."""
    message, problems = cls(), list[FieldError]()
    _plan(cls.DESCRIPTOR).fill(message, tree, "", problems)
    return message, problems


def to_tree(message: Message) -> dict[str, Tree]:
    """The message as a tree: fields in the order of their declaration, unset ones left out."""
    return _plan(message.DESCRIPTOR).dump(message)


class _Plan:
    """How one message type is read and written."""

    def __init__(self, descriptor: Descriptor) -> None:
        self.name = descriptor.name
        self.descriptor = descriptor
        self.readers: dict[str, _Field] = {}
        self.writers: dict[FieldDescriptor, tuple[str, Callable[[Any], Tree] | None]] = {}
        shown = ALWAYS_SHOWN.get(self.name, frozenset())
        self.defaults = {f.name: f.default_value for f in descriptor.fields if f.name in shown}
        self.order = {f.name: f.index for f in descriptor.fields}
        for field in descriptor.fields:
            self.readers[field.name] = _Field(field)
            self.writers[field] = (field.name, _writer(field))

    def fill(self, message: Message, tree: Tree, path: str, problems: list[FieldError]) -> None:
        if not isinstance(tree, dict):
            _report(problems, path, f"must be a set of fields, but it is {describe(tree)}")
            return
        for name, value in tree.items():
            field = self.readers.get(name)
            if field is None:
                self._unknown(name, value, path, problems)
            elif value is not None:  # null means "not set"
                field.read(message, value, join(path, name), problems)

    def _unknown(self, name: str, value: Tree, path: str, problems: list[FieldError]) -> None:
        unsupported = known.UNSUPPORTED_FIELDS.get(self.name, {})
        if name in unsupported:
            if not known.says_nothing(self.name, name, value):
                hint = unsupported[name]
                advice = f": {hint}" if hint else ": remove it"
                _report(problems, join(path, name), f"not supported yet{advice}")
            return
        meant = nearest(name, [*self.readers, *unsupported])
        deeper = _place_below(self.descriptor, name) if meant is None else None
        if deeper is not None:
            advice = f"it belongs under {join(path, deeper)}"
        elif meant is None:
            advice = f"known fields are {', '.join(self.readers)}"
        elif meant in unsupported:
            advice = f'did you mean "{meant}"? (That one is not supported yet.)'
        else:
            advice = f'did you mean "{meant}"?'
        _report(problems, keyed(path, name), f"unknown field; {advice}")

    def dump(self, message: Message) -> dict[str, Tree]:
        tree: dict[str, Tree] = {}
        writers = self.writers
        for field, value in message.ListFields():
            name, write = writers[field]
            tree[name] = value if write is None else write(value)
        if self.defaults and not self.defaults.keys() <= tree.keys():
            merged = self.defaults | tree
            return {name: merged[name] for name in sorted(merged, key=self.order.__getitem__)}
        return tree


class _Field:
    """How one field is read into its message."""

    def __init__(self, field: FieldDescriptor) -> None:
        self.name = field.name
        self.repeated, self.map = field.is_repeated, _map_value(field) is not None
        value = _map_value(field) or field
        self.message = value.message_type if value.type == FieldDescriptor.TYPE_MESSAGE else None
        self.special = _SPECIAL_READERS.get(self.message.name) if self.message is not None else None
        self.scalar = _SCALAR_READERS[value.type] if self.message is None else None

    def read(self, message: Message, value: Tree, path: str, problems: list[FieldError]) -> None:
        if self.map:
            self._read_map(getattr(message, self.name), value, path, problems)
        elif self.repeated:
            self._read_list(getattr(message, self.name), value, path, problems)
        elif self.scalar is not None:
            got = self.scalar(value, path, problems)
            if got is not None:
                setattr(message, self.name, got)
        else:
            target = getattr(message, self.name)
            target.SetInParent()
            self._read_message(target, value, path, problems)

    def _read_message(self, target: Message, value: Tree, path: str, problems: list[FieldError]) -> None:
        if self.special is not None:
            self.special(target, value, path, problems)
        else:
            assert self.message is not None
            _plan(self.message).fill(target, value, path, problems)

    def _read_list(self, target: Any, value: Tree, path: str, problems: list[FieldError]) -> None:
        if not isinstance(value, list):
            _report(problems, path, f"must be a list, but it is {describe(value)}: begin each item with '- '")
            return
        for index, item in enumerate(value):
            where = f"{path}[{index}]"
            if item is None:
                _report(problems, where, "is empty: give it a value or remove the item")
            elif self.scalar is not None:
                got = self.scalar(item, where, problems)
                if got is not None:
                    target.append(got)
            else:
                self._read_message(target.add(), item, where, problems)

    def _read_map(self, target: Any, value: Tree, path: str, problems: list[FieldError]) -> None:
        if not isinstance(value, dict):
            _report(problems, path, f"must be a set of names and values, but it is {describe(value)}")
            return
        for key, item in value.items():
            where = keyed(path, key)
            if self.scalar is not None:
                got = self.scalar("" if item is None else item, where, problems)
                if got is not None:
                    target[key] = got
            elif item is None:
                _report(problems, where, "is empty: give it a value or remove it")
            else:
                self._read_message(target[key], item, where, problems)


@cache
def _plan(descriptor: Descriptor) -> _Plan:
    return _Plan(descriptor)


def _map_value(field: FieldDescriptor) -> FieldDescriptor | None:
    """The field of a map's values; None when the field is no map."""
    entry = field.message_type
    return entry.fields_by_name["value"] if entry is not None and entry.GetOptions().map_entry else None


def _place_below(descriptor: Descriptor, name: str) -> str | None:
    """The path, from here, of the message further down that has this field: people leave out a level."""
    waiting, seen = [(descriptor, "")], set()
    for current, path in waiting:
        if path and name in current.fields_by_name:
            return path
        for field in current.fields:
            below = field.message_type
            if below is None or below.name in _SPECIAL_READERS or below in seen or _map_value(field) is not None:
                continue
            seen.add(below)
            waiting.append((below, join(path, field.name) + ("[]" if field.is_repeated else "")))
    return None


def _report(problems: list[FieldError], path: str, message: str) -> None:
    if len(problems) < MAX_PROBLEMS:
        problems.append(FieldError(path, message))


def describe(value: Tree) -> str:
    """What was given, in words: `the number 80`, `the text "abc"`, `a list`."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"the boolean {source_text(value)}"
    if isinstance(value, int | float):
        return f"the number {source_text(value)}"
    if isinstance(value, str):
        return f"the text {shorten(value)}"
    return "a list" if isinstance(value, list) else "a set of fields"


def source_text(value: Tree) -> str:
    """A scalar as it was written in its file, where that is known (0644, 1.10), or as YAML writes it."""
    text = getattr(value, "text", None)
    if isinstance(text, str):
        return text
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


# ---- scalars, read ----
def _read_string(value: Any, path: str, problems: list[FieldError]) -> str | None:
    if not isinstance(value, str):
        advice = f': quote it: "{source_text(value)}"' if not isinstance(value, dict | list) else ""
        _report(problems, path, f"must be a text, but it is {describe(value)}{advice}")
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        _report(problems, path, "holds half of a surrogate pair, which no text can: remove it")
        return None
    return str(value)


def _read_bool(value: Any, path: str, problems: list[FieldError]) -> bool | None:
    if isinstance(value, bool):
        return value
    advice = ""
    if isinstance(value, str) and value.lower() in ("true", "yes", "on", "y", "false", "no", "off", "n"):
        advice = f": write {'true' if value.lower() in ('true', 'yes', 'on', 'y') else 'false'}, without quotes"
    _report(problems, path, f"must be true or false, but it is {describe(value)}{advice}")
    return None


def _integer_reader(low: int, high: int) -> Reader:
    def read(value: Any, path: str, problems: list[FieldError]) -> int | None:
        if isinstance(value, bool) or not isinstance(value, int):
            quoted = isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+", value)
            advice = ": remove the quotes" if quoted else ""
            _report(problems, path, f"must be a whole number, but it is {describe(value)}{advice}")
            return None
        if not low <= value <= high:
            _report(problems, path, f"must be from {low} to {high}, but it is {shorten(int(value), 30)}")
            return None
        return int(value)

    return read


def _read_float(value: Any, path: str, problems: list[FieldError]) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        _report(problems, path, f"must be a number, but it is {describe(value)}")
        return None
    return float(value)


def _read_bytes(value: Any, path: str, problems: list[FieldError]) -> bytes | None:
    text = _read_string(value, path, problems)
    if text is None:
        return None
    try:
        # Line breaks are let through: base64(1) folds its output, and Go's decoder skips them too.
        return base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError) as wrong:
        _report(problems, path, f"is not base64 ({str(wrong).lower()}): encode it, or write it under stringData")
        return None


_INT32 = _integer_reader(-(2**31), 2**31 - 1)
_INT64 = _integer_reader(-(2**63), 2**63 - 1)
_SCALAR_READERS: Mapping[int, Reader] = {
    FieldDescriptor.TYPE_STRING: _read_string,
    FieldDescriptor.TYPE_BOOL: _read_bool,
    FieldDescriptor.TYPE_BYTES: _read_bytes,
    FieldDescriptor.TYPE_DOUBLE: _read_float,
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_UINT32: _integer_reader(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: _integer_reader(0, 2**64 - 1),
}


# ---- special messages, read ----
def _read_quantity(target: Any, value: Tree, path: str, problems: list[FieldError]) -> None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        _report(problems, path, f"must be a quantity such as 500m or 128Mi, but it is {describe(value)}")
        return
    text = value if isinstance(value, str) else str(int(value)) if isinstance(value, int) else repr(float(value))
    try:
        quantity.parse(text)
    except quantity.QuantityError as wrong:
        _report(problems, path, str(wrong))
    else:
        target.text = str(text)


def _read_time(target: Any, value: Tree, path: str, problems: list[FieldError]) -> None:
    text = _read_string(value, path, problems)
    if text is None:
        return
    instant = parse_time(text)
    if instant is None:
        _report(problems, path, f'must be a time such as "2024-05-01T12:00:00Z", but it is {describe(text)}')
    else:
        target.seconds, target.nanos = instant


def _read_int_or_string(target: Any, value: Tree, path: str, problems: list[FieldError]) -> None:
    if isinstance(value, str):
        text = _read_string(value, path, problems)
        if text is not None:
            target.text = text
    else:
        number = _INT32(value, path, problems)
        if number is not None:
            target.number = number


_SPECIAL_READERS: Mapping[str, Callable[[Any, Tree, str, list[FieldError]], None]] = {
    "Quantity": _read_quantity,
    "Time": _read_time,
    "IntOrString": _read_int_or_string,
}


def parse_time(text: str) -> tuple[int, int] | None:
    """RFC 3339 to (seconds since 1970 UTC, nanoseconds), or None."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    try:
        instant = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC)  # a leap second counts as :59
    except ValueError:
        return None
    if second > 60 or int(match[9] or 0) > 23 or int(match[10] or 0) > 59:
        return None
    offset = (int(match[9] or 0) * 60 + int(match[10] or 0)) * 60
    seconds = (instant - _EPOCH) // timedelta(seconds=1) + (offset if match[8] == "-" else -offset)
    return (seconds, int((match[7] or "0").ljust(9, "0"))) if _MIN_SECONDS <= seconds <= _MAX_SECONDS else None


def format_time(seconds: int, nanos: int = 0) -> str:
    """RFC 3339 in UTC; a fraction only when there is one."""
    instant = _EPOCH + timedelta(seconds=max(_MIN_SECONDS, min(_MAX_SECONDS, seconds)))
    fraction = f".{nanos:09d}".rstrip("0") if 0 < nanos < 10**9 else ""
    return f"{instant:%Y-%m-%dT%H:%M:%S}".rjust(19, "0") + f"{fraction}Z"


# ---- values, written ----
def _writer(field: FieldDescriptor) -> Callable[[Any], Tree] | None:
    """How a set field's value becomes a tree; None: as it is."""
    map_value = _map_value(field)
    if map_value is not None:
        return _map_writer(_single_writer(map_value))
    write = _single_writer(field)
    if field.is_repeated:
        return list if write is None else (lambda value: [write(item) for item in value])
    return write


def _map_writer(write: Callable[[Any], Tree] | None) -> Callable[[Any], Tree]:
    if write is None:
        return lambda value: {key: value[key] for key in sorted(value)}
    return lambda value: {key: write(value[key]) for key in sorted(value)}


def _single_writer(field: FieldDescriptor) -> Callable[[Any], Tree] | None:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda value: base64.b64encode(value).decode()
    descriptor = field.message_type
    if descriptor is None:
        return None
    special = _SPECIAL_WRITERS.get(descriptor.name)
    if special is not None:
        return special
    return lambda value: _plan(descriptor).dump(value)


_SPECIAL_WRITERS: Mapping[str, Callable[[Any], Tree]] = {
    "Quantity": lambda value: value.text,
    "Time": lambda value: format_time(value.seconds, value.nanos),
    "IntOrString": lambda value: value.text if value.WhichOneof("value") == "text" else value.number,
}
