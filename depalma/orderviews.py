"""What users see of the order of jobs: shares, limits, and what a dry run says. [pure]"""

from __future__ import annotations

from msgspec import Struct


class LimitView(Struct, frozen=True, kw_only=True):
    kind: str  #: tag, user or group
    name: str  #: of users, `*` is each who has none of his own
    limit: int
    tasks: int  #: under it, on hosts now; of `*` the most that one user has


class QuotaView(Struct, frozen=True, kw_only=True):
    kind: str  #: tag, user or group
    name: str  #: of users, `*` is each who has none of his own
    most: dict[str, float]  #: of slots, gpus, memory_bytes, and resources
    used: dict[str, float]  #: by its tasks, now; of `*` nothing is told


class ShareView(Struct, frozen=True, kw_only=True):
    user: str
    weight: float
    usage_s: float  #: slot seconds, older ones counting less
    slots: float  #: that its tasks have now
    tasks: int
    waiting: int  #: jobs that wait for a host


class OrderView(Struct, frozen=True, kw_only=True):
    half_life_s: float
    age_s: float  #: 0 = no ageing
    limits: list[LimitView]
    users: list[ShareView]
    quotas: list[QuotaView] = []


class TrialView(Struct, frozen=True, kw_only=True):
    """What would become of a job if it were submitted now."""

    tasks: int
    starting: dict[str, int]  #: host → tasks that would start there at once
    waiting: int  #: tasks that would wait
    starts_by: float | None  #: by when a task would start at the latest; None = that cannot be said
    lines: list[str]  #: what it would wait for, host by host
    starts_about: float | None = None  #: when a task would start, by how long tasks have taken; None = nobody knows
    forecast: str = ""  #: what that is by, or why nobody knows
