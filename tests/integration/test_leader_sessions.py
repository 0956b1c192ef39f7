"""A real master (one replica, real disk and sockets) and agents that speak the protocol by hand.

What an agent process does is tested elsewhere; here it is the leader's side: admission, reconciliation, leases.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from pathlib import Path

import msgspec
import pytest

from depalma.codetree import sign, tree_digest
from depalma.leader.reign import Reign
from depalma.master import Master
from depalma.model import Load, Report
from depalma.protocol import (
    Assign,
    CodeAcknowledged,
    CodeLog,
    CodeProblem,
    Forget,
    Heartbeat,
    HeartbeatAnswer,
    Kill,
    Refused,
    Reports,
    ReportsCommitted,
    Welcome,
    decode_from_agent,
)
from depalma.state.commands import AddCode, AnyCommand, Applied, CancelJobs, HostLost
from depalma.testing.one_master import agent, beating_until, eventually, running_master, submit, succeeded

#: Where one is to end: who beats all the time does not lose it although all stand still for a second or two.
LEASE_S = 3.0


async def test_work_goes_out_once_and_its_report_is_committed(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master, agent(master) as one:
        welcome = await one.next(Welcome)
        assert welcome.lease_s == master.config.settings.lease_s
        job = await submit(master)
        order = await one.next(Assign)
        assert [template.job for template in order.jobs] == [job]
        assert [(task.job, task.task, task.attempt) for task in order.tasks] == [(job, 0, 1)]
        assert order.term == master.term

        await one.say(Reports((succeeded((job, 0, 1)),)))

        assert (await one.next(ReportsCommitted)).tasks == ((job, 0, 1),)
        assert master.state.jobs[job].state() == "succeeded"


async def test_a_report_that_is_said_twice_is_recorded_once_and_answered_twice(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master, agent(master) as one:
        job = await submit(master)
        await one.next(Assign)
        for _ in range(2):
            await one.say(Reports((succeeded((job, 0, 1)),)))
            assert (await one.next(ReportsCommitted)).tasks == ((job, 0, 1),)
        assert list(master.state.jobs[job].finished_order) == [0]


async def test_what_never_arrived_is_sent_again_with_the_same_attempt(tmp_path: Path) -> None:
    """The agent's connection broke between commit and order: its next hello does not know the attempt."""
    async with running_master(tmp_path) as master:
        async with agent(master) as one:
            job = await submit(master)
            first = await one.next(Assign)
        async with agent(master) as again:
            second = await again.next(Assign)
        assert second.tasks == first.tasks
        assert [template.job for template in second.jobs] == [job], "a new connection has carried no template yet"


