"""A real master (one replica, real disk and sockets) and agents that speak the protocol by hand.

What an agent process does is tested elsewhere; here it is the leader's side: admission, reconciliation, leases.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets as random_secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import aiohttp
import pytest

from depalma import protocol
from depalma.codetree import tree_digest
from depalma.config import ClusterConfig, HostConfig, MasterConfig, Settings, load_secrets
from depalma.leader.reign import Reign
from depalma.master import Master
from depalma.model import AttemptRef, HostFacts, JobSpec, Load, Report
from depalma.protocol import (
    Assign,
    CodeAcknowledged,
    CodeLog,
    Forget,
    FromAgent,
    Heartbeat,
    HeartbeatAnswer,
    Hello,
    Kill,
    Refused,
    Reports,
    ReportsCommitted,
    ToAgent,
    Welcome,
)
from depalma.state.commands import AddCode, CancelJobs, SubmitJob
from depalma.testing.certificates import throwaway_secrets

F = TypeVar("F")
FACTS = HostFacts(slots=2, cpus=2, memory_bytes=1, gpus=0, version="0.1.0", python="3.11", address="127.0.0.1")
COMMAND = JobSpec(kind="command", argv=("true",))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running_master(directory: Path, **settings: float) -> AsyncIterator[Master]:
    config = ClusterConfig(
        masters=(
            MasterConfig(id="m1", host="127.0.0.1", port=free_port(), raft_port=free_port(), dir=str(directory / "m1")),
        ),
        hosts=(HostConfig(name="h1"), HostConfig(name="h2")),
        settings=Settings(**settings),  # type: ignore[arg-type]
    )
    secrets = load_secrets(throwaway_secrets(directory / "secrets", ["m1"], cluster=config.cluster), "m1")
    master = Master(config, secrets, "m1")
    await master.start()
    try:
        await eventually(lambda: master.leading and "h2" in master.state.hosts)
        yield master
        assert not master.failed.done(), master.failed.result()
    finally:
        await master.stop()


async def eventually(ready: Callable[[], bool], timeout_s: float = 10) -> None:
    """Returns when `ready()`; fails with the deadline."""
    async with asyncio.timeout(timeout_s):
        while not ready():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.005)


@dataclass
class Agent:
    """One connection; frames are kept until a test takes them."""

    websocket: aiohttp.ClientWebSocketResponse
    frames: list[ToAgent]

    async def say(self, frame: FromAgent) -> None:
        await self.websocket.send_bytes(protocol.encode(frame))

    async def next(self, kind: type[F], timeout_s: float = 10) -> F:
        """Returns the next frame of a kind, passing over others but keeping them."""
        async with asyncio.timeout(timeout_s):
            while True:
                for position, frame in enumerate(self.frames):
                    if isinstance(frame, kind):
                        del self.frames[position]
                        return frame
                message = await self.websocket.receive()
                assert message.type is aiohttp.WSMsgType.BINARY, f"waiting for {kind.__name__}: {message}"
                self.frames.append(protocol.decode_to_agent(message.data))

    async def closed(self) -> bool:
        """Returns once the leader has closed the connection."""
        async with asyncio.timeout(10):
            while True:
                message = await self.websocket.receive()
                if message.type is not aiohttp.WSMsgType.BINARY:
                    return True
                self.frames.append(protocol.decode_to_agent(message.data))


@asynccontextmanager
async def agent(
    master: Master,
    *,
    host: str = "h1",
    incarnation: str = "one",
    running: tuple[AttemptRef, ...] = (),
    unreported: tuple[AttemptRef, ...] = (),
    version: int = protocol.PROTOCOL_VERSION,
) -> AsyncIterator[Agent]:
    headers = {"Authorization": f"Bearer {master.secrets.agent_token}", protocol.HOST_HEADER: host}
    url = master.config.masters[0].url + "/v1/agent"
    async with aiohttp.ClientSession() as http, http.ws_connect(url, headers=headers) as websocket:
        one = Agent(websocket, [])
        await one.say(Hello(version, host, incarnation, FACTS, 0, running, unreported))
        yield one


async def submit(master: Master, spec: JobSpec = COMMAND) -> int:
    applied = await master.execute(SubmitJob(random_secrets.token_hex(8), spec, master.wall()))
    assert isinstance(applied.value, int)
    return applied.value


def succeeded(ref: AttemptRef) -> Report:
    return Report(*ref, "succeeded", exit_code=0, started_at=1.0, finished_at=1.5)


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


@pytest.mark.parametrize(("host", "version", "reason"), [("h9", 1, "not in the cluster"), ("h1", 99, "protocol 99")])
async def test_strangers_are_told_to_stop(tmp_path: Path, host: str, version: int, reason: str) -> None:
    async with running_master(tmp_path) as master, agent(master, host=host, version=version) as one:
        refused = await one.next(Refused)
        assert reason in refused.reason
        assert refused.stop


async def test_garbage_closes_the_connection_and_nothing_else(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master, agent(master) as one, agent(master, host="h2") as two:
        await one.next(Welcome)
        await two.next(Welcome)
        await one.websocket.send_bytes(b"\xc1 no frame at all")
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
    async with running_master(tmp_path, lease_s=0.6, heartbeat_s=0.1) as master:
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
        assert took_s > 0.6 * (1 + master.config.settings.lease_margin)
        assert master.state.hosts["h1"].state == "lost"


async def beating_until(one: Agent, kind: type[F]) -> F:
    """Returns the next frame of a kind while sending heartbeats, as a live agent does."""
    waiting = asyncio.create_task(one.next(kind))
    sequence = 0
    while not waiting.done():
        sequence += 1
        await one.say(Heartbeat(sequence, 0.0, Load(), 1))
        await asyncio.wait({waiting}, timeout=0.05)
    return waiting.result()


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
    async with running_master(tmp_path, lease_s=0.6, heartbeat_s=0.1) as master:
        async with agent(master, incarnation="one") as one:
            await one.next(Welcome)
        await eventually(lambda: master.state.hosts["h1"].state == "lost")
        async with agent(master, incarnation="one") as again:
            refused = await again.next(Refused)
            assert refused.restart_incarnation
        async with agent(master, incarnation="two") as two:
            await two.next(Welcome)
        assert master.state.hosts["h1"].state == "up"


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
    async with running_master(tmp_path, lease_s=2.0) as master, agent(master) as one:
        assert (await one.next(Welcome)).lease_s == 2.0
    async with running_master(tmp_path, lease_s=0.5) as master, agent(master) as one:
        welcome = await one.next(Welcome)
        assert (welcome.lease_s, welcome.heartbeat_s) == (2.0, 0.05)
        async with agent(master, host="h2", incarnation="new") as other:
            assert (await other.next(Welcome)).lease_s == 0.5
            await eventually(lambda: master.state.hosts["h2"].state == "lost")
            assert master.state.hosts["h1"].state in ("up", "suspect")
        await eventually(lambda: master.state.hosts["h1"].state == "lost")
