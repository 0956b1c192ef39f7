"""Shared by the unit tests."""

from __future__ import annotations

from hypothesis import settings

# Where others work too, the process may stand still for longer than an example may take by default.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
