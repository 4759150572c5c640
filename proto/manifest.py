"""Manifests: text in, objects out, with everything that is wrong with them, each with its file, line and path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from shoal.proto import defaults, known, validation
from shoal.proto.errors import MAX_PROBLEMS, FieldError, join, nearest, shorten
from shoal.proto.kinds import CLASSES, Object
from shoal.proto.walker import describe, from_tree
from shoal.proto.yamltree import Document, YamlError, line_of, read_documents

MAX_OBJECTS = 10_000  # per source


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `str` gives `file:line: Kind name: path: message`."""

    source: str
    line: int  # from 1; 0 when unknown
    subject: str  # "Pod web", or empty before the object is known
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}" if self.line else self.source
        return ": ".join(part for part in (where, self.subject, self.path, self.message) if part)


@dataclass(frozen=True, slots=True)
class Unsupported:
    """An object of a kind that Kubernetes (or an extension of it) has and Shoal has not."""

    kind: str
    api_version: str
    name: str
    source: str
    line: int
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a source holds. `objects` are as written, without defaults; they are to be used only without `errors`."""

    objects: list[ManifestObject] = field(default_factory=list)
    errors: list[Problem] = field(default_factory=list)
    unsupported: list[Unsupported] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ManifestObject:
    """An object with its place."""

    message: Object
    source: str
    line: int
    tree: Any
    unread: list[FieldError]  # what could not be read, and is therefore not in `message`

    def problem(self, error: FieldError) -> Problem:
        """The error with the file and line that its path leads to."""
        subject = f"{self.message.kind} {self.message.metadata.name}".strip()
        line = line_of(self.tree, error.path, self.line)
        return Problem(self.source, line, subject, error.path, error.message)


def parse(text: str, source: str = "<input>", *, check: bool = True) -> Parsed:
    """Reads a manifest (YAML or JSON, many documents, lists). With `check` also what validation finds is reported."""
    parsed = Parsed()
    try:
        for document in read_documents(text):
            _read_document(document, source, parsed)
            if len(parsed.objects) > MAX_OBJECTS:
                raise YamlError(f"holds more than {MAX_OBJECTS} objects: split it into several files")
    except YamlError as wrong:
        parsed.errors.append(Problem(source, wrong.line, "", "", str(wrong)))
    if check:
        _check(parsed)
    parsed.errors.sort(key=lambda problem: problem.line)
    if len(parsed.errors) > MAX_PROBLEMS:
        more = len(parsed.errors) - MAX_PROBLEMS
        parsed.errors[MAX_PROBLEMS:] = [Problem(source, 0, "", "", f"{more} more errors are not shown")]
    return parsed


def unsupported_message(unsupported: list[Unsupported]) -> str:
    """One sentence that names them all: what is refused, or skipped."""
    by_kind: dict[str, list[Unsupported]] = {}
    for item in unsupported:
        by_kind.setdefault(item.kind, []).append(item)
    parts = []
    for kind, items in by_kind.items():
        names = ", ".join(item.name or "(no name)" for item in items[:3]) + (", ..." if len(items) > 3 else "")
        hint = f"; {items[0].hint}" if items[0].hint else ""
        parts.append(f"{kind} ({names}{hint})")
    return "kinds that are not supported: " + ", ".join(parts)


def _read_document(document: Document, source: str, parsed: Parsed) -> None:
    for duplicate in document.duplicates[:MAX_PROBLEMS]:
        parsed.errors.append(Problem(source, duplicate.line, "", "", str(duplicate)))
    for tree, path, line in _objects(document.tree, document.line):
        _read_object(tree, path, line, source, parsed)


def _objects(tree: Any, line: int) -> Iterator[tuple[Any, str, int]]:
    """The objects of a document with their paths: itself, or the items of a List."""
    line = getattr(tree, "line", 0) or line
    kind = tree.get("kind") if isinstance(tree, dict) else None
    is_list = isinstance(kind, str) and (kind == "List" or (kind.endswith("List") and kind[:-4] in _ALL_KINDS))
    if is_list and isinstance(tree.get("items"), list):
        items = tree["items"]
        lines = getattr(items, "lines", [])
        for index, item in enumerate(items):
            yield item, f"items[{index}]", lines[index] if index < len(lines) else line
    elif is_list and tree.get("items") is None:
        return
    elif tree is not None:
        yield tree, "", line


_ALL_KINDS = frozenset(CLASSES) | frozenset(known.OTHER_KINDS)


def _read_object(tree: Any, path: str, line: int, source: str, parsed: Parsed) -> None:
    def wrong(where: str, message: str, subject: str = "") -> None:
        at = line_of(tree, where, line)
        parsed.errors.append(
            Problem(source, at, subject, join(path, where) if path and where else path or where, message)
        )

    if not isinstance(tree, dict):
        wrong("", f"an object must be a set of fields with apiVersion and kind, but this is {describe(tree)}")
        return
    kind, version = tree.get("kind"), tree.get("apiVersion")
    if not isinstance(kind, str) or not kind:
        wrong("kind", "is missing: say what this object is, such as kind: Pod" if kind is None else _no_text(kind))
        return
    if not isinstance(version, str | None):
        wrong("apiVersion", _no_text(version))
        return
    cls = CLASSES.get(kind)
    if cls is None or _foreign(kind, version):
        _refuse_kind(kind, version or "", tree, line, source, parsed, wrong)
        return
    expected = known.API_VERSIONS[kind]
    if version != expected:
        given = "is missing" if version is None else f"{shorten(version)} is not the version of {kind}"
        wrong("apiVersion", f"{given}: write apiVersion: {expected}", f"{kind} {_name(tree)}".strip())
    message, errors = from_tree(tree, cls)
    found = ManifestObject(message, source, line, tree, errors)
    parsed.objects.append(found)
    parsed.errors.extend(found.problem(error) for error in errors)


def _no_text(value: Any) -> str:
    return f"must be a text, but it is {describe(value)}"


def _name(tree: Any) -> str:
    metadata = tree.get("metadata")
    name = metadata.get("name", metadata.get("generateName", "")) if isinstance(metadata, dict) else ""
    return name[:253] if isinstance(name, str) and name.isprintable() else ""


def _group(version: str | None) -> str:
    return (version or "").rpartition("/")[0]


_OUR_GROUPS = frozenset(_group(version) for version in known.API_VERSIONS.values())
_KNOWN_GROUPS = frozenset({"", "extensions"}) | frozenset(known.OTHER_KINDS.values()) | _OUR_GROUPS


def _foreign(kind: str, version: str | None) -> bool:
    """A kind of ours by name, but of an extension's group (serving.knative.dev/v1 has a Deployment-like Service)."""
    group = _group(version)
    return (group not in _KNOWN_GROUPS and "." in group) or (kind == "Event" and group == "events.k8s.io")


