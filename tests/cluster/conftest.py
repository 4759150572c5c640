"""Every test here must leave the machine as it found it."""

from __future__ import annotations

import pytest

from tests import leaks

clean_machine = pytest.fixture(autouse=True)(leaks.clean_machine)
