"""What is known of the results of each job: cursors, and who waits for them. No I/O, no thread of its own.

Each result reaches its sink once, however often streams break: a batch says which results it holds (those up to
`cursor`), and the book takes only what is new. Results of a job that nobody has claimed yet (they may overtake the
answer to the submission) are kept until somebody does.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from depalma.client.wire import RETRIED, ResultBatch, TaskResult


class Sink(Protocol):
    """Takes the results of one job. Calls come one at a time and must be quick."""

    def deliver(self, results: Sequence[TaskResult]) -> None:
        """Takes results, each once, in the order in which the tasks ended."""

    def ended(self, state: str) -> None:
        """The job is over and all its results were delivered; `unknown` if there is no such job (any more)."""

    def broken(self, error: Exception) -> None:
        """No more will come: the cluster cannot be reached, or refuses."""


class _Reader:
    """One sink of a job, and how many results it has had."""

    __slots__ = ("cursor", "sink")

    def __init__(self, sink: Sink, cursor: int) -> None:
        self.sink = sink
        self.cursor = cursor


class _Entry:
    """One job."""

    __slots__ = ("early", "final", "lock", "readers")

    def __init__(self) -> None:
        # Its own lock, held while a sink is called: a sink may run user code, which may start other jobs.
        self.lock = threading.RLock()
        self.readers: list[_Reader] = []
        self.early: list[TaskResult] = []  #: the first results, while there is no reader
        self.final = ""

    @property
    def cursor(self) -> int:
        """From where on results are needed."""
        return min((reader.cursor for reader in self.readers), default=len(self.early))


class Gap(Exception):
    """A batch does not follow what is known: the stream must be opened again with the true cursors."""


class Book:
    """All jobs of one client whose results are awaited."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[int, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, job: int) -> bool:
        return job in self._entries

    def cursors(self) -> dict[int, int]:
        """Returns how many results of each awaited job are known: what a stream is opened with."""
        with self._lock:
            return {job: entry.cursor for job, entry in self._entries.items() if not entry.final}

    def cursor(self, job: int) -> int:
        """Returns how many results of a job are known."""
        entry = self._entries.get(job)
        return entry.cursor if entry else 0

    def claim(self, job: int, sink: Sink) -> bool:
        """Gives the job's results to `sink`, those that came early at once.

        Returns False if others have had results that this one needs: they must be asked for again.
        """
        entry = self._entry(job)
        with entry.lock:
            if entry.readers:
                in_step = entry.cursor == 0
                entry.readers.append(_Reader(sink, 0))
                return in_step
            early, entry.early = entry.early, []
            entry.readers.append(_Reader(sink, len(early)))
            if counting := [result for result in early if result.state != RETRIED]:
                sink.deliver(counting)
            if entry.final:
                self.discard(job)
                sink.ended(entry.final)
            return True

    def discard(self, job: int) -> None:
        """Forgets a job."""
        with self._lock:
            self._entries.pop(job, None)

    def accept(self, batch: ResultBatch) -> None:
        """Takes one batch of a stream. Errors: Gap."""
        if batch.state == "unknown" and batch.job not in self._entries:
            return
        entry = self._entry(batch.job)
        with entry.lock:
            begin = batch.cursor - len(batch.results)
            if begin > entry.cursor:
                raise Gap(f"job {batch.job}: results from {begin} on, {entry.cursor} are known")
            if not entry.readers:
                entry.early += batch.results[len(entry.early) - begin :]
                entry.final = batch.state if batch.final else ""
                return
            if batch.final:
                self.discard(batch.job)
            for reader in list(entry.readers):
                fresh = [one for one in batch.results[reader.cursor - begin :] if one.state != RETRIED]
                reader.cursor = max(reader.cursor, batch.cursor)
                if fresh:
                    reader.sink.deliver(fresh)
                if batch.final:
                    reader.sink.ended(batch.state)

    def fail(self, error: Exception) -> None:
        """Tells everybody who waits that nothing will come."""
        with self._lock:
            entries, self._entries = self._entries, {}
        for entry in entries.values():
            with entry.lock:
                for reader in entry.readers:
                    reader.sink.broken(error)

    def after_fork(self) -> None:
        """Replaces the locks in a forked child: threads that are not there may have held them."""
        self._lock = threading.Lock()
        for entry in self._entries.values():
            entry.lock = threading.RLock()

    def _entry(self, job: int) -> _Entry:
        with self._lock:
            return self._entries.setdefault(job, _Entry())
