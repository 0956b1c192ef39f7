"""Jobs that the state has forgotten, as the HTTP interface shows them."""

from __future__ import annotations

import time
from typing import Any

import aiohttp
import pytest

from depalma.blobs import master_token
from depalma.config import Settings
from depalma.jobarchive.peers import KEEP_PATH, RECORDS_PATH
from depalma.state.commands import ForgetJobs
from tests.unit.api.conftest import SECRETS, Bench


async def forgotten(bench: Bench, *, tasks: int = 1, outcome: str = "succeeded", **spec: Any) -> int:
    """A job that has run, was archived, and was forgotten."""
    job = ended(bench, tasks=tasks, outcome=outcome, **spec)
    await forget(bench, job)
    return job


def ended(bench: Bench, *, tasks: int = 1, outcome: str = "succeeded", **spec: Any) -> int:
    if "h1" not in bench.master.state.hosts:
        bench.host_up()
    job = bench.submit(count=tasks, **spec)
    now = time.time()
    for index in range(tasks):
        bench.assign(job, index)
        bench.start(job, index)
        bench.finish(job, index, outcome=outcome, exit_code=0, started_at=now - 5, finished_at=now)
    return job


async def forget(bench: Bench, *jobs: int) -> None:
    assert await bench.master.archive.keep_on_majority(jobs) == set(jobs)
    bench.master.apply(ForgetJobs(jobs, time.time()))
    assert not any(job in bench.master.state.jobs for job in jobs)
    await bench.master.archive._settled.wait()


async def test_a_forgotten_job_and_its_tasks_are_shown_as_they_were(bench: Bench) -> None:
    job = ended(bench, tasks=3, name="words", tags=("exp",), user="ann")
    before = await bench.get(f"/v1/jobs/{job}")
    tasks = await bench.get(f"/v1/jobs/{job}/tasks")
    await forget(bench, job)
    assert await bench.get(f"/v1/jobs/{job}") == {**before, "archived": True}
    after = await bench.get(f"/v1/jobs/{job}/tasks")
    assert [task["host"] for task in after["tasks"]] == ["h1"] * 3
    for old, new in zip(tasks["tasks"], after["tasks"], strict=True):
        for field in ("started_at", "finished_at"):
            assert new.pop(field) == pytest.approx(old.pop(field), abs=1e-4)
        for attempt in (*old["attempts"], *new["attempts"]):
            del attempt["started_at"], attempt["finished_at"]
        assert new == old
    assert (await bench.get(f"/v1/tasks/{job}.2"))["state"] == "succeeded"


async def test_what_is_no_longer_kept_of_it_is_said(bench: Bench) -> None:
    job = await forgotten(bench)
    lines = (await bench.get(f"/v1/jobs/{job}/explain"))["lines"]
    assert lines[0].startswith("succeeded: 1 of 1")
    assert "results and output are no longer kept" in lines[-1]
    assert "history_days 30" in lines[-1]
    assert "no longer kept" in (await bench.get(f"/v1/tasks/{job}.0/explain"))["lines"][-1]
    for path, code in ((f"/v1/tasks/{job}.0/result", "result_gone"), (f"/v1/tasks/{job}.0/logs", "output_gone")):
        problem = await bench.get(path, 404)
        assert problem["code"] == code
        assert f"task {job}.0 is no longer kept: the job finished at 20" in problem["detail"]


async def test_tasks_that_it_never_had_are_unknown(bench: Bench) -> None:
    job = await forgotten(bench, tasks=2)
    for path in (f"/v1/tasks/{job}.7", f"/v1/tasks/{job}.7/explain", f"/v1/tasks/{job}.7/result"):
        problem = await bench.get(path, 404)
        assert (problem["code"], problem["detail"]) == ("unknown_task", f"job {job} has no task 7; it has 0 to 1")


async def test_one_that_is_in_no_archive_is_gone_and_not_unknown(bench: Bench) -> None:
    job = await forgotten(bench)
    await bench.master.archive._file.tidy(lambda database: database.remove(job))
    problem = await bench.get(f"/v1/jobs/{job}", 404)
    assert problem["code"] == "job_gone"
    assert problem["detail"] == f"job {job} is no longer kept: it finished, and the archive of m1 does not have it"
    assert (await bench.get(f"/v1/jobs/{job + 1}", 404))["code"] == "unknown_job"


