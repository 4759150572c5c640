"""The file that `shoal plan --out` writes and `shoal apply --plan` reads: JSON, with a digest over all of it.

The digest shows mistakes and half-written files; it is no signature. The file holds the manifests, values of Secrets
included, and is readable by its owner only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.deploy.cli.failures import CommandError
from shoal.proto.kinds import CLASSES, Object
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.walker import from_tree, to_tree

API_VERSION, KIND, FORMAT = "shoal.dev/v1", "Plan", 1
MAX_BYTES = 64 << 20
AGAIN = "make it again with shoal plan --out"


@dataclass(frozen=True, slots=True)
class PlanFile:
    """The objects as they were planned, and what the cluster said of them."""

    objects: list[Object]
    expected: c.PlanResponse


def write(path: str, objects: Sequence[Object], expected: c.PlanResponse) -> None:
    """Replaces the file as a whole. Raises CommandError."""
    document = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "format": FORMAT,
        "objects": [to_tree(found) for found in objects],
        "expected": to_tree(expected),
    }
    document["digest"] = digest(document)
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
        os.replace(draft, target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CommandError(f"cannot write the plan to {path}: {error.strerror or error}") from None


def read(path: str) -> PlanFile:
    """Raises CommandError with what is wrong with the file."""
    document = _document(path)
    if (document.get("apiVersion"), document.get("kind")) != (API_VERSION, KIND):
        raise CommandError(f"{path}: is no plan: {AGAIN}")
    if document.get("format") != FORMAT:
        raise CommandError(
            f"{path}: has plan format {str(document.get('format'))[:20]}, this version of shoal reads {FORMAT}: {AGAIN}"
        )
    said = document.pop("digest", None)
    if said != digest(document):
        raise CommandError(f"{path}: has been changed or cut off since it was written: {AGAIN}")
    try:
        expected, problems = from_tree(document["expected"], c.PlanResponse)
        objects = [_object(tree) for tree in document["objects"]]
    except (KeyError, TypeError) as wrong:
        raise CommandError(f"{path}: lacks {wrong}: {AGAIN}") from None
    if problems:
        raise CommandError(f"{path}: {problems[0]}: {AGAIN}")
    return PlanFile(objects, expected)


def _document(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CommandError(f"cannot read the plan {path}: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise CommandError(f"{path}: has more than {MAX_BYTES >> 20} MiB: that is no plan")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise CommandError(f"{path}: is no plan, or is cut off: {AGAIN}") from None
    if not isinstance(document, dict):
        raise CommandError(f"{path}: is no plan: {AGAIN}")
    return document


def _object(tree: dict[str, Any]) -> Object:
    cls = CLASSES.get(str(tree["kind"]))
    if cls is None:
        raise CommandError(f"the plan holds a {tree['kind']}, which this version of shoal does not know: update it")
    found, problems = from_tree(tree, cls)
    if problems:
        raise CommandError(f"the plan's {tree['kind']} cannot be read: {problems[0]}: {AGAIN}")
    return found


def digest(document: dict[str, Any]) -> str:
    """Of everything but itself."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
