"""What the leader measures of the work that passes through it: rates, and how long each job's tasks take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from depalma.model import Report

#: Weight of a new batch in the running mean; jobs change their character slowly, outliers should not flip it.
_WEIGHT = 0.2
_WINDOW_S = 10.0


class Rates:
    """Soft state of one master; never replicated, never decides anything but how far ahead to assign."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.mean_s: dict[int, float] = {}  #: job → how long one of its tasks runs
        self.finished_total = 0
        self.submitted_total = 0
        self._finished: deque[tuple[float, int]] = deque()
        self._submitted: deque[tuple[float, int]] = deque()

    def begin(self) -> None:
        """Begins a reign: of jobs that ended under another one nothing would be dropped any more."""
        self.mean_s.clear()

    def note_reports(self, reports: Iterable[Report]) -> None:
        """Takes run times from reports as they come in."""
        sums: dict[int, tuple[float, int]] = {}
        number = 0
        for report in reports:
            number += 1
            if report.started_at is not None and report.finished_at is not None:
                total, count = sums.get(report.job, (0.0, 0))
                sums[report.job] = (total + max(0.0, report.finished_at - report.started_at), count + 1)
        for job, (total, count) in sums.items():
            mean = total / count
            known = self.mean_s.get(job)
            self.mean_s[job] = mean if known is None else known + _WEIGHT * (mean - known)
        self.finished_total += number
        self._note(self._finished, number)

    def note_submitted(self, tasks: int) -> None:
        """Counts tasks that were submitted."""
        self.submitted_total += tasks
        self._note(self._submitted, tasks)

    def forget_job(self, job: int) -> None:
        """Drops what is known of a job that ended."""
        self.mean_s.pop(job, None)

    def finished_per_s(self) -> float:
        """Returns tasks finished a second, over the last ten seconds."""
        return self._rate(self._finished)

    def submitted_per_s(self) -> float:
        """Returns tasks submitted a second, over the last ten seconds."""
        return self._rate(self._submitted)

    def _note(self, window: deque[tuple[float, int]], number: int) -> None:
        """Adds to a window, from which goes what is too old: there may be nobody who ever asks for the rate."""
        now = self._clock()
        window.append((now, number))
        self._trim(window, now)

    def _rate(self, window: deque[tuple[float, int]]) -> float:
        self._trim(window, self._clock())
        return sum(number for _, number in window) / _WINDOW_S

    def _trim(self, window: deque[tuple[float, int]], now: float) -> None:
        while window and window[0][0] < now - _WINDOW_S:
            window.popleft()
