"""The results of one job as far as they have come: what job handles of threads and of asyncio share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from depalma.client.wire import TaskResult
from depalma.errors import DepalmaError


class Record:
    """A sink that keeps everything, by index and in order of arrival."""

    def __init__(self, job: int, *, notify: Callable[[], None] | None = None) -> None:
        self.job = job
        self.by_index: dict[int, TaskResult] = {}
        self.order: list[TaskResult] = []
        self.state = ""  #: final state of the job; empty while it lives
        self.error: Exception | None = None
        self._changed = threading.Condition()
        self._notify = notify  #: wakes those who do not wait in threads

    # ------------------------------------------------------------ sink

    def deliver(self, results: Sequence[TaskResult]) -> None:
        """Takes results."""
        with self._changed:
            for result in results:
                self.by_index[result.task] = result
            self.order.extend(results)
        self._tell()

    def ended(self, state: str) -> None:
        """Takes the job's end."""
        with self._changed:
            if state == "unknown":
                self.error = DepalmaError(f"there is no job {self.job} (any more)")
            self.state = state
        self._tell()

    def broken(self, error: Exception) -> None:
        """Takes that nothing more will come."""
        with self._changed:
            self.error = error
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
        if self._notify is not None:
            self._notify()

    # ------------------------------------------------------------ for those who wait

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return bool(self.state) or self.error is not None

    def ready(self, index: int) -> bool:
        """Returns whether task `index` ended, or never will be heard of."""
        return index in self.by_index or self.over

    def arrived(self, position: int) -> bool:
        """Returns whether more than `position` results came, or no more will."""
        return len(self.order) > position or self.over

    def wait(self, until: Callable[[], bool], timeout_s: float | None) -> None:
        """Waits until something is so. Errors: TimeoutError, and the error that ended the waiting for results."""
        with self._changed:
            if not until() and not self._changed.wait_for(until, timeout_s):
                raise TimeoutError(f"job {self.job} has {len(self.order)} results after {timeout_s:g} s")

    def at_index(self, index: int) -> TaskResult | None:
        """Returns the result of a task; None if the job is over without one. Errors: why no results come."""
        result = self.by_index.get(index)
        if result is None and self.error is not None:
            raise self.error
        return result

    def at_position(self, position: int) -> TaskResult | None:
        """Returns the result that came at `position`; None if the job is over. Errors: why no results come."""
        if position < len(self.order):
            return self.order[position]
        if self.error is not None:
            raise self.error
        return None
