"""How the tasks of a job ended, in the order in which they did. [pure]

Columns, not objects: a finished task takes some 45 bytes and its result. What most tasks of a job share (host, exit
code, code index and digest …) is a `Note`, stored once. Queued tasks that a cancellation ended have nothing to tell:
they are one range, of which a job has at most one.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from sys import intern
from typing import overload

from msgspec import Struct
from msgspec.structs import astuple

from depalma.model import Payload, TaskState
from depalma.tails import OutputTail


class Note(Struct, frozen=True, array_like=True, gc=False):
    """What a final attempt has in common with many others."""

    attempt: int
    host: str
    exit_code: int | None
    signal: int | None
    error: str
    code_index: int
    code_digest: str
    reason: str  #: why it was placed there
    error_code: str = ""
    outputs: Payload | None = None
    alternative: int = 0


#: The fields of a Note, in order.
NoteKey = tuple[int, str, int | None, int | None, str, int, str, str, str, Payload | None, int]


class Finished(Struct, frozen=True, gc=False):
    """The record of a finished task. `attempt` 0 and no host: it never left the queue."""

    state: TaskState
    attempt: int
    host: str
    exit_code: int | None
    signal: int | None
    error: str
    result: Payload | None
    started_at: float | None
    finished_at: float
    code_index: int
    code_digest: str
    reason: str
    error_code: str = ""
    outputs: Payload | None = None
    tail: OutputTail | None = None
    alternative: int = 0


class CompletionsImage(Struct, frozen=True, array_like=True, gc=False):
    """Some rows of the columns as they stand in a snapshot (little endian)."""

    tasks: bytes
    started: bytes
    finished: bytes
    notes: bytes
    results: list[Payload | None]
    table: list[Note]
    bulk_at: int
    bulk_first: int
    bulk_count: int
    bulk_time: float
    tails: list[OutputTail | None] = []  #: of these rows; empty = none of the job's has one


_NAN = float("nan")


class Completions(Sequence[int]):
    """Task indices in order of completion, identical on all replicas, and the record of each.

    A task that was retried stands there more than once; the last of its records counts (see `withdraw`).
    """

    __slots__ = (
        "_finished",
        "_first",
        "_last_result",
        "_note_ids",
        "_notes",
        "_ordinals",
        "_results",
        "_started",
        "_table",
        "_tails",
        "_tasks",
        "_withdrawn",
        "bulk_at",
        "bulk_count",
        "bulk_first",
        "bulk_time",
    )

    def __init__(self, first_index: int) -> None:
        self._first = first_index
        self._tasks = array("q")  #: task index
        self._started = array("d")  #: NaN = unknown
        self._finished = array("d")
        self._notes = array("I")  #: position in the table
        self._results: list[Payload | None] = []
        self._tails: list[OutputTail | None] = []  #: as long as the columns once there is one; until then empty
        self._table: list[Note] = []
        self._note_ids: dict[NoteKey, int] = {}
        self._ordinals = array("I")  #: by position of the task: 1 + its place in the columns, 0 = not there
        self._last_result: Payload | None = None
        self._withdrawn = 0  #: places in the order whose record does not count any more
        self.bulk_at = -1  #: where in the order the range of cancelled tasks stands; -1 = there is none
        self.bulk_first = 0
        self.bulk_count = 0
        self.bulk_time = 0.0

    def __len__(self) -> int:
        return len(self._tasks) + self.bulk_count

    @property
    def ended(self) -> int:
        """Returns how many tasks have a record that counts."""
        return len(self._tasks) + self.bulk_count - self._withdrawn

    def lately_s(self, most: int) -> float | None:
        """Returns how long the latest tasks took on average, so many at most; None if none has run."""
        times = zip(self._started[-most:], self._finished[-most:], strict=True)
        took_s = [max(0.0, finished - started) for started, finished in times if started == started]  # NaN: unknown
        return sum(took_s) / len(took_s) if took_s else None

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        if isinstance(place, slice):
            if not self.bulk_count:
                return self._tasks[place].tolist()
            return [self[i] for i in range(*place.indices(len(self)))]
        size = len(self)
        if place < 0:
            place += size
        if not 0 <= place < size:
            raise IndexError(place)
        if not self.bulk_count or place < self.bulk_at:
            return self._tasks[place]
        if place < self.bulk_at + self.bulk_count:
            return self.bulk_first + place - self.bulk_at
        return self._tasks[place - self.bulk_count]

    def __iter__(self) -> Iterator[int]:
        if not self.bulk_count:
            yield from self._tasks
            return
        yield from self._tasks[: self.bulk_at]
        yield from range(self.bulk_first, self.bulk_first + self.bulk_count)
        yield from self._tasks[self.bulk_at :]

    def add(
        self,
        index: int,
        note: NoteKey,
        started: float | None,
        at: float,
        result: Payload | None,
        tail: OutputTail | None = None,
    ) -> None:
        """Appends the record of a task. `note` has the fields of a Note, in order."""
        number = self._note_ids.get(note)
        if number is None:
            number = self._add_note(Note(*note), note)
        if result is not None:
            # Tasks of a job often give the same small value (None): one object then.
            if result == self._last_result:
                result = self._last_result
            else:
                self._last_result = result
        self._tasks.append(index)
        self._started.append(_NAN if started is None else started)
        self._finished.append(at)
        self._notes.append(number)
        self._results.append(result)
        if tail is not None or self._tails:
            self._pad_tails(len(self._tasks) - 1)
            self._tails.append(shared(tail))
        self._set_ordinal(index - self._first, len(self._tasks))

    def add_range(self, first: int, count: int, at: float) -> None:
        """Appends `count` tasks from index `first` on as cancelled in the queue. At most once a job."""
        if count and self.bulk_count:
            raise ValueError("a job has at most one range of cancelled tasks")
        if count:
            self.bulk_at, self.bulk_first, self.bulk_count, self.bulk_time = len(self._tasks), first, count, at

    def find(self, index: int, state: TaskState) -> Finished | None:
        """Returns the record of the task with `state` as its state, or None while it has none."""
        position = index - self._first
        place = self._ordinals[position] - 1 if 0 <= position < len(self._ordinals) else -1
        if place < 0:
            if self.bulk_first <= index < self.bulk_first + self.bulk_count:
                return Finished(state, 0, "", None, None, "", None, None, self.bulk_time, 0, "", "")
            return None
        note = self._table[self._notes[place]]
        started = self._started[place]
        return Finished(
            state,
            note.attempt,
            note.host,
            note.exit_code,
            note.signal,
            note.error,
            self._results[place],
            started if started == started else None,
            self._finished[place],
            note.code_index,
            note.code_digest,
            note.reason,
            note.error_code,
            note.outputs,
            self._tails[place] if self._tails else None,
            note.alternative,
        )

    def withdraw(self, index: int) -> None:
        """Makes the record of a task count no more: it is to run again. Its place in the order stays, as readers have
        cursors there. Not for the range of cancelled tasks."""
        self._ordinals[index - self._first] = 0
        self._withdrawn += 1

    def counts_at(self, place: int) -> bool:
        """Returns whether the record that was added at this place of the order still counts."""
        if self.bulk_count and place >= self.bulk_at:
            if place < self.bulk_at + self.bulk_count:
                return True
            place -= self.bulk_count
        return self._ordinals[self._tasks[place] - self._first] == place + 1

    @property
    def rows(self) -> int:
        """Returns how many records there are in the columns, those that count no more included."""
        return len(self._tasks)

    def attempts(self, start: int, stop: int) -> Iterator[tuple[int, Note, float, float]]:
        """Yields task, note, begin (NaN if unknown) and end of the final attempts in these rows, those that count."""
        ordinals, first, table = self._ordinals, self._first, self._table
        part = slice(start, stop)
        columns = zip(self._tasks[part], self._notes[part], self._started[part], self._finished[part], strict=True)
        for row, (index, note, started, finished) in enumerate(columns, start + 1):
            if ordinals[index - first] == row and table[note].host:
                yield index, table[note], started, finished

    def recount(self, is_final: Callable[[int], bool]) -> None:
        """Finds out, after `extend`, which records count: the last one of each task that is final, if it is not one of
        the range that was cancelled (it may have ended before, and have been queued again)."""
        ordinals, first = self._ordinals, self._first
        cancelled = range(self.bulk_first, self.bulk_first + self.bulk_count)
        for index in self._tasks:
            if index in cancelled or not is_final(index):
                ordinals[index - first] = 0
        self._withdrawn = sum(ordinals[index - first] != place for place, index in enumerate(self._tasks, 1))

    def seal(self) -> None:
        """Gives back what only further tasks would need."""
        self._note_ids = {}
        self._last_result = None

    def unseal(self) -> None:
        """Takes further tasks again, and knows what it knew: one that comes from a snapshot does."""
        self._note_ids = {astuple(note): number for number, note in enumerate(self._table) if _is_of_many(note)}

    def release(self, count: int) -> int:
        """Frees so many results of a job that was forgotten, and returns how many; it is not used after that."""
        count = min(count, len(self._results))
        del self._results[len(self._results) - count :]
        del self._tails[len(self._results) :]
        return count

    def blobs(self) -> Iterator[str]:
        """Yields the digests of results, outputs and ends of output that stand beside the log; empty ones among them,
        so that whoever has other things to do can stop for a moment between any two tasks."""
        yield from (result.digest if result is not None else "" for result in self._results)
        yield from (tail.digest if tail is not None else "" for tail in self._tails)
        yield from (note.outputs.digest for note in self._table if note.outputs is not None)

    def images(self, size: int) -> Iterator[CompletionsImage]:
        """Yields the columns for a snapshot, at most `size` rows and notes at a time; at least one image."""
        for start in range(0, max(len(self._tasks), len(self._table), 1), size):
            part = slice(start, start + size)
            yield CompletionsImage(
                _little(self._tasks[part]),
                _little(self._started[part]),
                _little(self._finished[part]),
                _little(self._notes[part]),
                self._results[part],
                self._table[part],
                self.bulk_at,
                self.bulk_first,
                self.bulk_count,
                self.bulk_time,
                self._tails[part],
            )

    def extend(self, image: CompletionsImage, seen: dict[Payload, Payload]) -> None:
        """Appends what is in an image; `seen` makes equal results one object."""
        place = len(self._tasks)
        for column, data in (
            (self._tasks, image.tasks),
            (self._started, image.started),
            (self._finished, image.finished),
            (self._notes, image.notes),
        ):
            if sys.byteorder == "big":
                swapped = array(column.typecode, data)
                swapped.byteswap()
                data = swapped.tobytes()
            column.frombytes(data)
        self._results += [result and seen.setdefault(result, result) for result in image.results]
        if image.tails:
            self._pad_tails(place)
            self._tails += map(shared, image.tails)
        for note in image.table:
            self._add_note(note, astuple(note))
        for ordinal, index in enumerate(self._tasks[place:], place + 1):
            self._set_ordinal(index - self._first, ordinal)
        self.bulk_at, self.bulk_first = image.bulk_at, image.bulk_first
        self.bulk_count, self.bulk_time = image.bulk_count, image.bulk_time

    def _add_note(self, note: Note, key: NoteKey) -> int:
        if _is_of_many(note):
            self._note_ids[key] = len(self._table)
        self._table.append(note)
        return len(self._table) - 1

    def _pad_tails(self, count: int) -> None:
        missing = count - len(self._tails)
        if missing > 0:
            self._tails += [None] * missing

    def _set_ordinal(self, position: int, ordinal: int) -> None:
        ordinals = self._ordinals
        missing = position + 1 - len(ordinals)
        if missing > 0:
            # Half as much again, as lists grow: tasks finish in about the order of their index.
            ordinals.frombytes(bytes(ordinals.itemsize * (missing + (len(ordinals) >> 1))))
        ordinals[position] = ordinal


def _is_of_many(note: Note) -> bool:
    """Returns whether it is worth remembering: others are mostly of one task each."""
    return not note.error and note.outputs is None


def shared(tail: OutputTail | None) -> OutputTail | None:
    """Returns the same tail; those of one blob have one copy of its digest."""
    return tail and OutputTail(tail.inline, intern(tail.digest), tail.item, tail.lost)


def _little(column: array[int] | array[float]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()