def _refuse_kind(kind: str, version: str, tree: Any, line: int, source: str, parsed: Parsed, wrong: Any) -> None:
    group = _group(version)
    if kind in known.OTHER_KINDS or _foreign(kind, version):
        hint = known.KIND_HINTS.get(kind, "")
        if kind == "Event":
            hint = "write apiVersion: v1"
        elif kind not in known.OTHER_KINDS:
            hint = f"an extension's kind, of {group}"
        parsed.unsupported.append(Unsupported(kind, version, _name(tree), source, line, hint))
        return
    meant = nearest(kind, _ALL_KINDS)
    if meant in CLASSES:
        advice = f"did you mean {meant}?"
    elif meant is not None:
        advice = f"did you mean {meant}? (That one is not supported.)"
    else:
        advice = f"known kinds are {', '.join(CLASSES)}"
    wrong("kind", f"{shorten(kind)} is not a known kind; {advice}")


def _check(parsed: Parsed) -> None:
    """Adds what validation finds, save where reading has already complained about the same field."""
    seen: dict[tuple[str, str, str], int] = {}
    for found in parsed.objects:
        complete = type(found.message)()
        complete.CopyFrom(found.message)  # type: ignore[arg-type]
        defaults.apply_defaults(complete)
        unread = [error.path for error in found.unread]
        for error in validation.validate(complete):
            if not any(_within(path, error.path) or _within(error.path, path) for path in unread):
                parsed.errors.append(found.problem(error))
        _check_twice(found, complete, seen, parsed)


def _within(path: str, outer: str) -> bool:
    return path == outer or path.startswith((f"{outer}.", f"{outer}["))


def _check_twice(
    found: ManifestObject, complete: Object, seen: dict[tuple[str, str, str], int], parsed: Parsed
) -> None:
    if not complete.metadata.name:
        return
    identity = (complete.kind, complete.metadata.namespace, complete.metadata.name)
    if identity in seen:
        message = f"this object is already in line {seen[identity]}: keep one"
        parsed.errors.append(found.problem(FieldError("metadata.name", message)))
    seen.setdefault(identity, found.line)