async def test_commands_on_it_say_that_it_has_finished(bench: Bench) -> None:
    job = await forgotten(bench)
    for path, body in (
        ("/v1/jobs/cancel", {"jobs": [job]}),
        ("/v1/jobs/retry", {"jobs": [job], "by": "ann"}),
        (f"/v1/jobs/{job}/close", None),
    ):
        problem = await bench.post(path, body, 404)
        assert problem["code"] == "job_gone"
        assert problem["detail"].startswith(f"job {job} is no longer kept: it finished")
    assert (await bench.post("/v1/jobs/cancel", {"jobs": [job + 1]}, 404))["code"] == "unknown_job"


async def test_lists_and_pages_go_through_live_and_archived_jobs(bench: Bench) -> None:
    jobs = [ended(bench, name=f"n{number}", tags=("odd",) if number % 2 else ()) for number in range(10)]
    await forget(bench, *jobs[1:4], jobs[6])
    plain = await bench.get("/v1/jobs")
    assert [view["id"] for view in plain["jobs"]] == [jobs[place] for place in (9, 8, 7, 5, 4, 0)]
    found: list[int] = []
    before, pages = "", 0
    while True:
        page = await bench.get(f"/v1/jobs?all=1&limit=3{before}")
        found += [view["id"] for view in page["jobs"]]
        assert page["more"] == (page["next"] is not None)
        pages += 1
        if not page["more"]:
            break
        before = f"&before={page['next']}"
    assert found == jobs[::-1]
    assert pages == 4
    assert page["notes"] == []
    odd = await bench.get("/v1/jobs?all=1&tag=odd")
    assert [(view["name"], view["archived"]) for view in odd["jobs"]] == [
        ("n9", False), ("n7", False), ("n5", False), ("n3", True), ("n1", True),
    ]  # fmt: skip


FILTERS = {
    "name=train-*": ["train-2", "train-1"],
    "name=train-%5B!1%5D": ["train-2"],
    "name=*i*": ["build", "train-2", "train-1"],
    "name=build": ["build"],
    "state=failed": ["build"],
    "state=failed,succeeded&user=ann": ["build", "train-1"],
    "user=nobody": [],
    "tag=a": ["train-1"],
    "tag=a&state=failed": [],
    "tag=a&user=ann&name=train*": ["train-1"],
}


@pytest.mark.parametrize("gone", [0, 1, 3])
async def test_filters_mean_the_same_for_live_and_archived_jobs(bench: Bench, gone: int) -> None:
    jobs = [
        ended(bench, name="train-1", user="ann", tags=("a", "b")),
        ended(bench, name="train-2", user="bob"),
        ended(bench, name="build", user="ann", outcome="failed"),
    ]
    await forget(bench, *jobs[:gone])
    found = {}
    for query in FILTERS:
        page = await bench.get(f"/v1/jobs?all=1&{query}")
        found[query] = [view["name"] for view in page["jobs"]]
    assert found == FILTERS


async def test_since_and_until(bench: Bench) -> None:
    job = await forgotten(bench, name="old")
    live = bench.submit(name="live")
    ended_at = (await bench.get(f"/v1/jobs/{job}"))["finished_at"]
    submitted_at = (await bench.get(f"/v1/jobs/{live}"))["submitted_at"]

    async def ids(query: str) -> list[int]:
        return [view["id"] for view in (await bench.get(f"/v1/jobs?{query}"))["jobs"]]

    assert await ids(f"since={ended_at}") == [live, job]
    assert await ids(f"since={ended_at + 0.001}") == [live]
    assert await ids(f"all=1&until={submitted_at}") == [job]
    for bad in ("since=yesterday", "since=-1", "until=nan"):
        problem = await bench.get(f"/v1/jobs?{bad}", 400)
        assert "allowed: seconds since the epoch" in problem["detail"]


