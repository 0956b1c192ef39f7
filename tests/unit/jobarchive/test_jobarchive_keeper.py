"""The archive of a master, and of several: nothing is lost between the state, the files and the others."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from depalma.jobarchive import files
from depalma.jobarchive.database import Database
from depalma.jobarchive.files import FILE
from depalma.jobarchive.keeper import ArchivePaused, JobArchive, Limits
from depalma.jobarchive.peers import KEEP_PATH, KeepAnswer, KeepRequest, RecordsRequest
from depalma.jobarchive.search import Wanted
from depalma.model import JobSpec
from depalma.state import commands as c
from depalma.state.jobs import Job
from depalma.state.machine import Machine

LIMITS = Limits(days=365.0, size_bytes=2**30)


class Masters:
    """Masters with equal states, each with its archive; they ask each other without a network."""

    def __init__(self, folder: Path, count: int = 3, limits: Limits = LIMITS) -> None:
        self.folder = folder
        self.limits = limits
        self.machines = {f"m{number}": Machine() for number in range(1, count + 1)}
        self.archives: dict[str, JobArchive] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.down: set[str] = set()
        self.freed: list[int] = []
        for name in self.machines:
            self.start(name)

    def start(self, name: str) -> JobArchive:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        machine = self.machines[name]

        def free(jobs: list[Job]) -> None:
            self.freed += [job.id for job in jobs]

        archive = JobArchive(name, folder, self.limits, lambda: machine.state, Others(self, name), free)
        archive._file._reserve_bytes = 0
        self.archives[name] = archive
        return archive

    def run(self, name: str) -> None:
        self.tasks[name] = asyncio.create_task(self.archives[name].run())

    async def stop(self, name: str) -> None:
        archive = self.archives.pop(name)
        try:
            if task := self.tasks.pop(name, None):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task  # raises what it had died of
        finally:
            await archive.close()

    def apply(self, command: c.AnyCommand) -> None:
        for name, machine in self.machines.items():
            outcome = machine.apply(c.encode(command), machine.state.version + 1)
            assert isinstance(outcome, c.Applied), outcome
            forgotten = machine.drain_changes().forgotten
            if name in self.archives:
                self.archives[name].take(forgotten)

    def ended(self, jobs: int, *, at: float | None = None, **spec: object) -> list[int]:
        first = self.machines["m1"].state.next_job
        at = time.time() if at is None else at
        for job in range(first, first + jobs):
            self.apply(c.SubmitJob("", JobSpec(kind="command", argv=("true",), **spec), at))  # type: ignore[arg-type]
            self.apply(c.CancelJobs("", (job,), at + 1, "ann"))
        return list(range(first, first + jobs))


class Others:
    """The other masters, as one of them sees them."""

    def __init__(self, masters: Masters, own: str) -> None:
        self._masters = masters
        self._own = own

    def peers(self) -> Collection[str]:
        return [name for name in self._masters.machines if name != self._own]

    async def ask_peer(self, peer: str, path: str, body: bytes) -> bytes | None:
        archive = self._masters.archives.get(peer)
        if archive is None or peer in self._masters.down:
            return None
        try:
            if path == KEEP_PATH:
                kept = await archive.keep(msgspec.msgpack.decode(body, type=KeepRequest).jobs)
                return msgspec.msgpack.encode(KeepAnswer(tuple(kept)))
            found = await archive.records(msgspec.msgpack.decode(body, type=RecordsRequest).ranges)
            return msgspec.msgpack.encode(found)
        except ArchivePaused:
            return None


@asynccontextmanager
async def running(folder: Path, count: int = 3, limits: Limits = LIMITS) -> AsyncIterator[Masters]:
    masters = Masters(folder, count, limits)
    try:
        yield masters
    finally:
        for name in list(masters.archives):
            await masters.stop(name)


async def ids(archive: JobArchive) -> list[int]:
    found, looked_to = await archive.views(Wanted(), 2**53, 10_000)
    assert looked_to == 0
    return [view.id for view in found]


async def until(look: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.01)


async def test_a_majority_has_a_job_before_it_is_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path) as masters:
        jobs = masters.ended(3)
        leader = masters.archives["m1"]
        assert await leader.keep_on_majority(jobs) == set(jobs)
        assert [await ids(archive) for archive in masters.archives.values()] == [[3, 2, 1]] * 3
        masters.down = {"m3"}
        more = masters.ended(2)
        assert await leader.keep_on_majority(more) == set(more)
        masters.down = {"m2", "m3"}
        lone = masters.ended(1)
        assert await leader.keep_on_majority(lone) == set()


async def test_what_is_live_or_unknown_is_not_kept(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as masters:
        (job,) = masters.ended(1)
        masters.apply(c.SubmitJob("", JobSpec(kind="command", argv=("true",)), time.time()))
        assert await masters.archives["m1"].keep_on_majority([job, job + 1, 99]) == {job}


async def test_forgotten_jobs_are_written_once_and_then_freed(tmp_path: Path) -> None:
    """A restarted master applies the same again: what is there stays as it is."""
    async with running(tmp_path, 1) as masters:
        jobs = masters.ended(5)
        archive = masters.archives["m1"]
        await archive.keep(jobs[:3])
        writes = []
        plain = archive._file.write
        archive._file.write = lambda work: writes.append(work) or plain(work)  # type: ignore[method-assign, assignment, func-returns-value]
        masters.run("m1")
        masters.apply(c.ForgetJobs(tuple(jobs), time.time()))
        await until(lambda: len(masters.freed) == 5)
        assert await ids(archive) == jobs[::-1]
        assert len(writes) == 1, "the three that were there are not written again"


async def test_a_master_that_was_down_gets_what_it_missed_from_the_others(tmp_path: Path) -> None:
    async with running(tmp_path) as masters:
        masters.run("m1")
        masters.run("m2")
        jobs = masters.ended(2_000)
        live = masters.ended(1)
        await masters.archives["m1"].keep_on_majority(jobs[:10])
        await masters.stop("m3")
        await masters.archives["m1"].keep_on_majority(jobs)
        masters.apply(c.ForgetJobs(tuple(jobs), time.time()))
        archive = masters.start("m3")
        masters.run("m3")
        await until(lambda: archive.status().jobs == len(jobs))
        assert await ids(archive) == jobs[::-1]
        assert archive.lacks() == []
        assert live[0] in masters.machines["m3"].state.jobs


async def test_what_no_master_has_is_said(tmp_path: Path) -> None:
    async with running(tmp_path) as masters:
        jobs = masters.ended(10)
        for name in ("m1", "m2", "m3"):
            await masters.stop(name)
        masters.apply(c.ForgetJobs(tuple(jobs[2:5]), time.time()))  # by a release that had no archive
        for name in ("m1", "m2", "m3"):
            masters.start(name)
        for name in masters.machines:
            masters.run(name)
        archive = masters.archives["m1"]
        await until(lambda: archive.status().missing)
        assert archive.lacks() == ["3 finished jobs are not in the archive of m1 (ids 3-5)"]
        assert archive.why_not(4) == "it finished, and the archive of m1 does not have it"


async def test_a_damaged_file_is_set_aside_and_filled_again(tmp_path: Path) -> None:
    async with running(tmp_path) as masters:
        masters.run("m1")
        jobs = masters.ended(300)
        archive = masters.archives["m2"]
        await masters.archives["m1"].keep_on_majority(jobs)
        masters.apply(c.ForgetJobs(tuple(jobs), time.time()))
        await masters.stop("m2")
        path = tmp_path / "m2" / FILE
        data = bytearray(path.read_bytes())
        data[4096 : len(data) // 2] = b"\xaa" * (len(data) // 2 - 4096)
        path.write_bytes(data)
        archive = masters.start("m2")
        masters.run("m2")
        await until(lambda: path.with_name(FILE + ".damaged").exists() and archive.status().jobs == 300)
        assert await ids(archive) == jobs[::-1]
        assert await archive.job(7) is not None


async def test_a_record_that_cannot_be_read_is_taken_from_another_master(tmp_path: Path) -> None:
    async with running(tmp_path) as masters:
        jobs = masters.ended(3)
        await masters.archives["m1"].keep_on_majority(jobs)
        masters.apply(c.ForgetJobs(tuple(jobs), time.time()))
        archive = masters.archives["m1"]
        for name in masters.machines:
            masters.run(name)
        database = sqlite3.connect(tmp_path / "m1" / FILE)
        with database:
            database.execute("UPDATE records SET detail = x'00', head = x'00' WHERE id = 2")
        database.close()
        assert await archive.job(2) is None
        await until(lambda: not archive._gaps.due)
        assert await archive.job(2) is not None, "it came from another master"
        assert await ids(archive) == [3, 2, 1]


async def test_a_full_disk_pauses_it_and_nothing_else(tmp_path: Path) -> None:
    async with running(tmp_path) as masters:
        jobs = masters.ended(4)
        archive = masters.archives["m1"]
        await archive.keep(jobs[:1])
        archive._file._reserve_bytes = 2**62
        masters.run("m1")
        with pytest.raises(ArchivePaused, match="MiB are free on the disk"):
            await archive.keep(jobs)
        masters.apply(c.ForgetJobs(tuple(jobs), time.time()))
        await until(lambda: masters.freed.count(4) == 1)  # it does not pile up in memory
        assert await ids(archive) == [1], "reading goes on"
        assert any("is paused" in line for line in archive.lacks())
        for name in ("m2", "m3"):
            masters.run(name)
        await until(lambda: masters.freed.count(4) == 3)
        archive._file._reserve_bytes = 0
        archive._wake.set()
        await until(lambda: archive.status().jobs == 4)
        assert await ids(archive) == jobs[::-1]
        assert archive.lacks() == []


async def test_old_jobs_go_by_policy_and_it_is_said(tmp_path: Path) -> None:
    now = time.time()
    async with running(tmp_path, 1, Limits(days=10.0, size_bytes=2**30)) as masters:
        archive = masters.archives["m1"]
        old = masters.ended(3, at=now - 9.99 * 86_400)
        fresh = masters.ended(2)
        older = masters.ended(1, at=now - 11 * 86_400)
        assert await archive.keep_on_majority([*old, *fresh, *older]) == {*old, *fresh, *older}
        masters.apply(c.ForgetJobs((*old, *fresh, *older), now))
        assert await ids(archive) == [*fresh[::-1], *old[::-1]], "what policy would drop at once is not even written"
        masters.run("m1")
        await until(lambda: archive.status().dropped_before is not None)
        assert archive.status().missing == 0, "what was too old to be written is not missed"
        archive._wall = lambda: now + 86_400
        archive._wake.set()
        await until(lambda: archive.status().jobs == 2)
        (line, *_) = archive.lacks()
        assert line.startswith("jobs that finished before 20")
        assert line.endswith("are no longer kept (archive_days 10)")
        assert archive.lacks(since=now) == archive.lacks()[1:]
        assert "archive_days 10" in archive.why_not(old[0])


async def test_the_size_is_kept_to(tmp_path: Path) -> None:
    async with running(tmp_path, 1, Limits(days=365.0, size_bytes=256 * 1024)) as masters:
        archive = masters.archives["m1"]
        jobs = masters.ended(1_500, name="x" * 200)
        await archive.keep(jobs)
        masters.apply(c.ForgetJobs(tuple(jobs), time.time()))
        assert await archive._file.read(lambda database: database.used_bytes()) > 512 * 1024
        masters.run("m1")
        await until(lambda: 0 < archive.status().size_bytes <= 256 * 1024)
        left = await ids(archive)
        assert left == jobs[-len(left) :][::-1], "the newest stay"
        assert 50 < len(left) < 1_000
        assert any("archive_bytes 262144" in line for line in archive.lacks())


async def test_an_answer_that_is_not_understood_is_none(tmp_path: Path) -> None:
    async with running(tmp_path) as masters:
        jobs = masters.ended(2)

        async def strange(peer: str, path: str, body: bytes) -> bytes | None:
            return b"\xc1" if peer == "m2" else msgspec.msgpack.encode({"kept": "all"})

        archive = masters.archives["m1"]
        archive._peers.ask_peer = strange  # type: ignore[method-assign]
        assert await archive.keep_on_majority(jobs) == set()


async def test_a_master_without_an_archive_takes_and_frees(tmp_path: Path) -> None:
    async with running(tmp_path, 1, Limits(days=0.0, size_bytes=2**30)) as masters:
        jobs = masters.ended(2)
        archive = masters.archives["m1"]
        assert await archive.keep(jobs) == set(jobs)
        masters.apply(c.ForgetJobs(tuple(jobs), time.time()))
        assert masters.freed == jobs
        assert not archive._file.path.exists()


async def test_a_file_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "m1"
    folder.mkdir()
    database = sqlite3.connect(folder / FILE)
    database.execute("PRAGMA user_version = 9")
    database.close()
    before = (folder / FILE).read_bytes()
    async with running(tmp_path, 1) as masters:
        jobs = masters.ended(1)
        with pytest.raises(ArchivePaused, match="has format 9; this release writes format 1"):
            await masters.archives["m1"].keep(jobs)
    assert (folder / FILE).read_bytes() == before


async def test_taking_large_jobs_leaves_the_loop_its_turns(tmp_path: Path) -> None:
    """Counted, not timed: the archive gives others their turn again and again while it takes a job of many tasks."""
    async with running(tmp_path, 1) as masters:
        jobs = masters.ended(1, count=1) + masters.ended(1)
        job = masters.machines["m1"].state.jobs[jobs[0]]
        for position in range(60_000):
            job.stories[position] = msgspec.convert((1, 1, [(1, "h1", "failed", 1.0, 2.0, "no")]), type=_story())
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        await masters.archives["m1"].keep(jobs)
        task.cancel()
        assert turns >= 20


def _story() -> type:
    from depalma.state.stories import Story

    return Story


def test_a_file_that_was_being_made_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.touch()
    Database(path).close()
    database = Database(path)
    assert database.count() == 0
    database.close()


async def test_what_was_being_opened_for_somebody_who_is_gone_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    opened: list[Database] = []
    closed: list[Database] = []

    class Slow(Database):
        def __init__(self, path: Path, *, read_only: bool = False) -> None:
            begun.set()
            assert goes_on.wait(10)
            super().__init__(path, read_only=read_only)
            opened.append(self)

        def close(self) -> None:
            closed.append(self)
            super().close()

    monkeypatch.setattr(files, "Database", Slow)
    file = files.ArchiveFile(tmp_path, on_new=lambda: None)
    using = asyncio.create_task(file.read(lambda database: None))
    await asyncio.to_thread(begun.wait, 10)
    using.cancel()
    await asyncio.gather(using, return_exceptions=True)
    goes_on.set()
    await file.close()

    assert opened
    assert closed == opened
