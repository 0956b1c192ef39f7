"""What the runner does when the disk, the socket to a worker or the order of messages is not as usual."""

from __future__ import annotations

import asyncio
import marshal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from depalma.agent.core import AgentCore
from depalma.agent.events import Connected, Ended, Launch, SendTasks, StartWorker, WorkerReady
from depalma.agent.runner import Runner
from depalma.model import AttemptRef, JobSpec, Report
from depalma.protocol import Assign, Assignment, JobTemplate, Welcome

COMMAND = JobSpec(kind="command", argv=("true",))
FUNCTION = JobSpec(kind="function", function="m:f")
_ROUNDS = 1000


class Agent:
    """A core and a runner, and no monitor: whatever that is told is noted."""

    def __init__(self, root: Path) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.core = AgentCore(slots=2, python="3.11", incarnation="i1")
        self.now = 100.0
        self.events: list[Any] = []
        self.reports: list[Report] = []
        self.rounds = 0
        self.runner = Runner(root, "h", self, self.events.append, 1000, 1000)  # type: ignore[arg-type]
        self.welcome()

    def welcome(self) -> None:
        self(Connected(self.now))
        self(Welcome(1, "m1", 10.0, 1.0, ("http://m1",)))

    def send(self, message: tuple[Any, ...], fd: int = -1) -> None:
        self.told.append(message)

    def flush(self) -> None:
        pass

    def __call__(self, event: Any) -> None:
        """As the driver does it."""
        self.events.append(event)
        while self.events:
            self.rounds += 1
            assert self.rounds < _ROUNDS, "it goes round and round"
            event = self.events.pop(0)
            if isinstance(event, Ended):
                self.reports += event.reports
            for action in self.core.handle(event, self.now):
                if isinstance(action, Launch):
                    self.runner.launch(action.lane, action.slot, action.attempts)
                elif isinstance(action, StartWorker):
                    self.runner.start_worker(action.worker, action.code_index, "")
                elif isinstance(action, SendTasks):
                    self.runner.send_tasks(action.worker, action.attempts)

    def assign(self, spec: JobSpec, *refs: AttemptRef, **fields: Any) -> None:
        jobs = tuple(JobTemplate(job, spec, 0, "") for job in sorted({ref[0] for ref in refs}))
        self(Assign(1, 1, jobs, tuple(Assignment(*ref, 1, **fields) for ref in refs)))


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    made = Agent(tmp_path)
    made.runner.nurseries.fork = lambda handle: None  # type: ignore[method-assign]
    yield made
    made.runner.forget_all()
    await asyncio.sleep(0)


async def test_more_than_a_workers_socket_holds_waits_without_going_round(agent: Agent) -> None:
    """It kept the agent busy for as long as the task at the head ran: no heartbeat, no lease."""
    agent.assign(FUNCTION, (1, 0, 1))
    ((number, handle),) = agent.runner.workers.items()
    # What most kernels give at most (net.core.wmem_max), whatever is asked for.
    handle.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)
    agent(WorkerReady(number))
    agent(Ended((Report(1, 0, 1, "succeeded", started_at=0.0, finished_at=0.0001),)))
    agent.rounds = 0

    agent.assign(FUNCTION, *((1, index, 1) for index in range(1, 64)), argument=b"x" * 32_000)

    assert len(agent.core.lanes.lanes[number].queue) > 1
    assert agent.core.lanes.waiting


async def test_a_task_whose_argument_cannot_be_written_fails_and_the_agent_goes_on(
    agent: Agent, tmp_path: Path
) -> None:
    (tmp_path / "blobs/out").rmdir()
    (tmp_path / "blobs/out").write_text("in the way, as a full disk would be")

    agent.assign(FUNCTION, (1, 0, 1), argument=b"x" * 40_000)

    (report,) = agent.reports
    assert (report.outcome, report.task) == ("failed", 0)
    assert "argument" in report.error


async def test_what_is_no_answer_of_a_worker_ends_that_worker(agent: Agent) -> None:
    agent.assign(FUNCTION, (1, 0, 1))
    (handle,) = agent.runner.workers.values()
    for record in (b"hello", *map(marshal.dumps, (7, {1: 2}, ("learnt",), ([1], 2, 3, *[0] * 10)))):
        agent.told.clear()
        handle.far.send(record)
        agent.runner.drain(handle)
        assert agent.told == [("kill", handle.key, 0.0)]


async def test_an_answer_to_a_recall_that_comes_after_everything_was_forgotten_is_none(agent: Agent) -> None:
    agent.assign(COMMAND, (1, 0, 1))
    ((_, key, *_),) = [message for message in agent.told if message[0] == "spawn"]
    agent.runner.forget_all()

    agent.runner.recalled(1, [key])


async def test_what_a_worker_of_the_life_before_left_is_not_the_next_ones(agent: Agent, tmp_path: Path) -> None:
    """Lanes are numbered anew after a cut-off, and the folders of workers are named after them."""
    for name in ("scratch/w1", "spool", "trash"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "scratch/w1/secret").write_text("of a task before")
    (tmp_path / "spool/w1.out").write_text("of a task before")

    agent.assign(FUNCTION, (1, 0, 1))

    assert list(agent.runner.workers) == [1]
    assert not (tmp_path / "scratch/w1").exists()
    assert not (tmp_path / "spool/w1.out").exists()


async def test_a_worker_that_is_started_after_all_stands_still_and_ends_as_it_was_asked_to(agent: Agent) -> None:
    """The process it was to be forked from has died: nobody would ask a second time."""
    agent.assign(FUNCTION, (1, 0, 1))
    (handle,) = agent.runner.workers.values()
    agent.runner.restrain("suspend", handle.number, "job")
    agent.runner.stop_worker(handle.number, 0.0)
    agent.told.clear()

    agent.runner.nurseries._spawn_anew(handle)

    assert [message[:3] for message in agent.told[1:]] == [("suspend", handle.key, "job"), ("kill", handle.key, 0.0)]