async def test_what_the_agent_still_has_is_not_sent_again(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master:
        async with agent(master) as one:
            job = await submit(master)
            await one.next(Assign)
        async with agent(master, running=((job, 0, 1),)) as again:
            await again.next(Welcome)
            other = await submit(master)
            order = await again.next(Assign)
            assert [task.job for task in order.tasks] == [other]


async def test_attempts_that_the_state_does_not_count_are_ended(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master, agent(master, running=((77, 3, 2),)) as one:
        assert (await one.next(Forget)).tasks == ((77, 3, 2),)


async def test_a_new_incarnation_means_that_the_old_ones_attempts_are_lost_and_run_again(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master:
        async with agent(master, incarnation="one") as one:
            job = await submit(master)
            await one.next(Assign)
        await eventually(lambda: not master.sessions.by_host)
        async with agent(master, incarnation="two") as two:
            order = await two.next(Assign)
            assert [(task.job, task.task, task.attempt) for task in order.tasks] == [(job, 0, 2)]


async def test_a_second_agent_of_a_connected_host_is_refused_and_disturbs_nothing(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master, agent(master, incarnation="one") as one:
        await one.next(Welcome)
        async with agent(master, incarnation="two") as two:
            assert "another agent" in (await two.next(Refused)).reason
        job = await submit(master)
        assert [task.job for task in (await one.next(Assign)).tasks] == [job]


@pytest.mark.parametrize(
    ("host", "version", "reason"), [("h9", 1, "depalmactl host add h9"), ("h1", 99, "protocol 99")]
)
async def test_strangers_are_told_to_stop(tmp_path: Path, host: str, version: int, reason: str) -> None:
    async with running_master(tmp_path) as master, agent(master, host=host, version=version) as one:
        refused = await one.next(Refused)
        assert reason in refused.reason
        assert refused.stop


BEAT = b"\x95\xa4beat\x07\xcb" + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xc1 no frame at all", id="no msgpack"),
        pytest.param(BEAT + b"\x81\xa1x" + b"\x91" * 100_000, id="nested without end"),
        pytest.param(b"\x95\xa4\xff\xff\xff\xff", id="no UTF-8"),
    ],
)
async def test_garbage_closes_the_connection_and_nothing_else(tmp_path: Path, data: bytes) -> None:
    async with running_master(tmp_path) as master, agent(master) as one, agent(master, host="h2") as two:
        await one.next(Welcome)
        await two.next(Welcome)
        with pytest.raises(msgspec.DecodeError):
            decode_from_agent(data)
        await one.websocket.send_bytes(data)
        assert await one.closed()
        job = await submit(master)
        assert [task.job for task in (await two.next(Assign)).tasks] == [job]


async def test_heartbeats_are_answered_while_leading_only(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master, agent(master) as one:
        await one.next(Welcome)
        await one.say(Heartbeat(7, 123.5, Load(load1=0.5), 2))
        answer = await one.next(HeartbeatAnswer)
        assert (answer.sequence, answer.sent_s, answer.term) == (7, 123.5, master.term)
        assert master.sessions.load_of("h1").load1 == 0.5


async def test_a_silent_host_is_lost_after_lease_and_margin_and_its_work_moves(tmp_path: Path) -> None:
    async with running_master(tmp_path, lease_s=LEASE_S, heartbeat_s=0.1) as master:
        async with agent(master, host="h1") as one:
            job = await submit(master)
            await one.next(Assign)
            begun = master.clock()
            await one.say(Heartbeat(1, 0.0, Load(), 1))
            await one.next(HeartbeatAnswer)
        async with agent(master, host="h2") as two:
            moved = await beating_until(two, Assign)
            took_s = master.clock() - begun
        assert [(task.job, task.task, task.attempt) for task in moved.tasks] == [(job, 0, 2)]
        assert took_s > LEASE_S * (1 + master.config.settings.lease_margin)
        assert master.state.hosts["h1"].state == "lost"


async def test_a_suspect_that_is_heard_again_on_the_same_connection_gets_work_again(tmp_path: Path) -> None:
    """An agent that was frozen for less than its lease keeps its connection: no hello tells that it is back."""
    async with running_master(tmp_path, lease_s=3, heartbeat_s=0.1) as master, agent(master) as one:
        await one.next(Welcome)
        await eventually(lambda: master.state.hosts["h1"].state == "suspect")
        job = await submit(master)
        order = await beating_until(one, Assign)
        assert [task.job for task in order.tasks] == [job]
        assert master.state.hosts["h1"].state == "up"


async def test_a_lost_incarnation_has_to_come_back_as_another(tmp_path: Path) -> None:
    async with running_master(tmp_path, lease_s=LEASE_S, heartbeat_s=0.1) as master:
        async with agent(master, incarnation="one") as one:
            await one.next(Welcome)
        await eventually(lambda: master.state.hosts["h1"].state == "lost")
        async with agent(master, incarnation="one") as again:
            refused = await again.next(Refused)
            assert refused.restart_incarnation
        async with agent(master, incarnation="two") as two:
            await two.next(Welcome)
        assert master.state.hosts["h1"].state == "up"


async def test_who_comes_back_while_others_are_recorded_as_lost_is_not_lost(tmp_path: Path) -> None:
    """What was judged is the incarnation that was silent, not the one that is there when its turn comes (161614247)."""
    async with running_master(tmp_path, lease_s=LEASE_S, heartbeat_s=0.1) as master:
        clock, now = master.clock, master.clock()
        master.clock = lambda: now  # both were heard at one moment, so both are judged at one
        async with agent(master, host="h1") as one, agent(master, host="h2") as two:
            await one.next(Welcome)
            await two.next(Welcome)
        begun: list[str] = []
        done: list[str] = []
        goes_on = asyncio.Event()
        execute = master.execute

        async def slow(command: AnyCommand) -> Applied:
            if isinstance(command, HostLost):
                begun.append(command.host)
                if len(begun) == 1:
                    await goes_on.wait()
                try:
                    return await execute(command)
                finally:
                    done.append(command.host)
            return await execute(command)

        master.execute = slow  # type: ignore[method-assign]
        master.clock = clock
        await eventually(lambda: bool(begun))
        (other,) = {"h1", "h2"} - {begun[0]}
        async with agent(master, host=other, incarnation="two") as back:
            await back.next(Welcome)
            goes_on.set()
            await eventually(lambda: len(done) == 2)
            host = master.state.hosts[other]
            assert (host.state, host.incarnation) == ("up", "two")


async def test_a_supervisors_word_moves_the_work_at_once(tmp_path: Path) -> None:
    """No lease to wait for when everything of the dead agent is known to be dead."""
    async with running_master(tmp_path, lease_s=30) as master:
        async with agent(master, host="h1") as one:
            job = await submit(master)
            await one.next(Assign)
        await master.sessions.gone("h1", "one", "agent died; all its processes were killed")
        async with agent(master, host="h2") as two:
            order = await two.next(Assign)
            assert [(task.job, task.task, task.attempt) for task in order.tasks] == [(job, 0, 2)]
        await master.sessions.gone("h1", "one", "said again")
        assert "said again" not in master.state.hosts["h1"].reason


async def test_a_cancelled_task_is_killed_on_its_host_once(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master, agent(master) as one:
        job = await submit(master)
        await one.next(Assign)
        await master.execute(CancelJobs("c", (job,), master.wall()))
        kill = await one.next(Kill)
        assert (kill.tasks, kill.outcome) == (((job, 0, 1),), "cancelled")
        await one.say(Reports((Report(job, 0, 1, "cancelled"),)))
        await one.next(ReportsCommitted)
        assert master.state.jobs[job].state() == "cancelled"
        assert not [frame for frame in one.frames if isinstance(frame, Kill)]


async def test_code_is_acknowledged_only_with_the_right_signature(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master, agent(master) as one:
        await one.next(Welcome)
        await master.execute(AddCode("r", "pkg", "folder", "ab" * 32, 10, "me", master.wall()))
        log = await one.next(CodeLog)
        digest = tree_digest({entry.name: entry for entry in log.entries})
        key = master.secrets.agent_token.encode()
        good = hmac.new(key, f"h1\x001\0{digest}".encode(), hashlib.sha256).hexdigest()
        await one.say(CodeAcknowledged(1, digest, "0" * 64))
        await one.say(Heartbeat(1, 0.0, Load(), 2))
        await one.next(HeartbeatAnswer)
        assert master.state.hosts["h1"].code_index == 0
        await one.say(CodeAcknowledged(1, digest, good))
        await eventually(lambda: master.state.hosts["h1"].code_index == 1)


def acknowledgement(master: Master, index: int, tree: str = "") -> CodeAcknowledged:
    tree = tree or master.state.tree_digest(index)
    return CodeAcknowledged(index, tree, sign(master.secrets.agent_token, "h1", index, tree))


async def add_code(master: Master, *names: str) -> None:
    for name in names:
        await master.execute(AddCode("", name, "folder", "ab" * 32, 10, "me", master.wall()))


async def test_what_was_acknowledged_and_not_heard_is_asked_for_again(tmp_path: Path) -> None:
    """The agent has it, the leader that it told did not live to commit that: its entries are sent once more."""
    async with running_master(tmp_path) as master:
        await add_code(master, "a", "b", "c")
        async with agent(master, code_index=3) as one:
            assert [entry.index for entry in (await one.next(CodeLog)).entries] == [1, 2, 3]
            for index in (1, 2, 3):
                await one.say(acknowledgement(master, index))
            await eventually(lambda: master.state.hosts["h1"].code_index == 3)
            assert sorted(master.state.hosts["h1"].acknowledgements) == [1, 2, 3]


async def test_a_host_with_another_tree_gets_the_whole_log(tmp_path: Path) -> None:
    """So that it sees where they part; once a connection."""
    async with running_master(tmp_path) as master:
        await add_code(master, "a", "b")
        async with agent(master) as one:
            await one.next(CodeLog)
            await one.say(acknowledgement(master, 1))
            await eventually(lambda: master.state.hosts["h1"].code_index == 1)
            for _ in range(2):
                await one.say(acknowledgement(master, 2, "f" * 64))
            assert [entry.index for entry in (await one.next(CodeLog)).entries] == [1, 2]
            await one.say(Heartbeat(1, 0.0, Load(), 2))
            await one.next(HeartbeatAnswer)
            assert not [frame for frame in one.frames if isinstance(frame, CodeLog)]
            assert master.state.hosts["h1"].code_index == 1


async def test_a_problem_makes_the_host_lag_until_it_is_tried_again(tmp_path: Path) -> None:
    """What failed is sent again, to be tried at once, when somebody asks for it."""
    async with running_master(tmp_path) as master, agent(master) as one:
        assert (await one.next(Welcome)).takes_problems
        await add_code(master, "a")
        assert not (await one.next(CodeLog)).again
        await one.say(CodeProblem(1, "no space left", 3, "last words"))
        host = master.state.hosts["h1"]
        await eventually(lambda: host.lag is not None)
        assert host.lag is not None
        assert (host.lag.reason, host.runs[1].exit_code, host.runs[1].output) == ("no space left", 3, "last words")

        assert master.sessions.retry_code({"h2"}) == []
        assert master.sessions.retry_code(set()) == ["h1"]
        again = await one.next(CodeLog)
        assert (again.again, [entry.index for entry in again.entries]) == (True, [1])
        await one.say(acknowledgement(master, 1))
        await eventually(lambda: host.lag is None)


async def test_a_host_that_says_nothing_lags_and_is_kicked_out(tmp_path: Path) -> None:
    """By the leader's own clock, while it is connected and beats."""
    async with running_master(tmp_path, code_lag_s=0.2, code_kick_s=0.6) as master, agent(master) as one:
        await one.next(Welcome)
        await add_code(master, "a")
        host = master.state.hosts["h1"]
        await eventually(lambda: host.lag is not None)
        assert host.lag is not None
        assert host.lag.reason == "has not acknowledged entry 1"
        await eventually(lambda: host.lag is not None and host.lag.kicked)
        await submit(master)
        await one.say(Heartbeat(1, 0.0, Load(), 2))
        await one.next(HeartbeatAnswer)
        assert not [frame for frame in one.frames if isinstance(frame, Assign)]

        await one.say(acknowledgement(master, 1))
        await one.next(Assign)


async def test_losing_leadership_sends_the_agents_away(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master, agent(master) as one:
        await one.next(Welcome)
        reign: Reign = master._reign
        master._leadership(False, master.term)
        assert await one.closed()
        assert not reign.sessions.by_host
        master._leadership(True, master.term)


async def test_an_incarnation_keeps_the_lease_that_it_was_given(tmp_path: Path) -> None:
    """A master that leads later with another cluster file neither shortens it nor calls its host lost sooner."""
    async with running_master(tmp_path, lease_s=5.0) as master, agent(master) as one:
        assert (await one.next(Welcome)).lease_s == 5.0
    async with running_master(tmp_path, lease_s=0.5) as master, agent(master) as one:
        welcome = await one.next(Welcome)
        assert (welcome.lease_s, welcome.heartbeat_s) == (5.0, 0.05)
        async with agent(master, host="h2", incarnation="new") as other:
            assert (await other.next(Welcome)).lease_s == 0.5
            await eventually(lambda: master.state.hosts["h2"].state == "lost")
            assert master.state.hosts["h1"].state in ("up", "suspect")
        await eventually(lambda: master.state.hosts["h1"].state == "lost")
