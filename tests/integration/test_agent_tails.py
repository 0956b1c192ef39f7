"""The end of output, handed over to masters that are there, dead or full."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from depalma import items
from depalma.agent import tailkeeper
from depalma.agent.blobs import Blobs
from depalma.agent.store import OutputFiles
from depalma.agent.tailkeeper import TailKeeper
from depalma.model import JobSpec
from depalma.tails import Tail, unpack
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until

DEAD = "http://127.0.0.1:9"


@pytest.fixture
async def leader() -> AsyncIterator[FakeLeader]:
    async with FakeLeader() as fake:
        yield fake


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def keeper(tmp_path: Path, http: aiohttp.ClientSession, *masters: str) -> TailKeeper:
    output = OutputFiles(tmp_path)
    (output.root / "1").mkdir()
    for task in range(3):
        output.final(1, task, 1, "stdout").write_bytes(b"%d" % task * 100_000)
    return TailKeeper(output, Blobs(tmp_path, http, lambda: list(masters), 10_000))


async def test_what_ends_together_goes_as_one_blob(
    leader: FakeLeader, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Past a master that is dead."""
    tails = keeper(tmp_path, http, DEAD, leader.url)

    kept = await asyncio.gather(*(tails.keep((1, task, 1)) for task in range(3)))

    ((digest, blob),) = leader.blobs.items()
    for task, tail in enumerate(kept):
        assert (tail.digest, tail.lost) == (digest, "")
        assert unpack(items.read(blob, tail.item)) == Tail(b"%d" % task * 65_536, 100_000, b"", 0)


async def test_nobody_waits_long_for_masters_that_do_not_take_it(
    http: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried for a while once, and then each only once until one succeeds."""
    monkeypatch.setattr(tailkeeper, "HAND_OVER_S", 0.3)
    tails = keeper(tmp_path, http, DEAD)
    loop = asyncio.get_running_loop()
    begin_s = loop.time()
    first = await tails.keep((1, 0, 1))
    assert loop.time() - begin_s > 0.1
    monkeypatch.setattr(tailkeeper, "HAND_OVER_S", 3600.0)

    second = await tails.keep((1, 1, 1))

    for tail in (first, second):
        assert tail.lost.startswith("no majority of masters took it: ")
        assert DEAD in tail.lost


async def test_an_agent_reports_where_the_end_of_output_is(leader: FakeLeader, tmp_path: Path) -> None:
    """Commands and functions, long and short; what wrote nothing has none."""
    agent = AgentProcess(tmp_path, [leader.url], slots=1)
    agent.start()
    try:
        await wait_until(lambda: leader.connected, "connection")
        long = JobSpec(kind="command", argv=("sh", "-c", "yes | head -c 100000; echo err >&2; exit 3"))
        report = await leader.run(long, job=1)
        assert (report.outcome, report.exit_code) == ("failed", 3)
        assert report.tail is not None
        tail = unpack(items.read(leader.blobs[report.tail.digest], report.tail.item))
        assert tail == Tail(b"y\n" * 32_768, 100_000, b"err\n", 4)

        report = await leader.run(JobSpec(kind="command", argv=("echo", "word")), job=2)
        assert report.tail is not None
        assert unpack(report.tail.inline) == Tail(b"word\n", 5, b"", 0)

        printing = JobSpec(kind="function", function="builtins:print")
        report = await leader.run(printing, job=3, argument=pickle.dumps((None, ("y" * 300,), {})))
        assert report.tail is not None
        tail = unpack(items.read(leader.blobs[report.tail.digest], report.tail.item))
        assert tail == Tail(b"y" * 300 + b"\n", 301, b"", 0)

        for job, spec in ((4, JobSpec(kind="command", argv=("true",))), (5, printing)):
            report = await leader.run(
                spec, job=job, argument=pickle.dumps((None, (), {"end": ""})) if job == 5 else None
            )
            assert (report.outcome, report.tail) == ("succeeded", None)
    finally:
        await agent.stop()
