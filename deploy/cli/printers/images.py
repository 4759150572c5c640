"""The rows of `image ls`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shoal.deploy.cli.printers.text import clean, size


def image_rows(nodes: Iterable[Any]) -> list[list[str]]:
    """A row per name and size: (name, size, nodes that have it); names may differ in what they hold between nodes."""
    where: dict[tuple[str, int], list[str]] = {}
    count = 0
    for node in nodes:
        count += 1
        for image in node.status.images:
            named = [name for name in image.names if not name.startswith("sha256:")]
            for name in named or image.names:
                where.setdefault((name, image.sizeBytes), []).append(node.metadata.name)
    return [
        [clean(name), size(amount), f"all {count}" if len(have) == count > 1 else ",".join(sorted(have))]
        for (name, amount), have in sorted(where.items())
    ]
