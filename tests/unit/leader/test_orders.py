"""Orders: what an agent is told to run, and what becomes of it when the argument is not there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from depalma import items, protocol
from depalma.agent.worker import read_item
from depalma.blobs import Blobs, BlobStore
from depalma.codetree import CodeEntry
from depalma.leader.orders import KNOWN_JOBS, Orders, frames_of
from depalma.leader.session import QUEUED_BYTES, AgentSession
from depalma.model import HostFacts, JobSpec, Payload
from depalma.policies.near import LEAST_BYTES
from depalma.protocol import Assign
from depalma.state import commands as c
from depalma.state.cluster_state import ClusterState
from depalma.state.machine import Machine

FACTS = HostFacts(4, 4, 8 << 30, 0, "0.1.0", "3.11", "10.0.0.11")
LOST = "ab" * 32


@dataclass
class Reign:
    """What orders need of a reign."""

    machine: Machine
    blobs: Blobs
    term: int = 1

    @property
    def state(self) -> ClusterState:
        return self.machine.state


def assigned(reign: Reign, spec: JobSpec) -> tuple[int, int, int]:
    for command in (
        c.AddHost("", "h1", (), {}, 0, 4, 0, 1.0),
        c.HostUp("h1", "i1", FACTS, 1.0),
        c.SubmitJob("", spec, 1.0),
        c.AssignTasks(1, "h1", "i1", ((1, 0, 1),), 1.0),
    ):
        outcome = reign.machine.apply(c.encode(command), 1)
        assert isinstance(outcome, c.Applied), outcome
    return (1, 0, 1)


async def test_a_long_connection_does_not_remember_every_job(tmp_path: Path) -> None:
    """What is no longer remembered is told again."""
    reign = Reign(Machine(), Blobs(BlobStore(tmp_path / "blobs"), {}, "token"))
    session = AgentSession("h1", "i1", FACTS, web.WebSocketResponse())
    ref = assigned(reign, JobSpec(kind="command", argv=("/bin/true",)))
    orders = Orders(reign)  # type: ignore[arg-type]

    await orders.assign(session, [ref])
    session.known_jobs.update(range(10, KNOWN_JOBS + 10))
    await orders.assign(session, [ref])
    await orders.assign(session, [ref])

    frames = [protocol.decode_to_agent(data) for data in session._outbox]
    assert [len(frame.jobs) for frame in frames if isinstance(frame, Assign)] == [1, 0, 1]
    assert session.known_jobs == {1}


async def test_a_lost_blob_is_the_task_s_trouble_and_not_the_leader_s(tmp_path: Path) -> None:
    """Its agent looks for it and reports the attempt as failed; an error here would end one leader after the other."""
    store = BlobStore(tmp_path / "blobs")
    reign = Reign(Machine(), Blobs(store, {}, "token"))
    session = AgentSession("h1", "i1", FACTS, web.WebSocketResponse())
    argument = Payload(digest=LOST, size_bytes=100_000)
    ref = assigned(reign, JobSpec(kind="command", argv=("/bin/true",), arguments=argument, count=1))

    await Orders(reign).assign(session, [ref])  # type: ignore[arg-type]

    (frame,) = [protocol.decode_to_agent(data) for data in session._outbox]
    assert isinstance(frame, Assign)
    assert [(task.argument, task.argument_blob) for task in frame.tasks] == [(None, LOST)]


async def test_large_files_of_a_job_are_noted_for_its_host(tmp_path: Path) -> None:
    """What is small, or nowhere yet, is not worth knowing."""
    reign = Reign(Machine(), Blobs(BlobStore(tmp_path / "blobs"), {}, "token"))
    session = AgentSession("h1", "i1", FACTS, web.WebSocketResponse())
    large, small = Payload(digest=LOST, size_bytes=LEAST_BYTES), Payload(digest="cd" * 32, size_bytes=9)
    spec = JobSpec(kind="function", inputs=large, function_pickle=small, arguments=None)
    orders = Orders(reign)  # type: ignore[arg-type]
    await orders.assign(session, [assigned(reign, spec)])
    assert (list(orders.holdings.of("h1")), list(orders.holdings.of("h2"))) == ([LOST], [])


async def test_damaged_arguments_are_the_task_s_trouble_too(tmp_path: Path) -> None:
    """A client may have made them so, whose blob was taken before anybody looked: no leader may end of it."""
    store = BlobStore(tmp_path / "blobs")
    blobs = Blobs(store, {}, "token")
    reign = Reign(Machine(), blobs)
    good = items.pack([b"ab" * 5000, b"cd"])
    digest = await blobs.put_bytes(good[:16] + bytes(7) + b"\x80" + good[24:])
    session = AgentSession("h1", "i1", FACTS, web.WebSocketResponse())
    spec = JobSpec(kind="command", argv=("/bin/true",), arguments=Payload(digest=digest, size_bytes=len(good)), count=2)
    ref = assigned(reign, spec)

    await Orders(reign).assign(session, [ref])  # type: ignore[arg-type]

    (frame,) = [protocol.decode_to_agent(data) for data in session._outbox]
    assert isinstance(frame, Assign)
    assert [(task.argument, task.argument_blob, task.argument_item) for task in frame.tasks] == [(None, digest, 0)]
    with pytest.raises(RuntimeError, match="argument 0 is damaged in its blob"):
        read_item(str(store.path(digest)), 0)
    await blobs.close()


async def test_frames_are_no_larger_than_agents_take(tmp_path: Path) -> None:
    """Small tasks of jobs with large environments, all for one host, which was cut off again and again; and a code log
    with large commands for a host that begins anew."""
    reign = Reign(Machine(), Blobs(BlobStore(tmp_path / "blobs"), {}, "token"))
    session = AgentSession("h1", "i1", FACTS, web.WebSocketResponse())
    spec = JobSpec(kind="command", argv=("true", "x" * 130_000), env={"A": "x" * 130_000}, cpus=1 / 64)
    assigned(reign, spec)
    for job in range(2, 101):
        for command in (c.SubmitJob("", spec, 1.0), c.AssignTasks(1, "h1", "i1", ((job, 0, 1),), 1.0)):
            assert isinstance(reign.machine.apply(c.encode(command), 1), c.Applied)
    sending = asyncio.create_task(Orders(reign).assign(session, [(job, 0, 1) for job in range(1, 101)]))  # type: ignore[arg-type]
    told: list[int] = []
    while not sending.done():
        await asyncio.sleep(0)
        assert session._outbox_bytes <= QUEUED_BYTES + 2 * 1024 * 1024
        for data in session._outbox:  # the writer's work
            assert len(data) < protocol.MAX_FRAME_BYTES / 4
            frame = protocol.decode_to_agent(data)
            assert isinstance(frame, Assign)
            told += [task.job for task in frame.tasks]
        session._outbox, session._outbox_bytes = [], 0
        session._taken.set()
    for data in session._outbox:
        frame = protocol.decode_to_agent(data)
        assert isinstance(frame, Assign)
        told += [task.job for task in frame.tasks]
    assert told == list(range(1, 101))

    entry = CodeEntry(
        index=1, name="x", kind="command", digest="", size_bytes=0, added_at=1.0, added_by="", argv=("x" * 65_000,)
    )
    frames = list(frames_of([entry] * 300))
    assert sum(map(len, frames)) == 300
    assert max(sum(len(each.argv[0]) for each in frame) for frame in frames) < protocol.MAX_FRAME_BYTES / 4
    assert list(frames_of([])) == []


async def test_nobody_waits_for_a_connection_that_is_gone() -> None:
    session = AgentSession("h1", "i1", FACTS, web.WebSocketResponse())
    session._outbox_bytes = QUEUED_BYTES + 1
    waiting = asyncio.create_task(session.has_written())
    await asyncio.sleep(0)
    assert not waiting.done()
    session.abandon()
    async with asyncio.timeout(30):
        await waiting
