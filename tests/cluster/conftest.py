"""Every test here must leave the machine as it found it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.leaks import nothing_left


@pytest.fixture(autouse=True)
def clean_machine() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces, cgroups and links")
    with nothing_left():
        yield
