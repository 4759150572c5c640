"""Bounded reading of YAML and JSON into trees that remember the lines they came from.

The tree is built here from the parser's event stream, not by the library's composer: that recurses (deep nesting
crashes it), expands aliases without bound and lets duplicate keys pass. Decisions: plain scalars are null, true, false,
integers (0644 and 0o644 are octal), floats, otherwise text: no dates, no on/off/yes/no, no base 60. Merge keys (<<) are
refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from shoal.proto.errors import shorten

MAX_BYTES = 10 * 1024 * 1024
MAX_DEPTH = 100
MAX_ALIASES = 1_000
MAX_EXPANSION = 10 * 1024 * 1024  # characters and nodes that aliases add to a file

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)", re.ASCII)
_OCTAL = re.compile(r"([-+]?)0o?([0-7]+)", re.ASCII)
_HEX = re.compile(r"([-+]?)0x([0-9a-fA-F]+)", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    re.ASCII,
)
_WORDS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL")) | {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_MAX_DIGITS = 40
_TAG = "tag:yaml.org,2002:"


class YamlError(ValueError):
    """The text cannot be read; `line` counts from 1, 0 when unknown."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


class Map(dict[str, Any]):
    """A mapping; `lines` has the line of each key."""

    __slots__ = ("line", "lines")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}


class Seq(list[Any]):
    """A list; `lines` has the line of each item."""

    __slots__ = ("line", "lines")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: list[int] = []


class WrittenInt(int):
    """An integer whose notation in the file was another than its value's (0644)."""

    text: str


