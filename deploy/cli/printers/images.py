"""The rows and documents of `image ls`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shoal.deploy.cli.printers.text import NONE, clean, size

DIGEST = "sha256:"
SHORT = 12  # digits of a digest that are shown, as docker does
MOST_NODES = 3  # that a row names
HEADINGS = ["IMAGE", "DIGEST", "SIZE", "NODES"]


@dataclass(frozen=True, slots=True)
class Found:
    """One name and content, and who has it. The same name may hold different images on different nodes."""

    name: str
    digest: str
    bytes: int
    nodes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        return {"name": self.name, "digest": self.digest, "sizeBytes": self.bytes, "nodes": list(self.nodes)}


def found_images(nodes: Iterable[Any]) -> list[Found]:
    """What the nodes say they have, by name."""
    where: dict[tuple[str, str, int], list[str]] = {}
    for node in nodes:
        for image in node.status.images:
            digest = next((name for name in image.names if name.startswith(DIGEST)), "")
            for name in [name for name in image.names if name != digest] or [""]:
                where.setdefault((name, digest, image.sizeBytes), []).append(node.metadata.name)
    return [Found(name, digest, amount, tuple(sorted(have))) for (name, digest, amount), have in sorted(where.items())]


def row(image: Found, count: int, *, wide: bool = False) -> list[str]:
    """`count`: how many nodes there are. `wide`: nothing is cut short."""
    digest = image.digest if wide else image.digest.removeprefix(DIGEST)[:SHORT]
    return [clean(image.name) or NONE, clean(digest) or NONE, size(image.bytes), _nodes(image.nodes, count, wide)]


def _nodes(have: tuple[str, ...], count: int, wide: bool) -> str:
    if len(have) == count > 1:
        return f"all {count}"
    shown = have if wide or len(have) <= MOST_NODES + 1 else have[:MOST_NODES]
    more = f" and {len(have) - len(shown)} more" if len(shown) < len(have) else ""
    return ",".join(shown) + more
