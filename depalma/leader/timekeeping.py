"""Lets happen what the state has for a time: proposes `PassTime` when the leader's clock says so."""

from __future__ import annotations

import asyncio
import logging

from depalma.consensus import NotLeader, OutcomeUnknown
from depalma.errors import Rejected
from depalma.leader.context import Context
from depalma.state.job_commands import PassTime

log = logging.getLogger(__name__)

#: How often the clock is looked at: what is due comes at most so late, and a clock that was set is noticed.
LOOK_S = 0.1


async def keep_time(context: Context) -> None:
    """Runs while its master leads. All of it may be proposed again by the next leader: what happened stays so."""
    while True:
        await asyncio.sleep(LOOK_S)
        wall = context.wall()
        due = context.state.due.next_at()
        if due is None or due > wall:
            continue
        try:
            await context.execute(PassTime(wall))
        except (Rejected, NotLeader, OutcomeUnknown) as error:
            log.info("what was due: %s", error)
