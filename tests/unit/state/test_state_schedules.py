"""Schedules: one job a tick, whoever proposes it how often; and cron's times."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest

from depalma import cron
from depalma.leader.timekeeping import tick_of
from depalma.model import Dependency, JobSpec, Payload
from depalma.state import job_commands as jc
from depalma.state.restoring import blobs_of

SPEC = JobSpec(kind="command", argv=("true",))


def add(bench, name="nightly", first_at=2000.0, request="", **changes):
    command = jc.AddSchedule(request, name, SPEC, "* * * * *", "UTC", first_at, bench.tick(), by="ann")
    return msgspec.structs.replace(command, **changes)


def tick(bench, at, following, *, run=True, name="nightly"):
    return jc.TickSchedule(name, at, following, run, bench.tick())


# ---------------------------------------------------------------- ticks


def test_a_tick_makes_one_job_however_often_it_is_proposed(bench):
    bench.ok(add(bench))
    schedule = bench.state.schedules["nightly"]

    assert bench.ok(tick(bench, 2000.0, 2060.0)) == 1

    refusal = bench.refused(tick(bench, 2000.0, 2060.0))
    assert (refusal.code, refusal.message) == ("stale_tick", "schedule nightly does not await a tick at 2000.0")
    assert list(bench.state.jobs) == [1]
    assert bench.state.jobs[1].spec.name == "nightly"
    assert (schedule.runs, schedule.last_job, schedule.last_at, schedule.next_at) == (1, 1, 2000.0, 2060.0)
    assert bench.ok(tick(bench, 2060.0, 2120.0)) == 2
    assert bench.kinds() == ["schedule.added", "job.submitted", "schedule.ticked", "job.submitted", "schedule.ticked"]
    assert bench.events()[-1].detail == {"schedule": "nightly", "tick_at": 2060.0}


def test_a_tick_that_is_not_made_up_for_is_counted(bench):
    bench.ok(add(bench))

    assert bench.ok(tick(bench, 2000.0, 2060.0, run=False)) is None

    assert bench.state.jobs == {}
    assert bench.state.schedules["nightly"].skipped == 1
    assert bench.events()[-1].detail["reason"] == "missed, and not made up for"


def test_overlap_is_skipped_if_asked_for(bench):
    bench.host()
    bench.ok(add(bench, overlap="skip"))
    bench.ok(tick(bench, 2000.0, 2060.0))

    assert bench.ok(tick(bench, 2060.0, 2120.0)) is None
    assert bench.events()[-1].detail["reason"] == "job 1 still lives"
    bench.dispatch()
    bench.finish((1, 0, 1))
    assert bench.ok(tick(bench, 2120.0, 2180.0)) == 2


def test_removed_and_restored(bench):
    bench.ok(add(bench, request="r"))
    bench.ok(add(bench, request="r"))
    bench.ok(add(bench, "poll", spec=msgspec.structs.replace(SPEC, inputs=Payload(digest="a" * 64, size_bytes=3))))
    bench.check_snapshot()
    assert bench.refused(add(bench)).code == "name_taken"
    assert blobs_of(bench.state) == {"a" * 64}

    bench.ok(jc.RemoveSchedule("", "nightly", bench.tick()))

    assert bench.refused(tick(bench, 2000.0, 2060.0)).code == "stale_tick"
    assert bench.refused(jc.RemoveSchedule("", "nightly", bench.tick())).code == "unknown_schedule"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "a b"}, "name: 'a b' given"),
        ({"cron": "* * *"}, "cron: '* * *' given; allowed: five fields"),
        ({"cron": "9" * 5000 + " * * * *"}, "cron: '999"),
        ({"catch_up": "some"}, "catch_up: 'some' given; allowed: one, all, none"),
        ({"overlap": "kill"}, "overlap: 'kill' given; allowed: run, skip"),
        ({"spec": JobSpec(kind="command")}, "argv: [] given"),
        ({"spec": msgspec.structs.replace(SPEC, open=True)}, "open: True given; allowed: no open job in a schedule"),
        ({"spec": msgspec.structs.replace(SPEC, count=0)}, "count: 0 given; allowed: at least one task"),
        ({"spec": msgspec.structs.replace(SPEC, after=(Dependency(1),))}, "after: [1] given"),
        ({"spec": msgspec.structs.replace(SPEC, code_index=4)}, "code_index: 4 given"),
        ({"first_at": 3.0}, "first_at: 3.0 given"),
        ({"first_at": float("inf")}, "first_at: inf given"),
    ],
)
def test_bad_schedules(bench, changes, said):
    assert said in bench.refused(add(bench, **changes)).message
    assert bench.state.schedules == {}


@pytest.mark.parametrize("following", [2000.0, 1999.0, float("nan")])
def test_the_next_tick_is_later(bench, following):
    bench.ok(add(bench))

    assert bench.refused(tick(bench, 2000.0, following)).code == "bad_field"


# ---------------------------------------------------------------- what the leader proposes


@pytest.mark.parametrize(
    ("policy", "late_s", "following", "run"),
    [
        ("one", 0, 60, True),
        ("one", 200, 240, True),
        ("all", 200, 60, True),
        ("none", 1, 60, True),
        ("none", 200, 240, False),
    ],
)
def test_missed_ticks_are_made_up_for_by_policy(bench, policy, late_s, following, run):
    bench.ok(add(bench, first_at=1200.0, catch_up=policy))

    proposed = tick_of(bench.state.schedules["nightly"], 1200.0 + late_s)

    assert (proposed.tick_at, proposed.next_at, proposed.run) == (1200.0, 1200.0 + following, run)


# ---------------------------------------------------------------- cron


def following(text, when, zone="UTC"):
    at = datetime.fromisoformat(when).replace(tzinfo=ZoneInfo(zone)).timestamp()
    return datetime.fromtimestamp(cron.parse(text).next_after(at, ZoneInfo(zone)), ZoneInfo(zone)).isoformat()


@pytest.mark.parametrize(
    ("text", "when", "found"),
    [
        ("* * * * *", "2026-11-26T10:00:00", "2026-11-26T10:01:00+00:00"),
        ("* * * * *", "2026-11-26T10:00:59.9", "2026-11-26T10:01:00+00:00"),
        ("*/15 9-17 * * mon-fri", "2026-11-27T17:50:00", "2026-11-30T09:00:00+00:00"),
        ("5,35 */6 * * *", "2026-11-26T06:05:00", "2026-11-26T06:35:00+00:00"),
        ("0 0 13 * 5", "2026-11-26T00:00:00", "2026-11-27T00:00:00+00:00"),
        ("0 0 */2 * 1", "2026-11-29T12:00:00", "2026-12-07T00:00:00+00:00"),
        ("0 12 * dec sun", "2026-11-29T12:00:00", "2026-12-06T12:00:00+00:00"),
        ("0 12 * * 7", "2026-11-29T11:00:00", "2026-11-29T12:00:00+00:00"),
        ("0 0 29 2 *", "2026-01-01T00:00:00", "2028-02-29T00:00:00+00:00"),
        ("@hourly", "2026-11-26T10:00:00", "2026-11-26T11:00:00+00:00"),
        ("@yearly", "2026-11-26T10:00:00", "2027-01-01T00:00:00+00:00"),
    ],
)
def test_times(text, when, found):
    assert following(text, when) == found


def test_clocks_that_change():
    """In Berlin 02:30 is left out on 29 March 2026 and comes twice on 25 October."""
    berlin = "Europe/Berlin"
    assert following("30 2 * * *", "2026-03-28T12:00", berlin) == "2026-03-30T02:30:00+02:00"
    assert following("30 2 * * *", "2026-10-24T12:00", berlin) == "2026-10-25T02:30:00+02:00"
    assert following("30 2 * * *", "2026-10-25T02:30", berlin) == "2026-10-26T02:30:00+01:00"


@pytest.mark.parametrize(
    "text",
    ["", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "5-1 * * * *", "*/0 * * * *",
     "a * * * *", "1,,2 * * * *", "-1 * * * *", "@often", "* * * foo *", "1-2-3 * * * *", "\u0664 * * * *"],
)  # fmt: skip
def test_what_is_no_time_is_refused(text):
    with pytest.raises(cron.BadCron, match="cron: "):
        cron.parse(text)


def test_a_day_that_never_comes():
    with pytest.raises(cron.BadCron, match="allowed: a day that some time comes"):
        cron.parse("0 0 31 2 *").next_after(0.0, UTC)
