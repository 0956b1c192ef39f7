"""The client on a real cluster: functions, commands, code, and what it tells."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depalma import (
    AsyncClient,
    Client,
    JobCancelled,
    JobFailed,
    JobTimeout,
    LocalCluster,
    Rejected,
)
from depalma.client.specs import login_name

WaitUntil = Callable[..., Any]


def by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function as one that agents need not import: tests are not in the synced code."""
    function.__module__ = "__main__"
    return function


@by_value
def square(x: int) -> int:
    return x * x


@by_value
def refuse_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


# ---------------------------------------------------------------- functions


def test_a_map_gives_its_results_in_order(client: Client) -> None:
    job = client.map(square, range(500), name="squares", tags=["t"])
    assert list(job.results(timeout=60)) == [n * n for n in range(500)]
    view = job.wait(60).view()
    assert (view.state, view.name, view.tags, view.tasks.succeeded) == ("succeeded", "squares", ("t",), 500)
    assert list(job.results(timeout=60))[-1] == 499 * 499  # again, from what is here


def test_a_map_of_nothing_is_a_job_that_is_over(client: Client) -> None:
    job = client.map(square, [])
    assert list(job.results(timeout=60)) == []


def test_tasks_come_as_they_are_completed_failed_ones_too(client: Client) -> None:
    job = client.map(refuse_odd, range(10))
    tasks = sorted(job.as_completed(timeout=60), key=lambda task: task.index)
    assert [task.state for task in tasks] == ["succeeded", "failed"] * 5
    assert tasks[4].result() == 4
    assert tasks[4].error is None
    assert tasks[4].host in ("h1", "h2")
    assert isinstance(tasks[5].error, JobFailed)
    with pytest.raises(JobFailed, match=rf"task {job.id}.5 on h\d failed: ValueError: 5 is odd"):
        tasks[5].result()
    assert job.wait(60).state == "failed"


def test_results_stop_at_a_failure_with_the_remote_traceback_or_give_it_as_a_value(client: Client) -> None:
    job = client.map(refuse_odd, range(4))
    results = job.results(timeout=60)
    assert next(results) == 0
    with pytest.raises(JobFailed) as caught:
        next(results)
    cause = caught.value.__cause__
    assert isinstance(cause, ValueError)
    assert any("in refuse_odd" in note for note in cause.__notes__)
    given = list(job.results(timeout=60, return_errors=True))
    assert [given[0], given[2]] == [0, 2]
    assert isinstance(given[1], JobFailed)


def test_a_lone_call_is_a_future(client: Client) -> None:
    future = client.submit(divmod, 17, 5)
    assert future.result(60) == (3, 2)
    assert future.done()
    assert future.host in ("h1", "h2")
    assert client.submit(sorted, [1, 3, 2], reverse=True).result(60) == [3, 2, 1]


def test_large_arguments_and_results_go_beside_the_log(client: Client) -> None:
    data = os.urandom(3_000_000)
    assert client.submit(lambda x: x[::-1], data).result(30) == data[::-1]
    parts = [bytes([n]) * 20_000 for n in range(40)]
    assert list(client.map(lambda x: x + x, parts).results(timeout=60)) == [part + part for part in parts]


def test_a_function_that_needs_two_attempts_gets_them(client: Client) -> None:
    def second_time() -> int:
        import os

        attempt = int(os.environ["DEPALMA_ATTEMPT"])
        if attempt < 2:
            raise RuntimeError("not yet")
        return attempt

    job = client.map(lambda _: second_time(), range(3), retries=2)
    assert list(job.results(timeout=60)) == [2, 2, 2]


def test_a_function_that_kills_its_worker_fails_alone(client: Client) -> None:
    def die(x: int) -> int:
        import os
        import signal

        if x == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    given = list(client.map(die, range(8)).results(timeout=60, return_errors=True))
    assert isinstance(given[3], JobFailed)
    assert given[:3] + given[4:] == [0, 1, 2, 4, 5, 6, 7]


def test_a_time_limit_is_an_error_of_its_own(client: Client) -> None:
    def too_long(_: int) -> None:
        import time

        time.sleep(60)

    with pytest.raises(JobTimeout):
        list(client.map(too_long, [0], timeout_s=0.5, grace_s=0.5).results(timeout=60))


# ---------------------------------------------------------------- commands


def test_a_command_has_an_exit_code_and_output(client: Client, tmp_path: Path) -> None:
    job = client.command(["sh", "-c", "echo out; echo err >&2; pwd; exit 3"], cwd=tmp_path, name="three")
    assert job.wait(60).exit_code == 3
    assert job.state == "failed"
    assert job.logs() == f"out\n{tmp_path}\n"
    assert job.logs(stream="stderr") == "err\n"
    assert [task.exit_code for task in job.tasks()] == [3]


