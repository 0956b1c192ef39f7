"""The leader's side of hosts that are drained, changed, removed, or move: a real master, agents by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from depalma.errors import Rejected
from depalma.master import Master
from depalma.model import AttemptRef, JobSpec, Report
from depalma.protocol import Assign, Kill, Refused, Reports, ReportsCommitted, Started, Welcome
from depalma.state.commands import AddHost, AnyCommand, DrainHost, RemoveHost, SetHost, UndrainHost
from depalma.testing.one_master import (
    FACTS,
    Agent,
    agent,
    beating_until,
    eventually,
    running_master,
    submit,
    succeeded,
)

#: Where one is to end: who beats all the time does not lose it although all stand still for a second or two.
LEASE_S = 3.0
ON_H1 = JobSpec(kind="command", argv=("true",), on_host="h1")


async def do(master: Master, command: AnyCommand) -> object:
    return (await master.execute(command)).value


async def given(one: Agent) -> AttemptRef:
    """Returns the one attempt of the next order."""
    (task,) = (await one.next(Assign)).tasks
    return task.job, task.task, task.attempt


async def started(one: Agent, master: Master) -> AttemptRef:
    """Returns an attempt that the state counts as running."""
    ref = await given(one)
    await one.say(Started(((*ref, 1.0),)))
    await eventually(lambda: master.state.hosts["h1"].attempts[ref].started_at is not None)
    return ref


# ---------------------------------------------------------------- drain


async def test_a_drain_takes_back_what_waits_and_moves_what_runs_at_its_deadline(tmp_path: Path) -> None:
    """What runs is told to end only then, and runs elsewhere once its report is committed."""
    async with running_master(tmp_path) as master, agent(master) as one:
        await submit(master)
        running = await started(one, master)
        await submit(master)
        waiting = await given(one)
        drained_s = master.wall()
        await do(master, DrainHost("d", "h1", drained_s + 1.0, drained_s, "update"))

        back = await one.next(Kill)
        assert (back.tasks, back.outcome) == ((waiting,), "returned")
        await one.say(Reports((Report(*waiting, "returned"),)))
        moved = await one.next(Kill)
        assert master.wall() >= drained_s + 1.0
        assert (moved.tasks, moved.outcome) == ((running,), "moved")
        assert moved.reason == "host h1 is being drained: update"
        async with agent(master, host="h2") as two:
            assert await given(two) == (waiting[0], 0, 2)
            await one.say(Reports((Report(*running, "moved", error=moved.reason, started_at=1.0),)))
            assert await given(two) == (running[0], 0, 2)
        assert master.state.hosts["h1"].shown_state == "drained"


async def test_the_next_leader_keeps_the_deadline(tmp_path: Path) -> None:
    """It is in the state: a reign that did not see the drain begin moves what is over."""
    async with running_master(tmp_path) as master:
        async with agent(master) as one:
            await submit(master)
            ref = await started(one, master)
        await do(master, DrainHost("d", "h1", master.wall(), master.wall()))
        master._leadership(False, master.term)
        master._leadership(True, master.term)
        async with agent(master, running=(ref,)) as again:
            kill = await again.next(Kill)
            assert (kill.tasks, kill.outcome) == ((ref,), "moved")


async def test_an_agent_that_is_started_anew_on_a_drained_host_gets_nothing(tmp_path: Path) -> None:
    """Until the drain is taken back."""
    async with running_master(tmp_path) as master:
        await do(master, DrainHost("d", "h1", None, master.wall()))
        async with agent(master) as one:
            await one.next(Welcome)
            job = await submit(master, ON_H1)
            assert master.state.hosts["h1"].shown_state == "drained"
            async with agent(master, host="h2") as two:  # which would be given it by now
                other = await submit(master)
                assert (await given(two))[0] == other
            await do(master, UndrainHost("u", "h1", master.wall()))
            assert (await given(one))[0] == job


# ---------------------------------------------------------------- set


async def test_other_slots_are_told_at_once_and_filled(tmp_path: Path) -> None:
    """The agent need not connect again."""
    async with running_master(tmp_path) as master, agent(master) as one:
        assert (await one.next(Welcome)).slots == 0
        await submit(master, JobSpec(kind="command", argv=("true",), count=3))
        assert len((await one.next(Assign)).tasks) == 2
        await do(master, SetHost("s", "h1", master.wall(), slots=3))
        assert (await one.next(Welcome)).slots == 3
        assert len((await one.next(Assign)).tasks) == 1


# ---------------------------------------------------------------- add and remove


async def test_a_host_that_was_added_may_come(tmp_path: Path) -> None:
    """No file of a master names it."""
    async with running_master(tmp_path) as master:
        await do(master, AddHost("a", "h9", ("g",), {}, 0, 0, 0, master.wall(), from_file=False))
        async with agent(master, host="h9") as nine:
            await nine.next(Welcome)
            job = await submit(master, JobSpec(kind="command", argv=("true",), group="g"))
            assert (await given(nine))[0] == job


async def test_a_removed_host_is_told_to_stop_and_its_file_does_not_bring_it_back(tmp_path: Path) -> None:
    """Not in the next reign either."""
    async with running_master(tmp_path) as master:
        async with agent(master) as one:
            await one.next(Welcome)
            await do(master, RemoveHost("r", "h1", False, master.wall()))
            refused = await one.next(Refused)
            assert (refused.reason, refused.stop) == ("host h1 was removed from the cluster", True)
            assert await one.closed()
        master._leadership(False, master.term)
        master._leadership(True, master.term)
        async with agent(master, host="h2") as two:
            await two.next(Welcome)
        async with agent(master) as again:
            refused = await again.next(Refused)
            assert refused.stop
            assert "depalmactl host add h1" in refused.reason
        assert "h1" not in master.state.hosts


async def test_a_host_that_is_removed_by_force_loses_its_work_when_its_supervisor_says_so(tmp_path: Path) -> None:
    """Not before: it may still run."""
    async with running_master(tmp_path, lease_s=30) as master, agent(master, host="h1") as one:
        job = await submit(master)
        await given(one)
        with pytest.raises(Rejected, match="host h1 has 1 task;"):
            await do(master, RemoveHost("r", "h1", False, master.wall()))
        await do(master, RemoveHost("f", "h1", True, master.wall()))
        assert (await one.next(Refused)).stop
        async with agent(master, host="h2") as two:
            await two.next(Welcome)
            assert master.state.jobs[job].running[0].host == "h1"
            await master.sessions.gone("h1", "one", "the agent left")
            assert await given(two) == (job, 0, 2)
        assert "h1" not in master.state.hosts
        await master.sessions.gone("h1", "one", "said again")


async def test_a_host_that_is_removed_by_force_and_says_nothing_is_waited_for(tmp_path: Path) -> None:
    """For its lease and the margin: by then it has stopped itself."""
    async with running_master(tmp_path, lease_s=LEASE_S, heartbeat_s=0.1) as master, agent(master, host="h1") as one:
        job = await submit(master)
        await given(one)
        removed_s = master.clock()
        await do(master, RemoveHost("f", "h1", True, master.wall()))
        async with agent(master, host="h2") as two:
            order = await beating_until(two, Assign)
            assert master.clock() - removed_s > LEASE_S
        assert [(task.job, task.attempt) for task in order.tasks] == [(job, 2)]
        assert "h1" not in master.state.hosts


# ---------------------------------------------------------------- restarts and other addresses


async def test_an_agent_that_was_restarted_reports_what_had_finished(tmp_path: Path) -> None:
    """Its report was on its disk: the task is not run again, the other one is."""
    async with running_master(tmp_path) as master:
        async with agent(master, incarnation="one") as one:
            job = await submit(master, JobSpec(kind="command", argv=("true",), count=2))
            await one.next(Assign)
        await eventually(lambda: not master.sessions.by_host)
        async with agent(master, incarnation="two", unreported=((job, 1, 1),)) as two:
            order = await two.next(Assign)
            assert [(task.task, task.attempt) for task in order.tasks] == [(0, 2)]
            await two.say(Reports((succeeded((job, 1, 1)),)))
            assert (await two.next(ReportsCommitted)).tasks == ((job, 1, 1),)
        assert master.state.jobs[job].state_of(1) == "succeeded"


async def test_a_supervisors_last_word_has_the_reports_of_its_agent(tmp_path: Path) -> None:
    """What had ended is recorded, what had not is lost."""
    async with running_master(tmp_path, lease_s=30) as master:
        async with agent(master, incarnation="one") as one:
            job = await submit(master, JobSpec(kind="command", argv=("true",), count=2))
            await one.next(Assign)
        await master.sessions.gone("h1", "one", "agent died", (succeeded((job, 1, 1)),))
        assert [master.state.jobs[job].state_of(index) for index in range(2)] == ["queued", "succeeded"]


async def test_a_host_with_another_address_is_the_same_host(tmp_path: Path) -> None:
    """A laptop that is carried from one network to another keeps what it runs."""
    async with running_master(tmp_path) as master:
        async with agent(master) as one:
            await submit(master)
            ref = await started(one, master)
        moved = msgspec.structs.replace(FACTS, address="192.168.7.7")
        async with agent(master, running=(ref,), facts=moved) as again:
            await again.next(Welcome)
            host = master.state.hosts["h1"]
            granted = msgspec.structs.replace(moved, lease_s=master.config.settings.lease_s)
            assert (host.facts, host.shown_state, list(host.attempts)) == (granted, "up", [ref])
            await again.say(Reports((succeeded(ref),)))
            await again.next(ReportsCommitted)
            await asyncio.sleep(0)
            assert not [frame for frame in again.frames if isinstance(frame, Assign | Kill)]
