"""The answers to requests that carried an id, so that a retry changes nothing and gets the same answer. [pure]

Two generations: answers go into the younger one; when that is an hour old, or full, it becomes the older one and the
former older one is dropped. So every answer is kept for at least an hour (by the commands' own times) unless more
than LIMIT came since, and forgetting costs nothing a request.
"""

from __future__ import annotations

from msgspec import Struct

KEEP_S = 3600.0
#: Most answers kept, both generations together.
LIMIT = 200_000

Answer = int | tuple[int, ...] | None


class Known(Struct, frozen=True, gc=False, array_like=True):
    """The answer that was given."""

    value: Answer


class Answers:
    """Answers by request; a request is named by its kind and its id."""

    __slots__ = ("older", "since", "younger")

    def __init__(self) -> None:
        self.younger: dict[str, Answer] = {}
        self.older: dict[str, Answer] = {}
        self.since = 0.0  #: when the younger generation began

    def find(self, kind: str, request: str) -> Known | None:
        """Returns the answer that was given; None for a new request or one without id."""
        if not request:
            return None
        key = f"{kind}:{request}"
        for generation in (self.younger, self.older):
            if key in generation:
                return Known(generation[key])
        return None

    def keep(self, kind: str, request: str, value: Answer, at: float) -> None:
        """Remembers the answer to a request that has an id."""
        if not request:
            return
        if not self.younger:
            self.since = at
        elif at - self.since >= KEEP_S or len(self.younger) >= LIMIT // 2:
            self.older, self.younger, self.since = self.younger, {}, at
        self.younger[f"{kind}:{request}"] = value
