"""Lets happen what the state has for a time, and ticks the schedules, when the clock says so."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo

from depalma.consensus import NotLeader, OutcomeUnknown
from depalma.cron import BadCron, parse
from depalma.errors import Rejected
from depalma.leader.context import Context
from depalma.state.commands import AnyCommand
from depalma.state.job_commands import PassTime, TickSchedule
from depalma.state.schedule import Schedule

log = logging.getLogger(__name__)

#: How often the clock is looked at: what is due comes at most so late, and a clock that was set is noticed.
LOOK_S = 0.1
#: A tick that is not later than this is run by every policy: a fail-over is no reason to leave it out.
PUNCTUAL_S = 60.0


async def keep_time(context: Context) -> None:
    """Runs while its master leads. All of it may be proposed again by the next leader: what happened stays so."""
    failed: dict[str, float] = {}  #: schedules whose next tick cannot be reckoned here, and which it was
    while True:
        await asyncio.sleep(LOOK_S)
        wall = context.wall()
        due = context.state.due.next_at()
        if due is not None and due <= wall:
            await _propose(context, PassTime(wall))
        for schedule in [one for one in context.state.schedules.values() if one.next_at <= wall]:
            if failed.get(schedule.name) == schedule.next_at:
                continue
            try:
                tick = tick_of(schedule, wall)
            except (BadCron, OSError, ValueError, KeyError) as error:
                failed[schedule.name] = schedule.next_at
                log.error("schedule %s stands still while this master leads: %s", schedule.name, error)
                continue
            await _propose(context, tick)


def tick_of(schedule: Schedule, wall: float) -> TickSchedule:
    """Returns the tick that a schedule awaits, which has come, as its policy wants it when it is late.

    Errors: BadCron, and what `zone_of` raises.
    """
    zone, times = zone_of(schedule.zone), parse(schedule.cron)
    following = times.next_after(schedule.next_at, zone)
    run = True
    if schedule.catch_up != "all" and following <= wall:
        # One job for all that was missed, at the first of them; the next tick is one that is still to come.
        following = times.next_after(wall, zone)
    if schedule.catch_up == "none":
        run = wall - schedule.next_at <= PUNCTUAL_S
    return TickSchedule(schedule.name, schedule.next_at, following, run, wall)


def zone_of(name: str) -> tzinfo:
    """Returns a time zone such as Europe/Berlin. Errors: KeyError (ZoneInfoNotFoundError), ValueError, OSError."""
    return UTC if name in ("", "UTC") else ZoneInfo(name)


async def _propose(context: Context, command: AnyCommand) -> None:
    try:
        await context.execute(command)
    except (Rejected, NotLeader, OutcomeUnknown) as error:
        log.info("%s: %s", type(command).__name__, error)
