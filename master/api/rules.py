"""The manifests' rules as admission uses them."""

from __future__ import annotations

from shoal.master.model import Object


def api_version(kind: str) -> str:
    """apiVersion of a kind."""
    return "apps/v1" if kind in ("Deployment", "ReplicaSet") else "v1"


def apply_defaults(obj: Object) -> None:
    """Fills in what the manifest leaves out."""


def problems(obj: Object) -> list[tuple[str, str]]:
    """All that is wrong with an object."""
    return [] if obj.metadata.name else [("metadata.name", "is missing")]


def update_problems(old: Object, new: Object) -> list[tuple[str, str]]:
    """What may not change."""
    return []
