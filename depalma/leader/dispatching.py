"""The loop that turns free room into work: plan, propose, and send what was committed.

One plan is in flight at a time, so that no task is planned twice and strict order holds; under load each round
carries many tasks, and hosts have work ahead for the time of a round.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping

from depalma import dispatcher
from depalma.consensus import NotLeader, OutcomeUnknown
from depalma.errors import Rejected
from depalma.leader.context import Context
from depalma.leader.rooms import Rooms
from depalma.leader.sessions import Sessions
from depalma.model import AttemptRef
from depalma.policies.places import HostRoom
from depalma.policies.preempt import preemptions
from depalma.state.commands import AssignOutcome, AssignTasks

log = logging.getLogger(__name__)

#: Tasks of one round: bounds the size of a log entry and the time that planning takes from the loop.
ROUND_LIMIT = 2_000
#: Beyond what a task may cost, planning takes at most one in so many parts of the leader's time.
TASK_S = 20e-6
SHARE = 5
#: The longest pause between two rounds, and the shortest that is worth it.
PAUSE_S = 0.2
LEAST_PAUSE_S = 1e-3
#: How soon it is looked again whether a host is still busy with something else.
RETRY_S = 1.0


class DispatchLoop:
    """Runs while its master leads."""

    def __init__(self, context: Context, sessions: Sessions, rooms: Rooms) -> None:
        self._context = context
        self._rooms = rooms
        self._held_back = False  #: a host, or a GPU, is busy with something else
        self._sessions = sessions
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something changed: jobs, hosts or room."""
        self._wake.set()

    async def run(self) -> None:
        """Dispatches until cancelled."""
        context = self._context
        while True:
            await self._woken()
            began_s, spent_s = context.clock(), context.spent()
            rooms = self._rooms.now()
            self._held_back = self._rooms.busy
            commands = dispatcher.plan(
                context.state, rooms, context.rates.mean_s, context.wall(), context.term, ROUND_LIMIT
            )
            if not commands:
                self._make_room(rooms)
            tasks = sum(len(refs) for command in commands for _, refs in dispatcher.parts(command))
            wasted_s = context.spent() - spent_s - TASK_S * tasks
            if commands and await self._commit(commands):
                self._wake.set()  # what is left after a full round, and what came meanwhile
            await self._pause(began_s + SHARE * wasted_s)

    async def _pause(self, until_s: float) -> None:
        """Waits after a round that was long for what came of it, so that the next one is about more: else every
        commit would be followed by such a round, where there are very many hosts, or jobs that fit no free one."""
        pause_s = min(PAUSE_S, until_s - self._context.clock())
        if pause_s >= LEAST_PAUSE_S:
            await asyncio.sleep(pause_s)

    async def _woken(self) -> None:
        """Returns when something has changed, or may have: nobody says that a host is not busy any more."""
        timeout_s = RETRY_S if self._held_back and self._context.state.ready else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        self._wake.clear()

    def _make_room(self, rooms: Mapping[str, HostRoom]) -> None:
        """Ends tasks of lower priority for jobs that preempt; they come back as `moved`."""
        sessions = self._sessions.by_host
        told = {
            ref
            for name in rooms
            if name in sessions
            for ref, outcome in sessions[name].killed
            if outcome != "returned"  # that ends nothing that has started
        }
        for each in preemptions(self._context.state, rooms, told):
            session = sessions.get(each.host)
            if session is not None:
                log.info("%d tasks on host %s: %s", len(each.refs), each.host, each.reason)
                self._sessions.orders.kill(session, list(each.refs), outcome="moved", reason=each.reason)

    async def _commit(self, commands: list[dispatcher.Assignment]) -> bool:
        """Proposes a round and sends what was accepted. Returns whether anything was."""
        outcomes = await asyncio.gather(*(self._context.execute(c) for c in commands), return_exceptions=True)
        any_accepted = False
        for command, outcome in zip(commands, outcomes, strict=True):
            if isinstance(outcome, NotLeader | OutcomeUnknown | Rejected):
                # Nothing is lost: a refused one is planned again; an unknown one is found by the agent's next hello.
                for host, refs in dispatcher.parts(command):
                    log.info("assignment of %d tasks to %s: %s", len(refs), host, outcome)
                    if isinstance(outcome, OutcomeUnknown):
                        self._reconnect(host)
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            any_accepted |= self._send(command, outcome.value)
        return any_accepted

    def _send(self, command: dispatcher.Assignment, value: object) -> bool:
        if not isinstance(value, AssignOutcome):
            raise TypeError(f"{type(command).__name__} answered {value!r}")
        if value.refused:
            log.info("refused: %s", value.refused[:3])
        if isinstance(command, AssignTasks):
            self._order(command.host, command.incarnation, value.accepted)
        elif value.accepted:
            for part in command.parts:
                self._order(*part)
        return bool(value.accepted)

    def _order(self, host: str, incarnation: str, refs: tuple[AttemptRef, ...]) -> None:
        """Sends, behind this round: arguments may have to come from a master that hangs, and neither other jobs nor the
        other members of a gang are to wait for that."""
        session = self._sessions.by_host.get(host)
        if session is not None and session.incarnation == incarnation:
            self._rooms.note_assigned(session)
            self._sessions.assign(session, refs)

    def _reconnect(self, host: str) -> None:
        """An assignment may have been committed without our knowing: a new hello makes both sides agree."""
        session = self._sessions.by_host.get(host)
        if session is not None:
            session.close()
