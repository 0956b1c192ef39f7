"""What a run found, and the table of many."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


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
    #: why nothing was judged
    void: str = ""
    seconds: float = 0.0
    #: where the evidence is, if it was kept
    kept: str = ""

    @property
    def verdict(self) -> str:
        """One word."""
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


_HEADS = ("fault", "runs", "acknowledged", "lost", "overlaps", "median s", "p99 s", "worst s", "verdict")


def table(reports: Iterable[Report]) -> str:
    """Returns one line a scenario, over all its runs."""
    by_scenario: dict[str, list[Report]] = {}
    for report in reports:
        by_scenario.setdefault(f"{report.scenario} {report.title}", []).append(report)
    rows = [_HEADS, *(_row(name, runs) for name, runs in by_scenario.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, len(row) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _row(name: str, runs: list[Report]) -> tuple[str, ...]:
    times = [time for run in runs for time in run.failovers_s]
    shown = (
        [f"{statistics.median(times):.2f}", f"{percentile(times, 99):.2f}", f"{max(times):.2f}"] if times else ["–"] * 3
    )
    words = {run.verdict for run in runs}
    verdict = next(word for word in ("BROKEN", "slow", "void", "pass") if word in words)
    total = [sum(run.acknowledged for run in runs), sum(run.lost for run in runs), sum(run.overlaps for run in runs)]
    return (name, str(len(runs)), *map(str, total), *shown, verdict)
