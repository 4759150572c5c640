"""Writes docs/fields.md: which fields of manifests are supported. `python -m tests.meta.fields`"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor

from shoal.proto import known
from shoal.proto.kinds import CLASSES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/fields.md"
HEAD = """\
# Fields
Which fields of manifests are supported; made from the code by `make proto`, and a test compares. What is not is refused
with its path, never ignored, unless its value is empty or what is so anyway. Defaults are Kubernetes'.
"""
PLAIN = frozenset({"Time", "Quantity", "IntOrString"})  # written as a text or a number
NOT_WRITTEN = frozenset({"Event", "Death"})  # kinds that only the system writes


def page() -> str:
    return HEAD + "\n".join(_sections())


def _sections() -> Iterator[str]:
    seen: set[str] = set()
    for kind, version in known.API_VERSIONS.items():
        if kind not in NOT_WRITTEN:
            yield f"\n## {kind} ({version})"
            yield from _message(CLASSES[kind].DESCRIPTOR, seen)
    kinds = sorted(kind for kind, group in known.OTHER_KINDS.items() if group in ("", "apps", "batch", "policy"))
    yield "\n## Kinds that are not supported yet\n" + ", ".join(kinds) + ", and all of other groups.\n"


def _message(descriptor: Descriptor, seen: set[str]) -> Iterator[str]:
    """A message's fields, then those of the messages within it; each message once, statuses never."""
    name = descriptor.name
    if name in seen or name.endswith("Status") or not descriptor.fields:
        return
    seen.add(name)
    fields = [field.name for field in descriptor.fields if field.name not in ("apiVersion", "kind", "status")]
    if name not in PLAIN:
        yield f"- **{name}**: {', '.join(fields)}" + _unsupported(name)
    for field in descriptor.fields:
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            inner = inner.fields_by_name["value"].message_type
        if inner is not None:
            yield from _message(inner, seen)


def _unsupported(name: str) -> str:
    fields, anyway = known.UNSUPPORTED_FIELDS.get(name, {}), known.HOLDS_ANYWAY.get(name, {})
    words = []
    for field in fields:
        values = " or ".join(f"`{json.dumps(value)}`" for value in anyway.get(field, ()))
        words.append(f"{field} (but {values} may stay)" if values else field)
    return f"; not yet: {', '.join(words)}" if words else ""


if __name__ == "__main__":
    PAGE.write_text(page())
