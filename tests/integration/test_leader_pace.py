"""How often a leader plans when planning is long for what comes of it; a real master with real sockets."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path

import pytest

from depalma import dispatcher
from depalma.leader import dispatching
from depalma.leader.rooms import Rooms
from depalma.leader.session import AgentSession
from depalma.protocol import Assign
from depalma.testing.one_master import agent, beating_until, running_master, submit


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each round began."""
    begun: list[float] = []
    plan = dispatcher.plan

    def noted(*arguments: object) -> object:
        begun.append(time.monotonic())
        return plan(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dispatcher, "plan", noted)
    return begun


async def test_rounds_that_find_nothing_and_take_long_are_further_apart(tmp_path: Path, rounds: list[float]) -> None:
    """Not one after each commit; and what came meanwhile is not forgotten."""
    async with running_master(tmp_path) as master:
        moments = count()
        master.spent = lambda: 0.04 * next(moments)  # each round: 40 ms
        rounds.clear()
        for _ in range(40):
            await submit(master)
        passed_s = time.monotonic() - rounds[0]
        least_s = min(dispatching.PAUSE_S, 0.04 * dispatching.SHARE)
        assert len(rounds) <= passed_s / least_s + 2
        async with agent(master) as one:
            frame = await beating_until(one, Assign)
            assert frame.tasks[0].job == 1


async def test_short_rounds_follow_each_other_at_once(tmp_path: Path, rounds: list[float]) -> None:
    """There is no pause that anybody would notice where planning costs nothing."""
    async with running_master(tmp_path) as master:
        master.spent = lambda: 0.0
        rounds.clear()
        for number in range(20):
            await submit(master)
            assert len(rounds) >= number


async def test_rooms_are_told_of_tasks_before_their_agent_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms are kept from round to round; a task may be over before they are made again."""
    told: list[tuple[str, int]] = []
    note_assigned = Rooms.note_assigned

    def noted(rooms: Rooms, session: AgentSession) -> None:
        told.append((session.host, len(master.state.hosts[session.host].attempts)))
        note_assigned(rooms, session)

    monkeypatch.setattr(Rooms, "note_assigned", noted)
    async with running_master(tmp_path) as master:
        await submit(master)
        async with agent(master) as one:
            await beating_until(one, Assign)
            assert told == [("h1", 1)]
