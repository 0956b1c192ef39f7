"""The leader's measurements of run time and rate."""

from __future__ import annotations

import pytest

from depalma.leader.rates import Rates
from depalma.model import Report


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def report(job: int, ran_s: float) -> Report:
    return Report(job=job, task=0, attempt=1, outcome="succeeded", started_at=100.0, finished_at=100.0 + ran_s)


def test_the_mean_follows_new_batches_without_jumping() -> None:
    rates = Rates(Clock())
    rates.note_reports([report(1, 1.0), report(1, 3.0), report(2, 0.5)])
    assert rates.mean_s == {1: pytest.approx(2.0), 2: pytest.approx(0.5)}
    rates.note_reports([report(1, 12.0)])
    assert rates.mean_s[1] == pytest.approx(4.0)


def test_reports_without_times_do_not_count_as_fast() -> None:
    rates = Rates(Clock())
    rates.note_reports([Report(job=1, task=0, attempt=1, outcome="returned")])
    assert rates.mean_s == {}


def test_the_rate_is_that_of_the_last_ten_seconds() -> None:
    clock = Clock()
    rates = Rates(clock)
    rates.note_reports([report(1, 0.1)] * 50)
    clock.now = 9.0
    rates.note_reports([report(1, 0.1)] * 50)
    assert rates.finished_per_s() == pytest.approx(10.0)
    clock.now = 12.0
    assert rates.finished_per_s() == pytest.approx(5.0)
    rates.note_submitted(30)
    assert rates.submitted_per_s() == pytest.approx(3.0)


def test_a_job_that_ended_is_forgotten() -> None:
    rates = Rates(Clock())
    rates.note_reports([report(1, 1.0)])
    rates.forget_job(1)
    assert rates.mean_s == {}


def test_what_nobody_asks_for_is_not_collected() -> None:
    """A leader that nobody looks at for a day must not remember every report of that day."""
    clock = Clock()
    rates = Rates(clock)
    for second in range(1000):
        clock.now = float(second)
        rates.note_reports([report(1, 0.1)])
        rates.note_submitted(1)
    assert len(rates._finished) <= 12
    assert len(rates._submitted) <= 12
    assert (rates.finished_total, rates.submitted_total) == (1000, 1000)
