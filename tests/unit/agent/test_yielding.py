"""Whether the owner is there, and how far tasks have to make way: decided from measurements alone."""

from __future__ import annotations

from typing import Any

from depalma.agent.events import OwnerStands
from depalma.agent.yielding import QUIET_S, Sight, Yielding
from depalma.ownership import OwnerPolicy, Pause

WALL = 1_700_000_000.0


class Watch:
    """Decides from what a test says is seen; the clocks go on by what it says."""

    def __init__(self, **policy: Any) -> None:
        self.policy = OwnerPolicy(**policy)
        self.yielding = Yielding()
        self.now = 500.0
        self.wall = WALL
        self.pause: Pause | None = None

    def look(self, after_s: float = 0.0, **seen: Any) -> OwnerStands:
        self.now += after_s
        self.wall += after_s
        return self.yielding.look(self.policy, Sight(self.wall, **seen), self.pause, self.now)


def test_nobody_is_there_where_nothing_is_asked() -> None:
    assert Watch().look(input_at=WALL, cpu_percent=100.0) == OwnerStands()


def test_work_begins_after_the_quiet_time_and_ends_with_the_first_input() -> None:
    watch = Watch(idle_s=900.0)
    assert watch.look(input_at=WALL - 100, input_where="pts/3").reason == "input at pts/3"
    assert watch.look(799.0, input_at=WALL - 100).reason
    assert watch.look(2.0, input_at=WALL - 100) == OwnerStands()
    back = watch.look(5000.0, input_at=watch.wall + 5000.0, input_where="tty1")
    assert (back.reason, back.lower) == ("input at tty1", True)
    for _ in range(3):
        assert watch.look(299.0, input_at=watch.wall).reason == "input at tty1"  # each new input counts anew
    assert watch.look(899.0, input_at=WALL + 5000.0).reason


def test_an_owner_whose_last_input_cannot_be_known_is_not_there() -> None:
    assert Watch(idle_s=900.0).look() == OwnerStands()


def test_a_wall_clock_that_is_set_makes_nobody_come_or_go() -> None:
    watch = Watch(idle_s=900.0)
    at = WALL - 1000.0
    assert watch.look(input_at=at) == OwnerStands()
    watch.wall -= 86_400.0
    assert watch.look(1.0, input_at=at) == OwnerStands()
    typed = watch.wall
    assert watch.look(1.0, input_at=typed).reason  # earlier than the one before, but another one
    watch.wall += 2 * 86_400.0
    assert watch.look(1.0, input_at=typed).reason
    assert watch.look(900.0, input_at=typed) == OwnerStands()


def test_load_is_there_at_once_and_gone_only_after_a_while() -> None:
    watch = Watch(cpu_percent=20.0)
    assert watch.look(cpu_percent=None) == OwnerStands()
    assert watch.look(1.0, cpu_percent=20.0) == OwnerStands()
    assert watch.look(1.0, cpu_percent=35.0).reason == "others use 35 % of the processors, allowed are 20 %"
    assert watch.look(1.0, cpu_percent=90.0).reason == "others use 35 % of the processors, allowed are 20 %"
    assert watch.look(1.0, cpu_percent=18.0).reason  # below the limit, and not by enough
    assert watch.look(1.0, cpu_percent=5.0).reason
    assert watch.look(QUIET_S - 1, cpu_percent=5.0).reason
    assert watch.look(0.5, cpu_percent=18.0).reason  # begins again
    assert watch.look(0.5, cpu_percent=5.0).reason
    assert watch.look(QUIET_S - 0.5, cpu_percent=5.0).reason
    assert watch.look(0.5, cpu_percent=5.0) == OwnerStands()


def test_each_kind_of_load_has_its_own_limit() -> None:
    watch = Watch(cpu_percent=20.0, gpu_percent=10.0)
    assert watch.look(cpu_percent=5.0, gpu_percent=11.0).reason == "others use 11 % of a GPU, allowed are 10 %"


def test_hours_hold_to_the_minute() -> None:
    watch = Watch(hours="mon-fri 18:00-08:00")
    assert watch.look(weekday=0, minute=18 * 60 - 1).reason == "outside its hours (mon-fri 18:00-08:00)"
    assert watch.look(weekday=0, minute=18 * 60) == OwnerStands()
    assert watch.look(weekday=1, minute=8 * 60).reason


def test_a_pause_holds_until_its_time_or_until_it_is_taken_back() -> None:
    watch = Watch()
    watch.pause = Pause(WALL, WALL + 60.0, "ada")
    assert watch.look(59.0).reason == "paused by ada"
    assert watch.look(1.0) == OwnerStands()
    watch.pause = Pause(WALL)
    assert watch.look(1e6).reason == "paused"
    watch.pause = None
    assert watch.look() == OwnerStands()


def test_the_steps_are_taken_in_order_from_the_return_on() -> None:
    watch = Watch(lower_s=0.0, suspend_s=5.0, warn_s=60.0, requeue_s=90.0)
    watch.pause = Pause(WALL)
    seen = [watch.look(after_s) for after_s in (0.0, 4.9, 0.1, 55.0, 30.0)]
    assert [stands.step for stands in seen] == ["lowered", "lowered", "suspended", "warned", "requeued"]
    assert [stands.suspend for stands in seen] == [False, False, True, True, True]
    assert [stands.end for stands in seen] == [False, False, False, True, True]
    assert {stands.grace_s for stands in seen} == {30.0}
    watch.pause = None
    assert watch.look() == OwnerStands()
    watch.pause = Pause(WALL)
    assert watch.look().step == "lowered", "the next return begins at the beginning"


def test_steps_that_are_not_wanted_are_not_taken() -> None:
    watch = Watch(lower_s=None, suspend_s=None, warn_s=None, requeue_s=2.0)
    watch.pause = Pause(WALL)
    assert watch.look() == OwnerStands(reason="paused")
    assert watch.look(2.0) == OwnerStands(reason="paused", step="requeued", end=True)


def test_a_further_cause_is_told_and_begins_nothing_anew() -> None:
    watch = Watch(idle_s=900.0, suspend_s=5.0)
    watch.pause = Pause(WALL, WALL + 100.0)
    watch.look(input_at=None)
    both = watch.look(6.0, input_at=watch.wall + 6.0, input_where="tty1")
    assert (both.reason, both.step) == ("paused; input at tty1", "suspended")
    assert watch.look(100.0, input_at=WALL + 6.0).reason == "input at tty1"
