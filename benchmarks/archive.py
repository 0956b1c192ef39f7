"""What the archive of finished jobs costs, and how fast it answers: no network, one file, 1,000,000 jobs.

    python benchmarks/archive.py [--jobs 1000000] [--dir DIR]

Prints one JSON line a measure. The file is made from made-up jobs of one task each; a search goes page by page, as the
API does it, and `slowest_ms` is its slowest page, by which nobody else waits longer.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import time
from pathlib import Path

from depalma.jobarchive import record as records
from depalma.jobarchive.database import Database
from depalma.jobarchive.record import Record
from depalma.jobarchive.search import Wanted
from depalma.model import JobSpec
from depalma.state.completions import Completions
from depalma.state.jobs import Job
from depalma.state.task_states import FAILED, LOST, SUCCEEDED

BEGIN = 1_700_000_000.0
GAP_S = 10.0
PAGE = 101


def say(measure: str, **figures: object) -> None:
    """Prints one result."""
    print(json.dumps({"measure": measure, **figures}), flush=True)


def finished(job_id: int, chance: random.Random, tasks: int = 1) -> Job:
    """Returns a job that has ended, of one of 60 users, with a tag of 200."""
    user = f"user{min(int(chance.expovariate(0.2)), 59)}"
    name = f"train-{job_id % 50_000}" if chance.random() < 0.5 else "build"
    tags = (f"exp{chance.randrange(200)}", chance.choice(["nightly", "adhoc"]))
    argv = ("python", "train.py", "--seed", str(job_id))
    submitted = BEGIN + GAP_S * job_id
    spec = JobSpec(kind="command", argv=argv, name=name, user=user, tags=tags, count=tasks)
    job = Job(job_id, spec, 3, submitted)
    job.done = Completions(0)
    at = submitted + 1
    for index in range(tasks):
        code = chance.choices([SUCCEEDED, FAILED, LOST], [9_200, 799, 1])[0]
        note = (1, f"h{chance.randrange(20)}", 0, None, "", 3, "d" * 64, "2 of 4 slots were free", "", None)
        job.done.add(index, note, at, at + chance.expovariate(1 / 60), None)
        job.states[index] = code
        job.tally[code] += 1
        at += chance.expovariate(10)
    job.started_at = submitted + 1
    job.end(at + 120)
    return job


def archived(job: Job) -> Record:
    """Returns the record of a job."""
    taking = records.take(job)
    while True:
        try:
            next(taking)
        except StopIteration as done:
            return records.pack(done.value)


def fill(path: Path, jobs: int) -> None:
    """Writes the jobs, in parts as a master does."""
    chance = random.Random(1)
    database = Database(path)
    taking_s = writing_s = 0.0
    for first in range(1, jobs + 1, 200):
        some = [finished(job, chance) for job in range(first, min(first + 200, jobs + 1))]
        begin = time.perf_counter()
        packed = [archived(job) for job in some]
        middle = time.perf_counter()
        database.write(packed)
        taking_s += middle - begin
        writing_s += time.perf_counter() - middle
    say("write", jobs=jobs, pack_us=round(taking_s / jobs * 1e6, 1), write_us=round(writing_s / jobs * 1e6, 1),
        bytes_a_job=round(database.used_bytes() / jobs))  # fmt: skip
    database.close()


def search(database: Database, name: str, wanted: Wanted, at_most: int = 100) -> None:
    """Searches until there are as many as a list shows, or no more."""
    before, found, times = 2**53, 0, []
    while before and found <= at_most:
        begin = time.perf_counter()
        page = database.search(wanted, before, PAGE)
        views = [records.view(each) for each in page.records]
        times.append(time.perf_counter() - begin)
        found, before = found + len(views), page.looked_to
    say(name, found=min(found, at_most), pages=len(times), slowest_ms=round(max(times) * 1e3, 1),
        all_ms=round(sum(times) * 1e3, 1))  # fmt: skip


def searches(path: Path, jobs: int) -> None:
    """Searches as users do, and some that no index helps."""
    database = Database(path, read_only=True)
    end = BEGIN + GAP_S * jobs
    for name, wanted in {
        "newest": Wanted(),
        "user_many": Wanted(user="user0"),
        "user_few": Wanted(user="user40"),
        "state_rare": Wanted(states=frozenset({"lost"})),
        "state_and_user": Wanted(states=frozenset({"failed"}), user="user20"),
        "tag": Wanted(tag="exp7"),
        "tag_and_user": Wanted(tag="nightly", user="user30"),
        "name_pattern": Wanted(name="train-77*"),
        "name_pattern_anywhere": Wanted(name="*-7712"),
        "name_nowhere": Wanted(name="*nothing*"),
        "last_day": Wanted(ended_since=end - 86_400),
        "a_year_ago": Wanted(submitted_before=BEGIN + 1_000),
        "all_of_it": Wanted(user="user15", tag="adhoc", states=frozenset({"failed"}), name="train-*", ended_since=1.0),
    }.items():
        search(database, name, wanted)
    chance = random.Random(2)
    begin = time.perf_counter()
    for _ in range(100):
        detail = database.detail(chance.randrange(1, jobs + 1))
        assert detail is not None
        records.unpack(detail)
    say("show", mean_ms=round((time.perf_counter() - begin) * 10, 3))
    begin = time.perf_counter()
    rows, before = 0, 2**53
    while before and rows < 50_000:
        page = database.search(Wanted(), before, 1_000)
        rows, before = rows + len([records.use(each) for each in page.records]), page.looked_to
    say("accounting", rows_per_s=round(rows / (time.perf_counter() - begin)))
    begin = time.perf_counter()
    assert database.gaps(1, jobs) == []
    say("gaps", ms=round((time.perf_counter() - begin) * 1e3))
    database.close()


def large() -> None:
    """A map of many tasks."""
    job = finished(1, random.Random(3), tasks=100_000)
    slices, begin = [], time.perf_counter()
    taking = records.take(job)
    while True:
        step = time.perf_counter()
        try:
            next(taking)
        except StopIteration as done:
            raw = done.value
            break
        finally:
            slices.append(time.perf_counter() - step)
    middle = time.perf_counter()
    record = records.pack(raw)
    end = time.perf_counter()
    records.unpack(record.detail)
    say("map_of_100000", bytes_a_task=round((len(record.head) + len(record.detail)) / 100_000, 1),
        take_ms=round((middle - begin) * 1e3), longest_slice_ms=round(max(slices) * 1e3, 1),
        pack_ms=round((end - middle) * 1e3), unpack_ms=round((time.perf_counter() - end) * 1e3))  # fmt: skip


def main() -> None:
    """Makes a file, asks it, and removes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--dir", type=Path, help="where the file is made (the temporary folder)")
    arguments = parser.parse_args()
    say("machine", python=platform.python_version(), machine=platform.machine())
    large()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        path = Path(folder) / "jobs.sqlite"
        fill(path, arguments.jobs)
        searches(path, arguments.jobs)


if __name__ == "__main__":
    main()
