"""Jobs that are held, changed and retried, on a real cluster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from depalma import AsyncClient, Client, JobFailed, LocalCluster

WaitUntil = Callable[..., Any]
Ctl = Callable[..., Any]


def test_a_held_job_starts_when_it_is_released(ctl: Ctl, value: Callable[..., Any], client: Client) -> None:
    job = ctl("submit", "-q", "--hold", "--", "echo", "hello").stdout.strip()
    assert value("show", job)["state"] == "held"
    assert value("set", job, "--priority", "7", "--tag", "exp1", "--name", "greeting")["changed"] == [int(job)]
    assert value("release", job) == {"changed": [int(job)], "unchanged": []}
    ctl("wait", job)
    view = value("show", job)
    assert (view["state"], view["priority"], view["tags"], view["name"]) == ("succeeded", 7, ["exp1"], "greeting")
    assert [row["id"] for row in value("jobs", "--tag", "exp1", "--name", "greeting")] == [int(job)]
    assert value("release", job) == {"changed": [], "unchanged": [int(job)]}


def test_only_what_failed_is_retried(ctl: Ctl, value: Callable[..., Any], client: Client, tmp_path: Path) -> None:
    """Each task counts its runs; those of odd index fail until a file says otherwise."""
    script = "echo x >> runs.$DEPALMA_TASK_INDEX; [ -e mended ] || [ $(($DEPALMA_TASK_INDEX % 2)) = 0 ]"
    job = client.command(["sh", "-c", script], cwd=tmp_path, array=4)
    assert job.wait(30).state == "failed"
    (tmp_path / "mended").touch()

    assert value("retry", str(job.id)) == {"changed": [job.id], "unchanged": []}

    ctl("wait", str(job.id))
    assert [(tmp_path / f"runs.{index}").read_text().count("x") for index in range(4)] == [1, 2, 1, 2]
    assert [task["attempt"] for task in value("show", str(job.id), "--tasks", "succeeded")] == [1, 2, 1, 2]
    assert value("retry", str(job.id)) == {"changed": [], "unchanged": [job.id]}


def flaky(path: str, index: int) -> int:
    if index == 1 and not Path(path).exists():
        raise ValueError("not yet")
    return index * 10


flaky.__module__ = "__main__"


def test_a_handle_waits_anew_after_a_retry(client: Client, tmp_path: Path) -> None:
    """Results of tasks that were retried come once: those that count."""
    mended = tmp_path / "mended"
    job = client.map(partial(flaky, str(mended)), range(3))
    with pytest.raises(JobFailed):
        list(job.results(timeout=30))
    job.wait(30)
    mended.touch()

    assert job.retry()

    assert list(job.results(timeout=30)) == [0, 10, 20]
    assert sorted(task.index for task in job.as_completed(timeout=30)) == [0, 1, 2]
    assert not job.retry()


def test_a_cancelled_job_cannot_be_retried(ctl: Ctl) -> None:
    job = ctl("submit", "-q", "--hold", "--", "true").stdout.strip()
    ctl("cancel", "-q", job)
    assert f"job {job} was cancelled" in ctl("retry", job, code=5).stderr


def test_tasks_are_added_to_an_open_job(ctl: Ctl, value: Callable[..., Any], client: Client) -> None:
    job = ctl("map", "-q", "--open", "echo {}", ":::", "a", "b").stdout.strip()
    assert value("add", job, ":::", "c") == {"job": int(job), "first": 2, "last": 2}
    assert ctl("add", job, stdin="d\ne\n").stdout == f"{job}.3 {job}.4\n"
    assert client.job(int(job)).add(["f"]) == 5
    assert ctl("add", "--close", job, ":::", "g").stdout == f"{job}.6 {job}.6\n"
    ctl("wait", job)
    assert [ctl("logs", f"{job}.{index}").stdout for index in range(7)] == [f"{letter}\n" for letter in "abcdefg"]
    assert f"job {job} is closed" in ctl("add", job, ":::", "x", code=5).stderr
    assert "put ::: before" in ctl("add", job, "x", code=2).stderr
    assert "nothing was submitted" in ctl("add", job, stdin="", code=2).stderr
    ctl("close", "987654", code=3)


def test_calls_are_added_to_an_open_map(client: Client) -> None:
    job = client.map(triple, [1, 2], open=True)
    assert job.add([3, 4]) == 2
    job.close()
    assert list(job.results(timeout=30)) == [3, 6, 9, 12]


async def test_asyncio_has_graphs_open_jobs_and_retries_too(cluster: LocalCluster, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    async with AsyncClient(cluster.masters, token_file=cluster.token_file) as client:
        graph = client.graph()
        graph.command("first", ["true"], array=2)
        graph.map("then", partial(flaky, str(mended)), [0, 1], after="first", open=True)
        jobs = await graph.submit()
        then = jobs["then"]
        assert await then.hold()
        assert await then.add([2]) == 2
        await then.close()
        assert await then.release()
        assert not await then.release()
        with pytest.raises(JobFailed):
            assert [value async for value in then.results()]
        assert (await then.wait(30)).state == "failed"
        mended.touch()
        assert await then.retry()
        assert [value async for value in then.results()] == [0, 10, 20]
        assert not await then.retry()
        assert (await jobs["first"].wait(30)).state == "succeeded"


def triple(x: int) -> int:
    return 3 * x


triple.__module__ = "__main__"
