"""From a pod and what it refers to: its containers' environment, its volumes and their mounts. Pure."""

from __future__ import annotations

from shoal.agent.volumes.port import Missing


class Unresolved(Exception):
    """The pod refers to something that is not there: it waits until it is."""

    def __init__(self, missing: Missing) -> None:
        super().__init__(missing.what)
        self.missing = missing