async def test_accounting_counts_what_ended_in_a_time_wherever_it_is(bench: Bench) -> None:
    jobs = [ended(bench, tasks=2, user="ann", cpus=2.0), ended(bench, user="bob", memory_bytes=100)]
    running = bench.submit(user="ann")
    live = await bench.get("/v1/accounting")
    await forget(bench, *jobs)
    archived = await bench.get("/v1/accounting")
    assert archived == live
    assert [row["job"] for row in archived["rows"]] == jobs[::-1]
    first = archived["rows"][1]
    assert (first["tasks"], first["attempts"], first["attempt_s"], first["slot_s"]) == (2, 2, 10.0, 20.0)
    assert archived["rows"][0]["memory_byte_s"] == 500.0
    assert archived["master"] == "m1"
    every = await bench.get("/v1/accounting?unfinished=1&user=ann")
    assert [row["job"] for row in every["rows"]] == [running, jobs[0]]
    page = await bench.get("/v1/accounting?limit=1")
    assert [row["job"] for row in page["rows"]] == [jobs[1]]
    assert page["next"] == jobs[1]
    ended_at = first["finished_at"]
    assert (await bench.get(f"/v1/accounting?until={ended_at}"))["rows"] == []
    assert len((await bench.get(f"/v1/accounting?since={ended_at}"))["rows"]) == 2
    problem = await bench.get("/v1/accounting?unfinished=1&until=5", 400)
    assert problem["detail"].startswith("unfinished: '1' given; allowed: only without until")


async def test_masters_ask_each_other_and_users_do_not(bench: Bench) -> None:
    job, live = ended(bench), bench.submit()
    for path in (KEEP_PATH, RECORDS_PATH):
        assert (await bench.post(path, {}, 403))["code"] == "not_authorised"
    headers = {"Authorization": f"Bearer {master_token(SECRETS.raft_secret)}"}
    kept = await bench.post(KEEP_PATH, {"jobs": [job, live, 99]}, headers=headers)
    assert kept == {"kept": [job]}
    records = await bench.post(RECORDS_PATH, {"ranges": [[1, 99]]}, headers=headers)
    assert [record[0] for record in records] == [job]


async def test_a_paused_archive_is_said_and_the_rest_goes_on(bench: Bench) -> None:
    job = await forgotten(bench)
    live = bench.submit()
    file = bench.master.archive._file
    file._reserve_bytes = 2**62
    other = ended(bench)
    assert await bench.master.archive.keep_on_majority([other]) == set()
    page = await bench.get("/v1/jobs?all=1")
    assert [view["id"] for view in page["jobs"]] == [other, live, job]
    assert "is paused" in page["notes"][-1]
    assert "MiB are free" in page["notes"][-1]
    status = await bench.get("/v1/archive")
    assert status["master"] == "m1"
    assert "is paused" in status["problem"]
    file._reserve_bytes = 0
    assert await bench.master.archive.keep_on_majority([other]) == {other}
    assert (await bench.get("/v1/archive"))["problem"] == ""


class TestWithoutArchive:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(archive_days=0)

    async def test_forgotten_jobs_are_gone_and_it_is_said_why(self, bench: Bench) -> None:
        job = await forgotten(bench)
        problem = await bench.get(f"/v1/jobs/{job}", 404)
        assert problem["code"] == "job_gone"
        assert "archive_days 0" in problem["detail"]
        assert "archive_days 0" in (await bench.get("/v1/jobs?all=1"))["notes"][0]
        assert not (bench.master.config.masters[0].directory / "jobs.sqlite").exists()


async def test_other_masters_answer_from_their_own_archive(bench: Bench) -> None:
    """`consistency=stale` is answered by the master that is asked, which says who it is."""
    await forgotten(bench)
    bench.master.stop_leading("m2")
    async with bench.http.get(f"{bench.url}/v1/jobs?all=1&consistency=stale") as answer:
        assert isinstance(answer, aiohttp.ClientResponse)
        assert answer.headers["Depalma-Master"] == "m1"
        assert len((await answer.json())["jobs"]) == 1
