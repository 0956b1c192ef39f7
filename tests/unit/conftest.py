"""Shared by the unit tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Where others work too, the process may stand still for longer than an example, or making one, may take by default.
# Fixtures that examples share are factories here.
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("patient")
