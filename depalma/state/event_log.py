"""What happened, numbered without gaps. [pure]

One compact record a command; it is opened into one event a task only when somebody reads (`events.py`). A ring of
bounded size is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from msgspec import Struct

from depalma.model import AttemptRef, EventView
from depalma.state.task_states import WORDS

K = TypeVar("K")

#: Events that are kept at least (whole records are dropped, so it may be a few more).
KEEP_EVENTS = 50_000

#: What `words` of a requeue record say beyond the states: the agent gave the task back unstarted.
RETURNED = 100
#: …or ended it because the host was to be free of work.
MOVED = 101
_BACK = {RETURNED: "returned", MOVED: "moved"}

Detail = Mapping[str, str | int | float | bool | None]


class EventRecord(Struct, frozen=True, array_like=True, gc=False):
    """Events of one kind from one command: one a ref, or a single one when there are no refs."""

    first: int  #: number of the first of them
    kind: str
    at: float
    job: int = -1
    host: str = ""
    refs: tuple[AttemptRef, ...] = ()
    words: bytes = b""  #: one a ref, for kinds that tell a state (see `events.py`)
    detail: Detail | None = None

    @property
    def count(self) -> int:
        """Returns how many events it stands for."""
        return len(self.refs) or 1

    def event(self, place: int, number: int) -> EventView:
        """Returns one of its events, under this number."""
        if not self.refs:
            job, detail = None if self.job < 0 else self.job, dict(self.detail or {})
            return EventView(index=number, at=self.at, kind=self.kind, job=job, host=self.host, detail=detail)
        job, task, attempt = self.refs[place]
        detail = {"attempt": attempt, **(self.detail or {})}
        if self.words:
            word = self.words[place]
            detail["state"] = _BACK.get(word) or WORDS[word]
        return EventView(index=number, at=self.at, kind=self.kind, job=job, task=task, host=self.host, detail=detail)

    def only(self, places: Sequence[int]) -> EventRecord:
        """Returns a record of some of its events; their numbers are the caller's to keep."""
        words = bytes(self.words[place] for place in places) if self.words else b""
        refs = tuple(self.refs[place] for place in places)
        return EventRecord(self.first, self.kind, self.at, self.job, self.host, refs, words, self.detail)


def from_place(kept: deque[K], start: int) -> Iterator[K]:
    """Yields what stands at `start` and behind it, walking there from the nearer end: who follows is always at the
    new one, and is told at each commit."""
    behind = len(kept) - start
    if behind < start:
        return reversed(list(islice(reversed(kept), max(0, behind))))
    return islice(kept, start, None)


class EventLog:
    """The ring of the latest records; numbers start at 1 and never repeat."""

    __slots__ = ("fresh", "next_index", "records")

    def __init__(self) -> None:
        self.next_index = 1
        self.records: deque[EventRecord] = deque()
        self.fresh: list[EventRecord] | None = None  #: for the webhooks, until they took them; None: there are none

    def add(
        self,
        kind: str,
        at: float,
        *,
        job: int = -1,
        host: str = "",
        refs: tuple[AttemptRef, ...] = (),
        words: bytes = b"",
        detail: Detail | None = None,
    ) -> None:
        """Appends a record and drops what is too old."""
        record = EventRecord(self.next_index, kind, at, job, host, refs, words, detail)
        records = self.records
        records.append(record)
        if self.fresh is not None:
            self.fresh.append(record)
        self.next_index += len(refs) or 1
        bound = self.next_index - KEEP_EVENTS
        while len(records) > 1 and records[1].first <= bound:
            records.popleft()
