"""What a scenario says about what it saw: promises that must hold, figures to reach, counts of the whole form."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from depalma.testing.chaos.report import Figure, Report, describe_times, percentile


class Judge:
    """Fills a report. `slack` multiplies the times that are allowed (more than 1 on machines that do other work)."""

    def __init__(self, scenario: str, title: str, directory: Path, *, seed: int, slack: float = 1.0) -> None:
        self.report = Report(scenario, title, seed)
        self.random = Random(seed)
        self.directory = directory
        self.slack = slack
        self._began_s = time.monotonic()

    def __enter__(self) -> Self:
        self.directory.mkdir(mode=0o700, parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool | None:
        """The folder is kept if there is something to look at."""
        self.report.seconds = time.monotonic() - self._began_s
        if error is None and self.report.verdict == "pass":
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            self.report.kept = str(self.directory)
        return None

    def note(self, text: str) -> None:
        """Adds to the report."""
        self.report.notes.append(text)

    def require(self, holds: object, otherwise: str) -> None:
        """A promise: broken unless it holds."""
        if not holds:
            self.report.violations.append(otherwise)

    def expect(self, what: str, value: float, at_most: float, unit: str = "s", *, about: str = "") -> None:
        """A figure to reach; beyond it the run is slow, not broken. `about` says which of several this one is."""
        figure = Figure(what, value, at_most, unit)
        self._keep_worst(figure)
        self.note(f"{figure}{f': {about}' if about else ''}")
        if value > at_most * self.slack:
            self.report.misses.append(
                f"{what}{f' ({about})' if about else ''}: {value:.2f} {unit}, allowed {at_most * self.slack:g}"
            )

    def expect_many(self, what: str, value: float, at_least: float) -> None:
        """A count without which the run says too little; below it the run counts as slow."""
        figure = Figure(what, value, at_least, "", at_least=True)
        self._keep_worst(figure)
        self.note(str(figure))
        if value < at_least:
            self.report.misses.append(f"{what}: {value:g}, at least {at_least:g} wanted")

    def none_of(self, what: str, found: int, otherwise: str) -> None:
        """A promise about a count: none may be."""
        self._keep_worst(Figure(what, found, 0, ""))
        self.require(found == 0, otherwise)

    def expect_failovers(self, *, median_s: float = 0.0, p99_s: float) -> None:
        """Judges all fail-overs noted so far."""
        times = self.report.failovers_s
        if not times:
            self.report.violations.append("no fail-over was measured")
            return
        middle, high = statistics.median(times), percentile(times, 99)
        if median_s:
            self._keep_worst(Figure("fail-over median", middle, median_s, "s"))
        self._keep_worst(Figure("fail-over p99", high, p99_s, "s"))
        if high > p99_s * self.slack or (median_s > 0 and middle > median_s * self.slack):
            wanted = f"median {median_s:g} s, " if median_s else ""
            self.report.misses.append(f"fail-over {describe_times(times)}; allowed {wanted}p99 {p99_s:g} s")

    def _keep_worst(self, figure: Figure) -> None:
        before = self.report.figures.get(figure.what)
        self.report.figures[figure.what] = figure if before is None else figure.worse(before)
