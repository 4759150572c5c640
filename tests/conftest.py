"""The same examples in each run, however slow the machine; `--hypothesis-profile explore` looks for new ones."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

PATIENT = [HealthCheck.too_slow]
settings.register_profile("explore", deadline=None, suppress_health_check=PATIENT)
settings.register_profile("same", deadline=None, suppress_health_check=PATIENT, derandomize=True)
settings.load_profile("same")
