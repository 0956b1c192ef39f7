"""Jobs that are submitted again and again, at times of day. [pure]

A schedule knows its next tick. Only the tick that is awaited can happen, and in the same command the next one takes
its place: whoever leads, however often it is proposed, there is one run a tick. Which ticks are made up for after a
time without a leader is the proposer's reckoning by the schedule's policy (`leader/timekeeping.py`); the log holds what
came of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from depalma import cron
from depalma.state.checks import LATEST_AT, bad_field, bad_name, bad_range, bad_spec, bad_text
from depalma.state.commands import Applied, Rejected
from depalma.state.event_log import Detail
from depalma.state.job_commands import AddSchedule, RemoveSchedule, TickSchedule
from depalma.state.schedule import Schedule
from depalma.state.submissions import create

if TYPE_CHECKING:
    from depalma.state.cluster_state import ClusterState

MAX_SCHEDULES = 10_000
CATCH_UPS = ("one", "all", "none")
OVERLAPS = ("run", "skip")


def add_schedule(state: ClusterState, command: AddSchedule) -> Applied | Rejected:
    """Adds a schedule under a name of its own."""
    if known := state.answers.find("schedule.add", command.request):
        return Applied(known.value, state.version)
    if wrong := bad_schedule(command):
        return wrong
    if command.name in state.schedules:
        return Rejected("name_taken", f"there is a schedule {command.name} already")
    if len(state.schedules) >= MAX_SCHEDULES:
        return Rejected("too_many", f"there are {MAX_SCHEDULES} schedules, the most that there may be")
    if not -1 <= command.spec.code_index <= state.code_index:
        return bad_field("code_index", command.spec.code_index, f"-1 (newest) to {state.code_index}")
    spec = command.spec if command.spec.name else msgspec.structs.replace(command.spec, name=command.name)
    state.schedules[command.name] = Schedule(
        command.name, spec, command.cron, command.zone, command.first_at, command.at, command.by,
        command.catch_up, command.overlap,
    )  # fmt: skip
    detail: Detail = {"schedule": command.name, "cron": command.cron, "zone": command.zone, "by": command.by}
    state.events.add("schedule.added", command.at, detail=detail)
    state.answers.keep("schedule.add", command.request, None, command.at)
    return Applied(None, state.version)


def bad_schedule(command: AddSchedule) -> Rejected | None:
    """Refuses what could never tick."""
    spec = command.spec
    if len(command.cron) > 200:  # before it is read: no Python reads a number of 5000 digits
        return bad_field("cron", command.cron, "at most 200 characters")
    try:
        cron.parse(command.cron)
    except cron.BadCron as error:
        return Rejected("bad_field", str(error))
    if command.catch_up not in CATCH_UPS:
        return bad_field("catch_up", command.catch_up, ", ".join(CATCH_UPS))
    if command.overlap not in OVERLAPS:
        return bad_field("overlap", command.overlap, ", ".join(OVERLAPS))
    if spec.after:
        return bad_field("after", [one.job for one in spec.after], "nothing in a schedule")
    if not spec.count:
        return bad_field("count", spec.count, "at least one task in a schedule")
    return (
        bad_name("name", command.name)
        or bad_spec(spec)
        or (bad_field("open", True, "no open job in a schedule") if spec.open else None)
        or (bad_field("zone", command.zone, "at most 100 characters") if len(command.zone) > 100 else None)
        or bad_text("by", command.by)
        or bad_range("first_at", command.first_at, command.at, LATEST_AT)
    )


def remove_schedule(state: ClusterState, command: RemoveSchedule) -> Applied | Rejected:
    """Takes the schedule off the list."""
    if known := state.answers.find("schedule.remove", command.request):
        return Applied(known.value, state.version)
    if command.name not in state.schedules:
        return Rejected("unknown_schedule", f"there is no schedule {command.name[:80]}")
    del state.schedules[command.name]
    state.events.add("schedule.removed", command.at, detail={"schedule": command.name})
    state.answers.keep("schedule.remove", command.request, None, command.at)
    return Applied(None, state.version)


def tick_schedule(state: ClusterState, command: TickSchedule) -> Applied | Rejected:
    """Makes the job of the tick that is awaited."""
    schedule = state.schedules.get(command.name)
    if schedule is None or schedule.next_at != command.tick_at:
        return Rejected("stale_tick", f"schedule {command.name[:80]} does not await a tick at {command.tick_at}")
    if wrong := bad_range("next_at", command.next_at, command.tick_at, LATEST_AT):
        return wrong
    if command.next_at == command.tick_at:
        return bad_field("next_at", command.next_at, "later than tick_at")
    last = state.jobs.get(schedule.last_job)
    detail: Detail = {"schedule": schedule.name, "tick_at": command.tick_at}
    busy = schedule.overlap == "skip" and last is not None and not last.is_final
    schedule.next_at, schedule.last_at = command.next_at, command.tick_at
    if not command.run or busy:
        schedule.skipped += 1
        reason = f"job {schedule.last_job} still lives" if busy else "missed, and not made up for"
        state.events.add("schedule.skipped", command.at, detail={**detail, "reason": reason})
        return Applied(None, state.version)
    job = create(state, schedule.spec, command.at)
    schedule.last_job = job.id
    schedule.runs += 1
    state.events.add("schedule.ticked", command.at, job=job.id, detail=detail)
    state.settle(job, command.at)
    return Applied(job.id, state.version)
