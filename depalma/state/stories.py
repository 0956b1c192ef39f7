"""What happened to a task that needed more than one attempt. [pure]"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from depalma.tails import OutputTail, not_kept

#: Attempts that a story keeps; older ones are only counted.
KEEP_ATTEMPTS = 20
#: Of how many of them, besides the last attempt, the end of the output is kept.
KEEP_TAILS = 5

_REPLACED = not_kept(f"only that of the last attempt and of the {KEEP_TAILS} before it is")


class PastAttempt(Struct, frozen=True, gc=False, array_like=True):
    """An attempt after which the task went back to the queue. `state`: failed, timed_out, returned, moved or
    lost."""

    number: int
    host: str
    state: str
    started_at: float | None
    finished_at: float
    reason: str
    tail: OutputTail | None = None  #: the end of what it wrote
    alternative: int = 0


class Story(Struct, gc=False, array_like=True):
    """What happened to a task that went back to the queue at least once."""

    last: int  #: number of the last attempt that ended so
    failures: int  #: those that count against the job's retries
    attempts: list[PastAttempt]  #: the latest ones
    timeouts: int = 0  #: those that timed out, where these count apart
    losses: int = 0  #: those whose host was lost

    def add(self, past: PastAttempt) -> None:
        """Appends an attempt; one is forgotten for it, and the output of one before that."""
        attempts = self.attempts
        attempts.append(past)
        del attempts[:-KEEP_ATTEMPTS]
        if len(attempts) > KEEP_TAILS and attempts[-KEEP_TAILS - 1].tail is not None:
            attempts[-KEEP_TAILS - 1] = replace(attempts[-KEEP_TAILS - 1], tail=_REPLACED)

    def attempt(self, number: int) -> PastAttempt | None:
        """Returns the attempt of this number, if it is not forgotten."""
        return next((past for past in self.attempts if past.number == number), None)
