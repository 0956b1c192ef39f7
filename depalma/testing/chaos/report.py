"""What a run found, and the table of many."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Figure:
    """Something measured, and what is allowed: at most so much, or at least."""

    what: str
    value: float
    allowed: float
    unit: str = "s"
    at_least: bool = False

    def worse(self, other: Figure) -> Figure:
        """Returns the one that is further from what is wanted."""
        return (
            min(self, other, key=lambda one: one.value)
            if self.at_least
            else max(self, other, key=lambda one: one.value)
        )

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.what} {_number(self.value)}{unit} ({sign} {_number(self.allowed)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.2f}"


@dataclass(slots=True)
class Report:
    """One run of one scenario.

    `violations` break a promise, whatever the machine; `misses` are times that were longer than they may be.
    """

    scenario: str
    title: str
    seed: int
    acknowledged: int = 0
    operations: int = 0
    unknown: int = 0
    lost: int = 0
    overlaps: int = 0
    leader_changes: int = 0
    failovers_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    misses: list[str] = field(default_factory=list)
    #: what was measured, in words
    notes: list[str] = field(default_factory=list)
    #: the worst of each, for the table
    figures: dict[str, Figure] = field(default_factory=dict)
    #: why nothing was judged
    void: str = ""
    #: why it was not tried: what this machine lacks
    skipped: str = ""
    seconds: float = 0.0
    #: where the evidence is, if it was kept
    kept: str = ""

    @property
    def verdict(self) -> str:
        """One word."""
        if self.skipped:
            return "skipped"
        return "void" if self.void else "BROKEN" if self.violations else "slow" if self.misses else "pass"

    def lines(self) -> list[str]:
        """Everything, for people."""
        head = f"{self.scenario} {self.title}: {self.verdict} (seed {self.seed}, {self.seconds:.0f} s)"
        counts = f"{self.operations} operations, {self.acknowledged} writes acknowledged, {self.unknown} unknown"
        found = [head, f"  {counts}, {self.leader_changes} leader changes"]
        if self.failovers_s:
            found.append(f"  fail-over {describe_times(self.failovers_s)}")
        found += [f"  {note}" for note in self.notes]
        found += [f"  void: {self.void}"] if self.void else []
        found += [f"  slow: {miss}" for miss in self.misses]
        found += [f"  BROKEN: {violation}" for violation in self.violations[:20]]
        found += [f"  kept: {self.kept}"] if self.kept else []
        return found


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the smallest value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def describe_times(values: Sequence[float]) -> str:
    """Returns median, p99 and worst in seconds."""
    middle, high = statistics.median(values), percentile(values, 99)
    return f"median {middle:.3f} s, p99 {high:.3f} s, worst {max(values):.3f} s of {len(values)}"


_HEADS = ("", "fault", "runs", "verdict", "seed", "acknowledged", "measured, the worst of all runs (allowed)")
#: the columns with numbers
_RIGHT = (2, 4, 5)


def table(reports: Iterable[Report]) -> str:
    """Returns the judgement of each scenario over all its runs; the last column takes a line a figure."""
    by_scenario: dict[str, list[Report]] = {}
    for report in reports:
        by_scenario.setdefault(report.scenario, []).append(report)
    rows = [_HEADS] + [row for runs in by_scenario.values() for row in _rows(runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADS))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in _RIGHT else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _rows(runs: list[Report]) -> list[tuple[str, ...]]:
    words = {run.verdict for run in runs}
    verdict = next(word for word in ("BROKEN", "slow", "void", "skipped", "pass") if word in words)
    # The seed that shows the worst; any, if all passed.
    seed = next(run.seed for run in runs if run.verdict == verdict)
    lost, overlaps = sum(run.lost for run in runs), sum(run.overlaps for run in runs)
    acknowledged = sum(run.acknowledged for run in runs)
    measured = [f"lost {lost}, overlapping lives {overlaps} (0)"] if acknowledged else []
    figures: dict[str, Figure] = {}
    for run in runs:
        for what, figure in run.figures.items():
            figures[what] = figure.worse(figures[what]) if what in figures else figure
    measured += map(str, figures.values())
    measured += [run.skipped or run.void for run in runs if run.skipped or run.void]
    first, *more = measured or [""]
    head = (runs[0].scenario, runs[0].title, str(len(runs)), verdict, str(seed), f"{acknowledged:,}", first)
    return [head] + [("", "", "", "", "", "", line) for line in more]
