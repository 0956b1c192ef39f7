"""Masters fetch what the state names and collect what nothing names, never too early."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from depalma import blobkeeping
from depalma.blobkeeping import BlobKeeper
from depalma.blobs import Blobs, BlobStore
from depalma.state import commands as c
from depalma.state import restoring
from depalma.state.jobs import Job
from depalma.state.machine import Machine

GRACE_S = 600.0


class Clock:
    """Stands in for `time` where graces are counted."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now


class Keeping:
    """One master without peers: its state, its blobs, and its keeper."""

    def __init__(self, folder: Path) -> None:
        self.machine = Machine()
        self.blobs = Blobs(BlobStore(folder), {}, "m" * 64)
        self.newest: int | None = 0
        self.keeper = BlobKeeper(self.blobs, lambda: self.machine.state, self._newest, GRACE_S)

    async def _newest(self) -> int | None:
        return self.newest

    async def round(self) -> tuple[int, int]:
        """As a master does that has applied something since the last round."""
        self.keeper.named.changed(self.machine.drain_changes().jobs)
        return await self.keeper.round()

    async def put(self, data: bytes) -> str:
        return await self.blobs.put_bytes(data)

    def do(self, command: c.AnyCommand) -> object:
        outcome = self.machine.apply(c.encode(command), self.machine.state.version + 1)
        assert isinstance(outcome, c.Applied), outcome
        return outcome.value

    def add_code(self, digest: str, needs: str = "") -> None:
        self.do(c.AppendCode("", "pkg", "folder", digest, 1, "ann", 1.0, needs))


def function(digest: str) -> c.JobSpec:
    """A job of one task that names a blob."""
    return c.JobSpec(kind="function", function_pickle=c.Payload(digest=digest, size_bytes=8))


@pytest.fixture
async def keeping(tmp_path: Path) -> AsyncIterator[Keeping]:
    made = Keeping(tmp_path / "blobs")
    yield made
    await made.blobs.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(blobkeeping, "time", made)
    monkeypatch.setattr("depalma.blobs.time", made)
    return made


async def test_what_nothing_names_goes_after_its_grace(keeping: Keeping, clock: Clock) -> None:
    """What the state names stays: archives of earlier entries and requirements too."""
    kept = [await keeping.put(data) for data in (b"one", b"two", b"needs")]
    keeping.add_code(kept[0])
    keeping.add_code(kept[1], kept[2])
    lost = await keeping.put(b"nobody's")

    assert await keeping.round() == (0, 0)
    clock.now += GRACE_S - 1
    assert await keeping.round() == (0, 0)
    clock.now += 2
    assert await keeping.round() == (0, 1)
    assert [keeping.blobs.has(digest) for digest in (*kept, lost)] == [True, True, True, False]


async def test_the_grace_begins_when_this_process_first_saw_it_unnamed(keeping: Keeping, clock: Clock) -> None:
    """Files that were here before, however old they look."""
    digest = await keeping.put(b"old")
    keeping.blobs.used_s.clear()
    clock.now += 100 * GRACE_S
    assert await keeping.round() == (0, 0)
    clock.now += GRACE_S + 1
    assert await keeping.round() == (0, 1)
    assert not keeping.blobs.has(digest)


@pytest.mark.parametrize("how", ["ensure", "put again", "asked by a peer"])
async def test_whoever_counts_on_it_renews_the_grace(keeping: Keeping, clock: Clock, how: str) -> None:
    """It is about to be named."""
    digest = await keeping.put(b"soon")
    await keeping.round()
    clock.now += GRACE_S - 1
    match how:
        case "ensure":
            await keeping.blobs.ensure_majority(digest)
        case "put again":
            await keeping.put(b"soon")
        case _:
            assert keeping.blobs.use(digest)
    clock.now += GRACE_S - 1
    assert await keeping.round() == (0, 0)
    clock.now += GRACE_S
    assert await keeping.round() == (0, 1)


@pytest.mark.parametrize("newest", [None, 5])
async def test_a_master_that_is_behind_collects_nothing(keeping: Keeping, clock: Clock, newest: int | None) -> None:
    """What it does not know yet may name it."""
    await keeping.put(b"named by what comes")
    await keeping.round()
    keeping.newest = newest
    clock.now += 2 * GRACE_S
    assert await keeping.round() == (0, 0)


async def test_nothing_goes_while_somebody_saves_everything(keeping: Keeping, clock: Clock) -> None:
    """The blobs of a snapshot are fetched after it."""
    await keeping.put(b"of a job that was just forgotten")
    await keeping.round()
    keeping.blobs.hold(3 * GRACE_S)
    clock.now += 2 * GRACE_S
    assert await keeping.round() == (0, 0)
    clock.now += 2 * GRACE_S
    assert await keeping.round() == (0, 1)