def test_an_array_has_its_indices_and_arguments_replace_braces(client: Client) -> None:
    job = client.command(["sh", "-c", "echo $DEPALMA_TASK_INDEX $X"], array="5-9%2", env={"X": "x"})
    assert [task.index for task in sorted(job.as_completed(timeout=60), key=lambda t: t.index)] == [5, 6, 7, 8, 9]
    assert job.logs(7) == "7 x\n"
    assert client.job(job.id).logs() == "5 x\n"
    job = client.command(["echo", "<{}>"], arguments=["a", "b c"])
    assert list(job.results(timeout=60)) == [0, 0]
    assert job.logs(1) == "<b c>\n"


def test_cancelling_stops_what_runs(client: Client, wait_until: WaitUntil) -> None:
    job = client.command(["sleep", "600"])
    wait_until(lambda: client.ps(job.id).processes)
    assert job.cancel()
    assert job.wait(60).state == "cancelled"
    assert job.view().reason == f"cancelled by {login_name()}"
    with pytest.raises(JobCancelled):
        list(job.results(timeout=60))
    assert not job.cancel()
    wait_until(lambda: client.ps(job.id).processes, lambda seen: not seen)


def test_cancelling_a_future_cancels_its_job(client: Client) -> None:
    def long() -> None:
        import time

        time.sleep(600)

    future = client.submit(long)
    assert future.cancel()
    assert future.cancelled()
    assert client.job(future.job_id).wait(60).state == "cancelled"


# ---------------------------------------------------------------- code


def test_added_code_is_on_every_host_and_runs_by_name(client: Client, tmp_path: Path) -> None:
    package = tmp_path / "freshly"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sums.py").write_text("def add(a, b=1):\n    return a + b\n")
    version = client.add_code(package)
    assert version.missing == ()
    assert version.acknowledged == ("h1", "h2")
    assert client.submit("freshly.sums:add", 1, b=2).result(60) == 3
    (package / "sums.py").write_text("def add(a, b=1):\n    return a + b + 100\n")
    assert client.add_code(package).index == version.index + 1
    assert list(client.map("freshly.sums:add", [1, 2]).results(timeout=60)) == [102, 103]
    assert [entry.index for entry in client.code()][-2:] == [version.index, version.index + 1]


def test_a_name_that_is_in_no_code_fails_clearly(client: Client) -> None:
    with pytest.raises(JobFailed, match="nowhere"):
        client.submit("nowhere.to_be:found").result(60)


# ---------------------------------------------------------------- what is told


def test_the_cluster_tells_about_itself(client: Client, cluster: LocalCluster, wait_until: WaitUntil) -> None:
    assert {host.name: host.state for host in client.hosts()} == {"h1": "up", "h2": "up"}
    roles = ["follower", "follower", "leader"]  # a master that does not answer at once is shown as unreachable
    wait_until(lambda: sorted(master.role for master in client.masters()), roles.__eq__)
    assert {load.host for load in client.load()} == {"h1", "h2"}
    assert client.get("/v1/overview")["leader"] == cluster.leader()
    assert "m1" in client._repr_html_()


def test_jobs_are_found_by_tag_and_after_the_fact(client: Client) -> None:
    made = client.map(square, range(3), tags=["find-me"])
    list(made.results(timeout=60))
    assert [view.id for view in client.jobs(tag="find-me")] == [made.id]
    again = client.job(made.id)
    assert list(again.results(timeout=60)) == [0, 1, 4]
    assert again.explain()
    assert "3 of 3" in again._repr_html_()


def test_two_handles_of_one_job_both_see_everything(client: Client) -> None:
    one = client.map(square, range(2000))
    early = one.as_completed(timeout=60)
    first = [next(early).index for _ in range(10)]
    two = client.job(one.id)
    assert list(two.results(timeout=60)) == [n * n for n in range(2000)]
    assert sorted(first + [task.index for task in early]) == list(range(2000))


def test_a_dropped_client_leaves_no_thread(cluster: LocalCluster, wait_until: WaitUntil) -> None:
    before = set(threading.enumerate())  # some of these may be on their way out
    client = cluster.client()
    assert client.submit(square, 3).result(60) == 9
    assert set(threading.enumerate()) - before
    del client
    gc.collect()
    wait_until(lambda: set(threading.enumerate()) - before, lambda new: not new)


def test_unknown_things_are_refused(client: Client) -> None:
    with pytest.raises(Rejected) as caught:
        client.job(999_999)
    assert caught.value.code == "unknown_job"
    with pytest.raises(Rejected):
        client.cancel(999_999)
    with pytest.raises(Rejected) as caught:
        client.map(square, [1], group="no-such-group!")
    assert caught.value.code == "bad_field"


