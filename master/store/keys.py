"""Keys in etcd: /shoal/objects/<kind>/<namespace>/<name>; cluster-scoped kinds have an empty namespace."""

from __future__ import annotations

from shoal.master.model import CLUSTER_SCOPED, KINDS, Invalid, Key
from shoal.master.store.port import prefix_end

ROOT = b"/shoal/"
ROOT_END = prefix_end(ROOT)
OBJECTS = b"/shoal/objects/"
OBJECTS_END = prefix_end(OBJECTS)
COMMIT = b"/shoal/commit"
LEADER = b"/shoal/leader"
INCARNATION = b"/shoal/incarnation"
MAX_PART_CHARS = 253  # a DNS subdomain, the longest name that Kubernetes allows


def check(key: Key) -> None:
    """Raises Invalid for a key that cannot be stored: it would not be read back as itself."""
    if key.kind not in KINDS:
        raise Invalid(f"{key}: no kind {key.kind!r}; there are {', '.join(sorted(KINDS))}")
    if not key.name:
        raise Invalid(f"{key.kind}: metadata.name is empty; give the object a name")
    if (key.kind in CLUSTER_SCOPED) == bool(key.namespace):
        want = "has no namespace: leave it empty" if key.namespace else "needs metadata.namespace"
        raise Invalid(f"{key}: a {key.kind} {want}")
    for field, part in (("namespace", key.namespace), ("name", key.name)):
        if "/" in part or "\0" in part or part in (".", "..") or len(part) > MAX_PART_CHARS:
            raise Invalid(
                f"{key.kind}: metadata.{field} {part[:80]!r} must be a name of at most 253 characters without /"
            )


def encode(key: Key) -> bytes:
    """The key's bytes in etcd. `check` first."""
    return f"/shoal/objects/{key.kind}/{key.namespace}/{key.name}".encode()


def decode(raw: bytes) -> Key | None:
    """The object key in these bytes; None for a key of another sort or of a kind that this version does not know."""
    parts = raw.decode(errors="replace").split("/")
    if len(parts) != 6 or parts[1:3] != ["shoal", "objects"] or parts[3] not in KINDS:
        return None
    return Key(parts[3], parts[4], parts[5])
