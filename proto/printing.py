"""Messages as YAML and JSON text, fields in the order of their declaration. What is written reads back the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from shoal.proto.walker import to_tree

# Plain text that no YAML reader, 1.1 or 1.2, takes for anything else.
_PLAIN = re.compile(
    r"[0-9]+(?:m|[KMGTP]i)|[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?:/[0-9]{1,2})?|"
    r"[A-Za-z/_][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./(),-]+)*(?:[:@=+][A-Za-z0-9_./+@=-]+)*",
    re.ASCII,
)
_BEYOND = re.compile(r"[^\x00-\x7e]")
_RESERVED = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"})
_QUOTED_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0"}


def to_json(message: Message | dict[str, Any], *, indent: int | None = 4) -> str:
    """JSON as kubectl prints it; indent=None gives the compact form."""
    tree = to_tree(message) if isinstance(message, Message) else message
    separators = (",", ":") if indent is None else None
    return _odd_escaped(json.dumps(tree, indent=indent, ensure_ascii=False, separators=separators))


def _odd_escaped(text: str) -> str:
    """What a terminal could obey, or cannot show, as \\uXXXX: beyond ASCII it stands in strings only."""
    if text.isascii() and "\x7f" not in text:
        return text
    return _BEYOND.sub(lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)


def to_yaml(message: Message | dict[str, Any]) -> str:
    """YAML in block style, ending with a newline."""
    tree = to_tree(message) if isinstance(message, Message) else message
    return "\n".join(_mapping(tree, "")) + "\n" if tree else "{}\n"


def _mapping(tree: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in tree.items():
        name = _text(key)
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _mapping(value, indent + "  ")
        elif isinstance(value, list) and value:
            yield f"{indent}{name}:"
            yield from _sequence(value, indent)
        else:
            yield from _scalar(f"{indent}{name}: ", value, indent + "  ")


def _sequence(items: list[Any], indent: str) -> Iterator[str]:
    for item in items:
        if isinstance(item, dict | list) and item:
            inner = indent + "  "
            lines = _mapping(item, inner) if isinstance(item, dict) else _sequence(item, inner)
            yield f"{indent}- {next(lines)[len(inner) :]}"
            yield from lines
        else:
            yield from _scalar(f"{indent}- ", item, indent + "  ")


def _scalar(prefix: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, str) and "\n" in value and _literal_keeps(value):
        body = value[:-1] if value.endswith("\n") else value
        yield prefix + ("|" if value.endswith("\n") else "|-")
        for line in body.split("\n"):
            yield indent + line if line else ""
    else:
        yield prefix + _flow(value)


def _literal_keeps(value: str) -> bool:
    """Whether a literal block gives the text back: no odd characters, no blanks at the edges of it."""
    lines = value.split("\n")
    body = lines[:-1] if value.endswith("\n") else lines
    if not body[0] or not body[-1] or body[0][0] in " \t":
        return False
    return all(line.isprintable() for line in body)


def _flow(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return "{}" if isinstance(value, dict) else "[]"


def _text(value: str) -> str:
    if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED and len(value) <= 120:
        return value
    return '"' + "".join(_escaped(character) for character in value) + '"'


def _escaped(character: str) -> str:
    if character in _QUOTED_ESCAPES:
        return _QUOTED_ESCAPES[character]
    # U+FEFF and the line separators are printable to no YAML reader alike
    if character.isprintable() and character != "\ufeff":
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
