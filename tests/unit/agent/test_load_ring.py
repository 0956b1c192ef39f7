"""What is kept of the load over time: steps, means, the highest, and never more than an hour."""

from __future__ import annotations

import pytest

from depalma.agent.loadring import LoadRing
from depalma.model import GpuLoad, Load

BOOT = 1_000_000.0  # when the machine booted, since the epoch


def filled(seconds: int, begin: int = 0) -> LoadRing:
    """One sample a second, of a load that is the second's number modulo 60."""
    ring = LoadRing(float(begin))
    for second in range(begin, begin + seconds):
        ring.add(float(second), Load(cpu_percent=float(second % 60)))
    return ring


def test_a_step_has_the_mean_and_the_highest_of_its_samples() -> None:
    history = filled(10).history(300, 10.0, BOOT)
    assert (history.began_at, history.step_s) == (BOOT, 5.0)
    seen = [(point.at - BOOT, point.samples, point.mean.cpu_percent, point.max.cpu_percent) for point in history.points]
    assert seen == [(0.0, 5, 2.0, 4.0), (5.0, 5, 7.0, 9.0)]


@pytest.mark.parametrize(
    ("last_s", "step_s", "points", "first"),
    [(10, 5.0, 2, 7190), (300, 5.0, 60, 6900), (301, 60.0, 6, 6840), (3600, 60.0, 60, 3600), (1e9, 60.0, 60, 3600)],
)
def test_short_times_are_told_in_fine_steps_and_long_ones_in_coarse_steps(
    last_s: float, step_s: float, points: int, first: int
) -> None:
    history = filled(7200).history(last_s, 7200.0, BOOT)
    assert (history.step_s, len(history.points), history.points[0].at) == (step_s, points, BOOT + first)
    whole = [point.samples for point in history.points]
    assert whole == [step_s] * points
    if step_s == 60:
        assert {(point.mean.cpu_percent, point.max.cpu_percent) for point in history.points} == {(29.5, 59.0)}


def test_what_is_kept_is_bounded_and_old_steps_go() -> None:
    ring = filled(3 * 3600)
    assert [len(inner._steps) for inner in ring._rings] == [61, 61]
    ring.add(10 * 3600.0, Load(load1=7.0))  # the host slept for hours
    (point,) = ring.history(3600, 10 * 3600.0, BOOT).points
    assert (point.at, point.samples, point.max.load1) == (BOOT + 36000, 1, 7.0)


def test_a_gap_is_no_point() -> None:
    ring = filled(10)
    ring.add(21.0, Load())
    assert [point.at - BOOT for point in ring.history(300, 22.0, BOOT).points] == [0.0, 5.0, 20.0]


def test_a_jump_of_the_wall_clock_moves_everything_alike() -> None:
    ring = filled(30)
    before, after = ring.history(300, 30.0, BOOT), ring.history(300, 30.0, BOOT - 86400)
    assert [point.at - 86400 for point in before.points] == [point.at for point in after.points]


def test_gpus_are_kept_together() -> None:
    ring = LoadRing(0.0)
    ring.add(1.0, Load(gpus=(GpuLoad("a", 100.0, 10, 20), GpuLoad("b", 50.0, 5, 20))))
    (point,) = ring.history(60, 2.0, BOOT).points
    assert (point.mean.gpu_busy_percent, point.mean.gpu_memory_used_bytes) == (75.0, 15.0)
