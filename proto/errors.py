"""What is wrong with an object, and where: the one form in which the parts of this package report it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

MAX_PROBLEMS = 200  # per source; a file that is wrong in a million places needs no million lines


class FieldError(NamedTuple):
    """`path` as in spec.containers[0].image, empty for the whole object; `message` says what, why and what to do."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def join(path: str, name: str) -> str:
    """The path of a field below `path`."""
    return f"{path}.{name}" if path else name


def keyed(path: str, key: str) -> str:
    """The path of a map's entry: metadata.labels.app, or metadata.labels["a.b/c"] where a dot would mislead."""
    if key and key.replace("-", "").replace("_", "").isalnum():
        return join(path, key)
    shown = key if len(key) <= 80 else key[:80] + "..."
    return f'{path}["{shown}"]'


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, or None."""
    candidates = sorted(set(names))
    folded = name.casefold()
    for candidate in candidates:
        if candidate.casefold() == folded:
            return candidate
    if len(name) > 100:
        return None
    import difflib  # kept out of the good path's start

    by_fold = {candidate.casefold(): candidate for candidate in candidates}
    close = difflib.get_close_matches(folded, by_fold, n=1, cutoff=0.7)
    return by_fold[close[0]] if close else None


def shorten(value: object, limit: int = 60) -> str:
    """A value as it can stand in a message."""
    text = f'"{value}"' if isinstance(value, str) else str(value)
    text = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return text if len(text) <= limit else text[:limit] + "..."
