"""The replicated commands about who comes first, and how many at once. [pure]"""

from __future__ import annotations

import msgspec

from depalma.model import AttemptRef
from depalma.state.command import Command


class SetLimit(Command, frozen=True, tag="order.limit"):
    """At most `limit` tasks of a tag, a user (`*`: each who has none of his own) or a group are on hosts at once; None
    removes the limit. What is on hosts stays there."""

    request: str
    kind: str  #: tag, user or group
    name: str
    limit: int | None
    at: float


class SetShare(Command, frozen=True, tag="order.share"):
    """Within a priority, users get slots in proportion to their weights (1 unless it is set)."""

    request: str
    user: str
    weight: float
    at: float


class SetOrder(Command, frozen=True, tag="order.set"):
    """How fast usage is forgotten, and after how long a priority that got nothing gets a task (0 = never). None leaves
    as it is."""

    request: str
    at: float
    half_life_s: float | None = None
    age_s: float | None = None


class AssignGang(Command, frozen=True, tag="task.assign_gang"):
    """Gives all members of a gang to hosts, or none. `parts`: host, its incarnation, and what it gets. Answers
    Applied(AssignOutcome). `term` is the proposing leader's."""

    term: int
    parts: tuple[tuple[str, str, tuple[AttemptRef, ...]], ...]
    at: float
    reason: str = ""
    avoid: dict[str, tuple[int, ...]] = msgspec.field(default_factory=dict)  #: GPUs that something else uses, by host
    #: by host, those of each member there, where parts of some are given; else the state chooses
    gpus: dict[str, tuple[tuple[int, ...], ...]] = msgspec.field(default_factory=dict)


class SetQuota(Command, frozen=True, tag="order.quota"):
    """The tasks of a tag, a user (`*`: each who has none of his own) or a group take at most so much at once of
    `slots`, `gpus`, `memory_bytes` and resources; None removes the quota. What is on hosts stays there."""

    request: str
    kind: str  #: tag, user or group
    name: str
    most: dict[str, float] | None
    at: float
