"""Where two messages differ, as paths that people know from their manifests. Pure.

Values are shown of what explains itself and is no secret: images, amounts, ports. Never of variables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from shoal.proto.v1 import objects_pb2 as o

SHOWN = frozenset({"replicas", "image", "cpu", "memory", "ephemeral-storage", "port", "containerPort", "path"})
MOST_DEPTH = 12


def different(old: Message, new: Message, path: str = "", depth: int = 0) -> Iterator[str]:
    """The paths at which two messages differ, for amounts and ports with both values."""
    a, b = dict(old.ListFields()), dict(new.ListFields())
    for part in sorted({*a, *b}, key=lambda part: part.name):
        here = f"{path}.{part.name}" if path else part.name
        if a.get(part) == b.get(part):
            continue
        one, other = getattr(old, part.name), getattr(new, part.name)
        if part.is_repeated:
            yield from _repeated(one, other, here, depth)
        else:
            yield from _value(one, other, here, part.name, depth)


def _value(old: Any, new: Any, path: str, name: str, depth: int) -> Iterator[str]:
    if isinstance(old, o.Quantity):
        yield _changed(path, name, old.text, new.text)
    elif isinstance(old, Message):
        inner = list(different(old, new, path, depth + 1)) if depth < MOST_DEPTH else []
        yield from inner or [f"{path} changed"]
    else:
        yield _changed(path, name, str(old), str(new))


def _repeated(a: Any, b: Any, path: str, depth: int) -> Iterator[str]:
    old, new = _entries(a), _entries(b)
    if old is None or new is None:
        yield f"{path} changed"
        return
    for key in sorted({*old, *new}):
        where = f"{path}[{key}]"
        if key not in old or key not in new:
            yield f"{where} {'added' if key in new else 'removed'}"
        elif old[key] != new[key]:
            yield from _value(old[key], new[key], where, key, depth)


def _entries(values: Any) -> dict[str, Any] | None:
    """A map, or messages by what names them; None: plain values, which are compared as a whole."""
    if hasattr(values, "items"):
        return {str(key): value for key, value in values.items()}
    if any(not isinstance(value, Message) for value in values):
        return None
    return {str(getattr(v, "name", "") or getattr(v, "mountPath", "") or n): v for n, v in enumerate(values)}


def _changed(path: str, name: str, old: str, new: str) -> str:
    shown = name in SHOWN and ".env" not in f".{path}"
    return f"{path} changed ({old or '-'} -> {new or '-'})" if shown else f"{path} changed"