async def test_a_job_that_was_forgotten_names_nothing(keeping: Keeping, clock: Clock) -> None:
    """Its arguments go with it."""
    digest = await keeping.put(b"function")
    keeping.do(c.SubmitJob("", function(digest), 1.0))
    keeping.do(c.CancelJobs("", (1,), 2.0))
    for _ in range(2):
        assert await keeping.round() == (0, 0)
        clock.now += 2 * GRACE_S
    keeping.do(c.ForgetJobs((1,), 3.0))
    assert await keeping.round() == (0, 0)
    clock.now += 2 * GRACE_S
    assert await keeping.round() == (0, 1)


async def test_a_look_costs_what_changed_and_gives_the_loop_its_turn(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what is there: a walk over all that is finished was half a second on busy cores, and an election."""
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(3)]
    seen: list[int] = []

    def blobs_of_job(job: Job) -> Iterator[str]:
        seen.append(job.id)
        return restoring.blobs_of_job(job)

    monkeypatch.setattr(blobkeeping, "blobs_of_job", blobs_of_job)
    named = keeping.keeper.named

    async def look() -> tuple[set[str], list[int]]:
        seen.clear()
        named.changed(keeping.machine.drain_changes().jobs)
        return await named.look(), list(seen)

    for digest in digests:
        keeping.do(c.SubmitJob("", function(digest), 1.0))
    assert await look() == (set(digests), [1, 2, 3])
    assert await look() == (set(digests), [])
    keeping.do(c.CancelJobs("", (2,), 2.0))
    assert await look() == (set(digests), [2])
    keeping.do(c.ForgetJobs((2,), 3.0))
    assert await look() == ({digests[0], digests[2]}, [])
    restored = Machine()
    restored.restore(keeping.machine.snapshot())
    keeping.machine = restored
    assert await look() == ({digests[0], digests[2]}, [1, 3])

    results = 10 * blobkeeping._AT_ONCE
    keeping.do(c.SubmitJob("", c.JobSpec(kind="command", argv=("true",), count=results), 4.0))
    keeping.machine.state.jobs[4].done._results += [None] * results  # what tasks without a result leave
    named.changed({4})
    looking, turns = asyncio.ensure_future(named.look()), 0
    while not looking.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 10


async def test_what_notes_have_missed_stays_all_the_same(
    keeping: Keeping, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """What is removed is gone for good, so everything is looked at before."""
    digest = await keeping.put(b"function")
    keeping.do(c.SubmitJob("", function(digest), 1.0))
    keeping.machine.drain_changes()  # nobody is told
    await keeping.round()
    clock.now += 2 * GRACE_S
    assert await keeping.round() == (0, 0)
    assert keeping.blobs.has(digest)
    assert f"blob {digest} is named, and was taken for unnamed" in caplog.text


async def test_a_blob_that_goes_is_forgotten_in_memory(keeping: Keeping, clock: Clock) -> None:
    """Or it would be served, and counted, although it is on no disk."""
    digest = await keeping.put(b"read and gone")
    assert await keeping.blobs.read(digest) == b"read and gone"
    await keeping.round()
    clock.now += 2 * GRACE_S
    await keeping.round()

    with pytest.raises(Exception, match="no reachable master has blob"):
        await keeping.blobs.read(digest)
    with pytest.raises(Exception, match="no reachable master has blob"):
        await keeping.blobs.ensure_majority(digest)


async def test_a_missing_blob_is_said_once(keeping: Keeping, caplog: pytest.LogCaptureFixture) -> None:
    """And looked for again in each round."""
    keeping.add_code(hashlib.sha256(b"gone").hexdigest())
    for _ in range(3):
        assert await keeping.round() == (0, 0)
    assert [record.message for record in caplog.records if "cannot be had" in record.message] != []
    assert sum("cannot be had" in record.message for record in caplog.records) == 1


async def test_time_without_a_leader_does_not_count(keeping: Keeping, clock: Clock) -> None:
    """An agent uploads a result, and its report waits until somebody leads again."""
    digest = await keeping.put(b"a result")
    await keeping.round()
    clock.now += GRACE_S - 1
    keeping.newest = None
    await keeping.round()
    keeping.newest = 0
    clock.now += 2
    assert await keeping.round() == (0, 0)
    clock.now += GRACE_S - 1
    assert await keeping.round() == (0, 0)
    clock.now += 2
    assert await keeping.round() == (0, 1)
    assert not keeping.blobs.has(digest)
