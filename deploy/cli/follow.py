"""Objects as they change: a list, then a watch from its revision, begun anew when that is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from shoal.deploy.cli.failures import Refused
from shoal.proto.kinds import Object

if TYPE_CHECKING:
    from shoal.deploy.cli.client import Client

Identity: TypeAlias = tuple[str, str, str]  # kind, namespace, name


def identity(obj: Object) -> Identity:
    return obj.kind, obj.metadata.namespace, obj.metadata.name


def follow(
    client: Client, kinds: Sequence[str], namespace: str, deadline: float | None, labels: str = "", fields: str = ""
) -> Iterator[dict[Identity, Object]]:
    """The objects of these kinds, after each change; ends at the deadline (on time.monotonic's clock)."""
    while deadline is None or time.monotonic() < deadline:
        state: dict[Identity, Object] = {}
        revision = 0
        for kind in kinds:
            found = client.list_objects(kind, namespace, labels, fields)
            state |= {identity(obj): obj for obj in found.objects}
            # Of several lists the oldest revision: what changed in between comes once more, which is harmless.
            revision = min(revision, found.revision) if revision else found.revision
        yield state
        try:
            for _, changes in client.watch(kinds, namespace, revision, labels=labels, fields=fields, deadline=deadline):
                for change in changes:
                    if change.type == "DELETED":
                        state.pop(identity(change.object), None)
                    else:
                        state[identity(change.object)] = change.object
                if changes:
                    yield state
        except Refused as refused:
            if refused.reason != "Expired":
                raise
