"""What every long-running program does to its own process."""

from __future__ import annotations

import resource


def write_no_core() -> None:
    """No core file by default: keys, Secrets and passwords would lie in it. Children inherit that; the hard limit,
    which containers may want, stays."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
