"""The load over time as people see it."""

from __future__ import annotations

from typing import Any

import msgspec

from depalma.ctl.load import over_time, sparkline
from depalma.model import LoadFigures

ZEROS = msgspec.to_builtins(LoadFigures())


def point(at: float, samples: int = 5, **figures: float) -> dict[str, Any]:
    return {"at": at, "samples": samples, "mean": {**ZEROS, **figures}, "max": {**ZEROS, **figures}}


def test_a_line_has_one_character_a_step_and_gaps_where_nothing_is_known() -> None:
    points = [point(0.5, cpu_percent=0.0), point(5.4, cpu_percent=50.0), point(20.6, cpu_percent=100.0)]
    assert sparkline(points, "cpu_percent", 5.0, 100.0) == "▁▅  █"
    assert sparkline(points[:2], "cpu_percent", 5.0, 0.0) == "▁█"  # of the highest there is
    assert sparkline([point(0.0)], "swap_used_bytes", 5.0, 0.0) == "▁"
    assert len(sparkline([point(60.0 * n, load1=1.0) for n in range(61)], "load1", 60.0, 0.0)) == 60


def test_each_figure_is_a_line_unless_it_never_was_more_than_zero() -> None:
    points = [point(0.0, samples=1, cpu_percent=10.0), point(5.0, samples=3, cpu_percent=50.0, gpu_busy_percent=7.0)]
    rows = [{"host": "h1", "history": {"step_s": 5.0, "points": points}}, {"host": "h2", "history": None}]
    lines = [(row["what"], row["now"], row["mean"], row["max"]) for row in over_time(rows)]
    assert lines == [("load", "0.00", "0.00", "0.00"), ("CPU", "50%", "40%", "50%"), ("GPUs", "7%", "5%", "7%")]


def test_a_host_that_has_measured_nothing_yet_has_no_lines() -> None:
    assert list(over_time([{"host": "h1", "history": {"step_s": 5.0, "points": []}}])) == []
