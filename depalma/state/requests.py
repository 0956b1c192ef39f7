"""The answers to requests that carried an id, so that a retry changes nothing and gets the same answer. [pure]

Two generations: answers go into the younger one; when that is an hour old, or full, it becomes the older one and the
former older one is dropped. So an answer is kept for an hour (by the commands' own times) unless more than half of
LIMIT came since, and forgetting costs nothing a request.

Whose answer is forgotten must not be taken for new. So an id may say how far its sender had seen the state before it
sent the request for the first time (`with_seen`): any answer to it is younger than that. Where all answers since then
are here, an unknown id is a new one, for certain; where they are not, the request is refused, as nobody can tell.
"""

from __future__ import annotations

from msgspec import Struct

from depalma.errors import Rejected

KEEP_S = 3600.0
#: Most answers kept, both generations together.
LIMIT = 200_000
#: Between an id and the version that its sender had seen; ids are printable.
_SEEN = "\0"

Answer = int | tuple[int, ...] | None


class Forgotten(Rejected):
    """An answer may have been given and is not kept any more."""

    def __init__(self) -> None:
        super().__init__(
            "whether this request was done before is not remembered any more: it is too long ago, or too many came"
            " since. Look, and send it as a new one if it was not",
            code="request_forgotten",
        )


class Known(Struct, frozen=True, gc=False, array_like=True):
    """The answer that was given."""

    value: Answer


def with_seen(request: str, version: int) -> str:
    """Returns the id of a request whose sender had seen this version of the state before it sent it first."""
    return f"{request}{_SEEN}{version}"


class Answers:
    """Answers by request; a request is named by its kind and its id."""

    __slots__ = ("complete_from", "now", "older", "since", "younger", "younger_from")

    def __init__(self) -> None:
        self.younger: dict[str, Answer] = {}
        self.older: dict[str, Answer] = {}
        self.since = 0.0  #: when the younger generation began
        self.now = 0  #: version of the state with the command that is being applied
        self.younger_from = 0  #: version with which the younger generation began
        self.complete_from = 0  #: all answers of this version and later ones are here

    def find(self, kind: str, request: str) -> Known | None:
        """Returns the answer that was given; None for a new request or one without id.

        To be called before anything is changed. Errors: Forgotten.
        """
        if not request:
            return None
        key = f"{kind}:{request}"
        for generation in (self.younger, self.older):
            if key in generation:
                return Known(generation[key])
        _, says, seen = request.rpartition(_SEEN)
        if says and seen.isascii() and seen.isdigit() and int(seen) + 1 < self.complete_from:
            raise Forgotten
        return None

    def keep(self, kind: str, request: str, value: Answer, at: float) -> None:
        """Remembers the answer to a request that has an id."""
        if not request:
            return
        if not self.younger:
            self.since, self.younger_from = at, self.now
        elif at - self.since >= KEEP_S or len(self.younger) >= LIMIT // 2:
            self.older, self.younger, self.since = self.younger, {}, at
            self.complete_from, self.younger_from = self.younger_from, self.now
        self.younger[f"{kind}:{request}"] = value