def test_a_wrong_token_is_refused(cluster: LocalCluster) -> None:
    with Client(cluster.masters, token="x" * 40) as stranger, pytest.raises(Rejected) as caught:
        stranger.hosts()
    assert caught.value.code == "not_authenticated"


def test_events_are_followed_across_pages(client: Client) -> None:
    job = client.map(square, range(3))
    list(job.results(timeout=60))
    kinds = []
    for event in client.events(follow=True):
        kinds += [event.kind] if event.job == job.id else []
        if "job.finished" in kinds:
            break
    assert kinds[0] == "job.submitted"
    indices = [event.index for event in client.events()]
    assert indices == sorted(set(indices))


# ---------------------------------------------------------------- asyncio


async def test_the_verbs_as_coroutines(cluster: LocalCluster) -> None:
    async with AsyncClient(cluster.masters, token_file=cluster.token_file) as client:
        assert await (await client.submit(square, 12)) == 144
        job = await client.map(square, range(50))
        assert [value async for value in job.results()] == [n * n for n in range(50)]
        assert (await job.wait(60)).state == "succeeded"
        failing = await client.map(refuse_odd, range(4))
        tasks = [task async for task in failing.as_completed()]
        assert sorted(task.state for task in tasks) == ["failed", "failed", "succeeded", "succeeded"]
        with pytest.raises(JobFailed):
            [value async for value in failing.results()]
        command = await client.command(["echo", "hi"])
        await command.wait(60)
        assert await command.logs() == "hi\n"
        assert {host.name for host in await client.hosts()} == {"h1", "h2"}
        large = await client.submit(lambda: b"x" * 100_000)
        assert len(await large) == 100_000
        again = await client.job(job.id)
        assert [value async for value in again.results()][-1] == 49 * 49


async def test_hosts_and_groups_as_coroutines(cluster: LocalCluster) -> None:
    async with AsyncClient(cluster.masters, token_file=cluster.token_file) as client:
        added = await client.add_host("h9", slots=3, groups=["g"], labels={"os": "debian"}, gpus=1)
        assert (added.state, added.slots, added.groups, added.gpus) == ("down", 3, ("g",), 1)
        changed = await client.set_host("h9", priority=4, labels={"os": None, "disk": "ssd"})
        assert (changed.priority, changed.labels, changed.slots) == (4, {"disk": "ssd"}, 3)
        drained = await client.drain_host("h9", deadline_s=60, reason="reboot")
        assert drained.deadline_at is not None
        assert (await client.wait_drained("h9", 60)).state == "down"
        assert (await client.undrain_host("h9")).deadline_at is None
        assert await client.set_group("night", ["h1"]) == ["h1"]
        assert await client.add_to_group("night", ["h9"]) == ["h1", "h9"]
        assert [(group.name, group.hosts) for group in await client.groups()] == [
            ("g", ("h9",)), ("night", ("h1", "h9")),
        ]  # fmt: skip
        assert await client.remove_group("night", ["h1"]) == ["h9"]
        assert (await client.remove_host("h9")).removed
        with pytest.raises(Rejected, match="there is no host 'h9'"):
            await client.host("h9")


async def test_many_calls_at_once_and_a_cancelled_one(cluster: LocalCluster) -> None:
    async with AsyncClient(cluster.masters, token_file=cluster.token_file) as client:
        futures = await asyncio.gather(*(client.submit(square, n) for n in range(60)))
        assert await asyncio.gather(*futures) == [n * n for n in range(60)]
        sleeping = await client.command(["sleep", "600"])
        assert await sleeping.cancel()
        assert (await sleeping.wait(60)).state == "cancelled"


# ---------------------------------------------------------------- processes of the user


def test_a_program_that_ends_without_shutdown_leaves_no_open_job(cluster: LocalCluster, client: Client) -> None:
    program = (
        "from depalma import Client\n"
        "ex = Client().executor(name='left-open')\n"
        "print(ex.submit(pow, 2, 10).result(60))\n"
        "ex.submit(pow, 2, 11)\n"
    )
    environ = {**os.environ, "DEPALMA_MASTERS": ",".join(cluster.masters), "DEPALMA_TOKEN_FILE": cluster.token_file}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environ, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("1024\n", "")
    (view,) = client.jobs(name="left-open")
    assert client.job(view.id).wait(60).view().tasks.succeeded == 2


def test_a_forked_child_uses_the_client_on_its_own(client: Client) -> None:
    assert client.submit(square, 3).result(60) == 9
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if client.submit(square, 4).result(60) == 16 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert client.submit(square, 5).result(60) == 25


def test_importing_the_client_costs_little() -> None:
    program = (
        "import sys, depalma; depalma.Client\n"
        "print([m for m in ('aiohttp', 'asyncio', 'psutil', 'pysyncobj', 'rich', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
