"""What is kept of a job that is suspended. [pure]"""

from __future__ import annotations

from msgspec import Struct


class Suspension(Struct, frozen=True, gc=False, array_like=True):
    """Who has all of a job stand still, since when, and why."""

    at: float
    by: str
    reason: str
