"""The rows of `image ls`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shoal.deploy.cli.printers.text import clean, size

DIGEST = "sha256:"
SHORT = 12  # digits of a digest that are shown, as docker does
HEADINGS = ["IMAGE", "DIGEST", "SIZE", "NODES"]


def image_rows(nodes: Iterable[Any]) -> list[list[str]]:
    """A row per name and content: (name, digest, size, nodes that have it). The same name may hold different images
    on different nodes: then it has several rows."""
    where: dict[tuple[str, str, int], list[str]] = {}
    count = 0
    for node in nodes:
        count += 1
        for image in node.status.images:
            digest = next((name for name in image.names if name.startswith(DIGEST)), "")
            short = digest.removeprefix(DIGEST)[:SHORT] or "<none>"
            for name in [name for name in image.names if name != digest] or ["<none>"]:
                where.setdefault((name, short, image.sizeBytes), []).append(node.metadata.name)
    return [
        [clean(name), short, size(amount), f"all {count}" if len(have) == count > 1 else ",".join(sorted(have))]
        for (name, short, amount), have in sorted(where.items())
    ]
