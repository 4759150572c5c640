"""What the rules share: how a problem is reported, and the checks that many fields have in common."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Sized
from typing import Any, TypeAlias

from shoal.proto.errors import shorten

Report: TypeAlias = Callable[[str, str], None]  # path, message

MAX_PORT = 65535
MAX_ID = 2**31 - 1  # of users and groups
MAX_MODE = 0o777
MAX_PATH = 4095  # bytes; PATH_MAX with its end


def say(report: Report, path: str, wrong: str | None) -> None:
    """Reports what one of the `not_...` functions found, if it found anything."""
    if wrong is not None:
        report(path, wrong)


def at_most(items: Sized, limit: int, path: str, report: Report) -> None:
    """Lists are bounded: what reads them later need not be."""
    if len(items) > limit:
        report(path, f"has {len(items)} items: at most {limit} are allowed")


def in_range(value: int, low: int, high: int, path: str, report: Report) -> None:
    if not low <= value <= high:
        report(path, f"must be from {low} to {high}, but it is {value}")


def chosen(message: Any, fields: Iterable[str]) -> list[str]:
    """Which of these fields the message has."""
    return [name for name in fields if message.HasField(name)]


def exactly_one(message: Any, fields: tuple[str, ...], path: str, report: Report) -> str | None:
    """The one field of these that is set; None, with a report, when there is none or more than one."""
    found = chosen(message, fields)
    if len(found) == 1:
        return found[0]
    if found:
        report(path, f"has {' and '.join(found)}: keep one of them")
    else:
        report(path, f"must have one of {', '.join(fields)}")
    return None


def not_absolute(text: str) -> str | None:
    """A path from the root, without climbing."""
    if not text:
        return "is missing: give a path that begins with '/'"
    if not text.startswith("/"):
        return f"{shorten(text)} must begin with '/'"
    return _not_path(text)


def not_descending(text: str) -> str | None:
    """A path that leads down from where it is used."""
    if not text:
        return "is missing: give a path that does not begin with '/'"
    if text.startswith("/"):
        return f"{shorten(text)} must not begin with '/': it is a path below the volume"
    return _not_path(text)


def _not_path(text: str) -> str | None:
    if ".." in text.split("/"):
        return f"{shorten(text)} must not climb with '..': write the path that is meant"
    if "\0" in text:
        return "holds a NUL character, which no path can: remove it"
    if len(text.encode()) > MAX_PATH:
        return f"has {len(text.encode())} bytes: a path has at most {MAX_PATH}"
    return None


def normal(path: str) -> str:
    """The same text for the same place: without doubled or trailing slashes."""
    tidy = posixpath.normpath(path)
    return tidy[1:] if tidy.startswith("//") else tidy  # POSIX lets two slashes be something else; Linux does not


def mode(value: int, path: str, report: Report) -> None:
    """The permission bits of a file."""
    if 0 <= value <= MAX_MODE:
        return
    digits = str(value)
    octal = int(digits, 8) if value > 0 and set(digits) <= set("01234567") else -1
    advice = f": write 0{digits}, with a zero in front" if 0 <= octal <= MAX_MODE else ""
    report(path, f"must be from 0 to 0777 (octal), but it is {value} (decimal){advice}")
