"""How `describe` sets its lines: a label and a value, several values below each other, a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from shoal.deploy.cli.printers.text import NONE, age, clean, table
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.walker import format_time

LABEL_WIDTH = 16
Lines = Iterable[str]


def line(name: str, value: object, indent: int = 0) -> str:
    label = f"{' ' * indent}{name}:"
    return f"{label.ljust(LABEL_WIDTH + indent)} {clean(str(value))}".rstrip()


def several(name: str, values: Mapping[str, str], indent: int = 0) -> Lines:
    if not values:
        yield line(name, NONE, indent)
    yield from listed(name, [f"{key}={values[key]}" for key in sorted(values)], indent)


def listed(name: str, texts: Sequence[str], indent: int = 0) -> Lines:
    """Nothing at all when there are none."""
    for index, text in enumerate(texts):
        yield line(name, text, indent) if index == 0 else " " * (LABEL_WIDTH + indent + 1) + clean(text)


def since(time: o.Time, now: float) -> str:
    return f"{format_time(time.seconds)} ({age(now - time.seconds)} ago)"


def rows(title: str, cells: Sequence[Sequence[str]], indent: int = 2) -> Lines:
    yield f"{title}:"
    for text in table([[clean(cell) for cell in row] for row in cells]):
        yield " " * indent + text
