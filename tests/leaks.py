"""Fails a test that leaves anything of Shoal's behind on the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shoal.deploy.devcluster.leftovers import MARK, listing, wait_clean

PATIENCE_SECONDS = 60.0  # of a busy machine
__all__ = ["clean_machine", "listing", "nothing_left", "wait_clean"]


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fails when the block leaves anything behind, also when it raises."""
    os.environ.setdefault(MARK, f"{os.getpid()}")
    before = listing()
    try:
        yield
    finally:
        extra = wait_clean(before, PATIENCE_SECONDS)
    assert not extra, f"left behind: {extra}"


def clean_machine() -> Iterator[None]:
    """The body of a fixture, of whatever scope: as root, what comes between must leave the machine as it was."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces, cgroups and links")
    with nothing_left():
        yield