class WrittenFloat(float):
    """A float that remembers its notation in the file (1.10)."""

    text: str


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not come yet."""

    container: Map | Seq
    anchor: str | None
    key: str | None = None
    key_line: int = 0
    weight: int = 1
    height: int = 1


@dataclass(slots=True)
class _Anchored:
    value: Any
    weight: int
    height: int


@dataclass(slots=True)
class Document:
    """One document: its tree and the line it begins at. Its duplicate keys are in `duplicates` (line, message)."""

    tree: Any
    line: int
    duplicates: list[YamlError] = field(default_factory=list)


def read_documents(text: str) -> Iterator[Document]:
    """The documents of a YAML or JSON text. Raises YamlError at the first place that cannot be read."""
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise YamlError(f"is larger than {MAX_BYTES // 2**20} MB: split it into several files")
    composer = _Composer()
    try:
        for event in yaml.parse(text, Loader=yaml.CLoader):
            document = composer.handle(event)
            if document is not None:
                yield document
    except yaml.YAMLError as wrong:
        if composer.documents == 0 and text.lstrip()[:1] in ("{", "["):
            yield _read_json(text, _syntax(wrong))
            return
        raise _syntax(wrong) from None
    except UnicodeEncodeError:
        raise YamlError("holds half of a surrogate pair: save it as UTF-8") from None


class _Composer:
    """Builds trees from events, one at a time, without recursion."""

    def __init__(self) -> None:
        self.documents = 0
        self.aliases = 0
        self.expansion = 0
        self._reset(1)

    def _reset(self, line: int) -> None:
        self.stack: list[_Open] = []
        self.anchors: dict[str, _Anchored | None] = {}  # None while it is still open
        self.document = Document(None, line)

    def handle(self, event: yaml.Event) -> Document | None:
        """Takes one event; gives the document that it ends."""
        line = event.start_mark.line + 1 if event.start_mark is not None else 0
        if isinstance(event, yaml.ScalarEvent):
            value = self._key_text(event, line) if self._wants_key() else resolve(event, line)
            self._place(value, line, event.anchor, 1 + len(event.value), 0)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._open(event, line)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._close()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event.anchor or "", line)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._reset(line)
        elif isinstance(event, yaml.DocumentEndEvent):
            self.documents += 1
            return self.document
        return None

    def _wants_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].container, Map) and self.stack[-1].key is None

    def _key_text(self, event: yaml.ScalarEvent, line: int) -> str:
        if event.value == "<<" and event.implicit[0]:
            raise YamlError("merge keys (<<) are not supported: write the fields out", line)
        value = resolve(event, line)
        if not isinstance(value, str):
            raise YamlError(f'the key {event.value or "(empty)"} must be a text: quote it: "{event.value}"', line)
        return value

    def _open(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent, line: int) -> None:
        if self._wants_key():
            raise YamlError("a list or a set of fields cannot be a key", line)
        if event.tag not in (None, f"{_TAG}map", f"{_TAG}seq"):
            raise YamlError(f"the tag {shorten(event.tag)} is not supported: remove it", line)
        if len(self.stack) >= MAX_DEPTH:
            raise YamlError(f"is nested deeper than {MAX_DEPTH} levels", line)
        container = Map(line) if isinstance(event, yaml.MappingStartEvent) else Seq(line)
        if event.anchor:
            self.anchors[event.anchor] = None
        self.stack.append(_Open(container, event.anchor, key_line=line))

    def _close(self) -> None:
        done = self.stack.pop()
        self._place(done.container, done.container.line, done.anchor, done.weight, done.height)

    def _alias(self, anchor: str, line: int) -> None:
        target = self.anchors.get(anchor)
        if target is None:
            why = "refers to itself" if anchor in self.anchors else "was not defined before"
            raise YamlError(f"the alias *{shorten(anchor).strip(chr(34))} {why}", line)
        self.aliases += 1
        self.expansion += target.weight
        if self.aliases > MAX_ALIASES:
            raise YamlError(f"has more than {MAX_ALIASES} aliases", line)
        if self.expansion > MAX_EXPANSION:
            raise YamlError(f"its aliases expand to more than {MAX_EXPANSION // 2**20} MB", line)
        if len(self.stack) + target.height > MAX_DEPTH:
            raise YamlError(f"is nested deeper than {MAX_DEPTH} levels", line)
        if self._wants_key() and not isinstance(target.value, str):
            raise YamlError(f"the alias *{anchor} cannot be a key: it is no text", line)
        self._place(target.value, line, None, target.weight, target.height)

    def _place(self, value: Any, line: int, anchor: str | None, weight: int, height: int) -> None:
        """Puts a finished value where it belongs."""
        if anchor:
            self.anchors[anchor] = _Anchored(value, weight, height)
        if not self.stack:
            self.document.tree = value
            return
        top = self.stack[-1]
        top.weight += weight
        top.height = max(top.height, height + 1)
        if isinstance(top.container, Seq):
            top.container.append(value)
            top.container.lines.append(line)
        elif top.key is None:
            top.key, top.key_line = value, line
        else:
            self._set(top, top.container, value)
            top.key = None

    def _set(self, top: _Open, container: Map, value: Any) -> None:
        assert top.key is not None
        if top.key in container:
            first = container.lines[top.key]
            message = f'the key "{shorten(top.key).strip(chr(34))}" is given twice (first in line {first}): keep one'
            self.document.duplicates.append(YamlError(message, top.key_line))
            return
        container[top.key] = value
        container.lines[top.key] = top.key_line


def resolve(event: yaml.ScalarEvent, line: int) -> Any:
    """The value of a scalar: text unless it is plain and looks like null, a boolean or a number."""
    text: str = event.value
    if event.tag == f"{_TAG}str" or (not event.implicit[0] and event.tag is None):
        return text
    if event.tag is not None and event.tag not in {f"{_TAG}{name}" for name in ("int", "float", "bool", "null")}:
        if event.tag == "!":
            return text
        raise YamlError(f"the tag {shorten(event.tag)} is not supported: remove it", line)
    return plain_value(text)


def plain_value(text: str) -> Any:
    """What an unquoted scalar means."""
    if text in _WORDS:
        return _WORDS[text]
    if not (text[0].isdigit() or text[0] in "-+.") or len(text) > _MAX_DIGITS:
        return text
    if _INTEGER.fullmatch(text):
        return _written(int(text), text)
    for pattern, base in ((_OCTAL, 8), (_HEX, 16)):
        match = pattern.fullmatch(text)
        if match is not None:
            return _written(int(match[1] + match[2], base), text)
    if _FLOAT.fullmatch(text):
        number = WrittenFloat(text.replace(".inf", "inf").replace(".nan", "nan") if "." in text else text)
        number.text = text
        return number
    return text


def _written(value: int, text: str) -> int:
    if str(value) == text:
        return value
    number = WrittenInt(value)
    number.text = text
    return number


def _syntax(wrong: yaml.YAMLError) -> YamlError:
    mark = getattr(wrong, "problem_mark", None) or getattr(wrong, "context_mark", None)
    problem = getattr(wrong, "problem", None) or getattr(wrong, "reason", None) or "it cannot be read"
    context = getattr(wrong, "context", None)
    column = f", column {mark.column + 1}" if mark is not None else ""
    return YamlError(
        f"is not valid YAML{column}: {problem}{f' ({context})' if context else ''}", mark.line + 1 if mark else 0
    )


# ---- JSON that YAML's parser does not take (surrogate pairs in escapes) ----
def _read_json(text: str, otherwise: YamlError) -> Document:
    document = Document(None, 1)

    def pairs(items: list[tuple[str, Any]]) -> Map:
        mapping = Map(0)
        for key, value in items:
            if key in mapping:
                document.duplicates.append(YamlError(f'the key "{key}" is given twice: keep one'))
            else:
                mapping[key] = value
        return mapping

    try:
        document.tree = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        raise otherwise from None
    if _height(document.tree) > MAX_DEPTH:
        raise YamlError(f"is nested deeper than {MAX_DEPTH} levels")
    return document


def _height(tree: Any) -> int:
    """The depth of a tree, without recursion."""
    deepest, waiting = 0, [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        deepest = max(deepest, depth)
        if isinstance(node, dict):
            waiting.extend((child, depth + 1) for child in node.values())
        elif isinstance(node, list):
            waiting.extend((child, depth + 1) for child in node)
    return deepest


# ---- from a path to a line ----
_STEP = re.compile(r'\["((?:[^"\\]|\\.)*)"\]|\[(\d+)\]|\.?([^.\[]+)')


def line_of(tree: Any, path: str, default: int) -> int:
    """The line of the deepest part of `path` that is in the tree."""
    line = getattr(tree, "line", 0) or default
    for match in _STEP.finditer(path):
        key, index, name = match.groups()
        if index is not None and isinstance(tree, Seq) and int(index) < len(tree):
            line, tree = tree.lines[int(index)] if tree.lines else line, tree[int(index)]
        elif isinstance(tree, Map) and (key or name) in tree:
            found = key or name
            line, tree = tree.lines.get(found, line), tree[found]
        else:
            break
    return line
