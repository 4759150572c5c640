"""Ages, sizes, tables and colours, as kubectl prints them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NONE = "<none>"
GAP = 3  # spaces between columns
_COLOURS = {"green": "32", "yellow": "33", "red": "31"}


def age(seconds: float) -> str:
    """A duration in at most two units (apimachinery's HumanDuration): 45s, 3m20s, 12h, 5d3h, 2y10d."""
    total = int(seconds)
    if total < -1:
        return "<invalid>"
    total = max(total, 0)
    if total < 120:
        return f"{total}s"
    minutes, hours, days = total // 60, total // 3600, total // 86400
    if minutes < 10:
        return _two(minutes, "m", total % 60, "s")
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    if days < 8 * 365:
        return _two(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def created_age(obj: Any, now: float) -> str:
    """The AGE column."""
    if not obj.metadata.HasField("creationTimestamp"):
        return "<unknown>"
    return age(now - obj.metadata.creationTimestamp.seconds)


def _two(large: int, unit: str, small: int, small_unit: str) -> str:
    return f"{large}{unit}{small}{small_unit}" if small else f"{large}{unit}"


def size(amount: int) -> str:
    """Bytes in decimal units with three digits (docker's): 999B, 12.3kB, 187MB."""
    value, units = float(amount), ["TB", "GB", "MB", "kB", "B"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop()
    return f"{amount}B" if units[-1] == "B" else f"{value:.3g}{units[-1]}"


def table(rows: Sequence[Sequence[str]], widths: list[int] | None = None) -> Iterable[str]:
    """Lines with aligned columns; `widths`, when given, grows and keeps later tables aligned with earlier ones."""
    widths = [] if widths is None else widths
    for row in rows:
        widths += [0] * (len(row) - len(widths))
        for index, cell in enumerate(row):
            widths[index] = max(widths[index], len(cell) + GAP)
    for row in rows:
        yield "".join(cell.ljust(widths[index]) for index, cell in enumerate(row)).rstrip()


def clean(text: str) -> str:
    """Text from elsewhere on one line, without control characters: it must not drive the terminal."""
    if text.isprintable():
        return text
    return "".join(ch if ch.isprintable() else " " if ch in "\n\t\r" else "\N{REPLACEMENT CHARACTER}" for ch in text)


def lines_of(text: str) -> str:
    """The same, keeping its lines: messages for people."""
    return "\n".join(clean(line) for line in text.split("\n"))


def pairs(values: Mapping[str, str]) -> str:
    """Labels as a=b,c=d."""
    return ",".join(f"{key}={values[key]}" for key in sorted(values)) or NONE


def coloured(text: str, colour: str | None) -> str:
    """The text in a colour of a terminal."""
    return f"\033[{_COLOURS[colour]}m{text}\033[0m" if colour else text


def colour_of(status: str) -> str | None:
    """Green for what runs, yellow for what is on its way, red for what is wrong."""
    if status in ("Running", "Ready", "Active", "Completed", "Succeeded", "Normal", "Bound", "Available"):
        return "green"
    if status in ("Pending", "ContainerCreating", "Terminating", "NotReady", "Unknown", "Released"):
        return "yellow"
    if status in ("Warning", "Failed", "Lost", "Evicted") or status.endswith(("Error", "BackOff", "Killed", "Err")):
        return "red"
    return None
