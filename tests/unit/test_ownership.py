"""What an owner may allow: hours of a week, limits, the order of the steps; each refusal names the field."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from depalma.ownership import BadPolicy, OwnerPolicy, changed, described, is_open

MON, TUE, FRI, SAT, SUN = 0, 1, 4, 5, 6


def at(text: str) -> int:
    hour, minute = text.split(":")
    return int(hour) * 60 + int(minute)


@pytest.mark.parametrize(
    ("hours", "weekday", "time", "is_in"),
    [
        ("", MON, "12:00", True),
        ("mon-fri 18:00-08:00, sat-sun", MON, "17:59", False),
        ("mon-fri 18:00-08:00, sat-sun", MON, "18:00", True),
        ("mon-fri 18:00-08:00, sat-sun", TUE, "07:59", True),
        ("mon-fri 18:00-08:00, sat-sun", TUE, "08:00", False),
        ("mon-fri 18:00-08:00, sat-sun", SAT, "12:00", True),
        ("mon-fri 18:00-08:00, sat-sun", SUN, "23:59", True),
        ("mon-fri 18:00-08:00, sat-sun", MON, "00:00", False),  # a night belongs to the day on which it begins
        ("sun 22:00-06:00", MON, "05:59", True),  # over the end of the week
        ("sun 22:00-06:00", SUN, "05:59", False),
        ("fri-mon", SAT, "12:00", True),  # over the end of the week
        ("fri-mon", MON, "23:59", True),
        ("fri-mon", TUE, "00:00", False),
        ("20:00-24:00", FRI, "23:59", True),  # every day
        ("20:00-24:00", SAT, "00:00", False),
        ("00:00-24:00", SAT, "13:00", True),
        ("Sat 09:00-17:00", SAT, "16:59", True),
        ("sat 09:00-17:00", SAT, "17:00", False),
    ],
)
def test_hours_of_a_week(hours: str, weekday: int, time: str, is_in: bool) -> None:
    assert is_open(hours, weekday, at(time)) is is_in


def open_minutes(hours: str, day: datetime) -> int:
    """Counts the real minutes of a local day in which the hours are open."""
    begin = day.astimezone(UTC)
    end = (day + timedelta(days=1)).astimezone(UTC)
    minutes = int((end - begin).total_seconds()) // 60
    local = [(begin + timedelta(minutes=n)).astimezone(day.tzinfo) for n in range(minutes)]
    return sum(is_open(hours, moment.weekday(), moment.hour * 60 + moment.minute) for moment in local)


def test_when_clocks_are_changed_what_they_show_counts() -> None:
    """The night in which an hour is skipped is shorter, that in which one comes twice longer; none ends early."""
    berlin = ZoneInfo("Europe/Berlin")
    usual = datetime(2026, 3, 22, tzinfo=berlin)
    spring = datetime(2026, 3, 29, tzinfo=berlin)
    autumn = datetime(2026, 10, 25, tzinfo=berlin)
    hours = "sun 01:00-06:00"
    assert [open_minutes(hours, day) for day in (usual, spring, autumn)] == [300, 240, 360]
    assert open_minutes("sun 02:00-03:00", spring) == 0
    assert open_minutes("sun 02:00-03:00", autumn) == 120


@pytest.mark.parametrize(
    "hours",
    ["always", "mon-", "mon-fri 18-8", "mon 25:00-26:00", "mon 08:00-08:00", "mon 08:60-09:00", "mon, ,tue", "mon 1 2",
     "mon tue", "١٢:٠٠-١٣:٠٠", "mon 24:00-08:00", "mon," * 300],
)  # fmt: skip
def test_hours_that_are_none_are_refused(hours: str) -> None:
    with pytest.raises(BadPolicy, match=r"^owner\.hours: '.*' given; allowed: "):
        changed(OwnerPolicy(), {"hours": hours})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"idle": 5}, "owner: 'idle' given; allowed: idle_s, cpu_percent"),
        ({"idle_s": -1}, "owner.idle_s: -1.0 given; allowed: 0 to 2.592e+06"),
        ({"idle_s": float("nan")}, "owner.idle_s: nan given"),
        ({"idle_s": None}, "owner.idle_s: None given; allowed: a number"),
        ({"idle_s": True}, "owner.idle_s: True given; allowed: a number"),
        ({"cpu_percent": 101}, "owner.cpu_percent: 101.0 given; allowed: 0 to 100"),
        ({"gpu_percent": "5"}, "owner.gpu_percent: '5' given; allowed: a number"),
        ({"hours": 5}, "owner.hours: 5 given; allowed: days and times"),
        ({"requeue_all": 1}, "owner.requeue_all: 1 given; allowed: true or false"),
        ({"lower_s": "no"}, "owner.lower_s: 'no' given; allowed: seconds, or null"),
        ({"suspend_s": 10, "lower_s": 20}, "owner.suspend_s: 10.0 given; allowed: lower_s (20) or more"),
        ({"warn_s": 400}, "owner.requeue_s: 330.0 given; allowed: warn_s (400) or more"),
        ({"suspend_s": None, "lower_s": 301}, "owner.warn_s: 300.0 given; allowed: lower_s (301) or more"),
        ({"requeue_s": None}, "owner.warn_s: 300.0 given; allowed: null while requeue_s is"),
    ],
)
def test_each_refusal_names_the_field_the_value_and_what_is_allowed(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadPolicy) as caught:
        changed(OwnerPolicy(), changes)
    assert str(caught.value).startswith(message)


def test_what_is_not_given_stays() -> None:
    first = changed(OwnerPolicy(), {"idle_s": 900, "hours": "sat-sun"})
    second = changed(first, {"suspend_s": None, "idle_s": 60})
    assert second == OwnerPolicy(idle_s=60.0, hours="sat-sun", suspend_s=None)
    assert described(second) == (
        "works with no input for 1 min, in the hours sat-sun; makes way: lower after 0 s, warn after 5 min, "
        "requeue after 330 s"
    )
