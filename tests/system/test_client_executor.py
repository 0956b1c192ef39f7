"""The executor keeps the contract of `concurrent.futures`, on a real cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depalma import Client, JobCancelled, JobFailed
from depalma.client.executor import Executor

WaitUntil = Callable[..., Any]


def by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function as one that agents need not import: tests are not in the synced code."""
    function.__module__ = "__main__"
    return function


@by_value
def cube(x: int) -> int:
    return x**3


@by_value
def fail(x: int) -> None:
    raise LookupError(f"no {x} here")


@by_value
def nap(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return seconds


@by_value
def wait_for(file: str) -> None:
    import os
    import time

    while not os.path.exists(file):
        time.sleep(0.02)


def test_map_gives_values_in_order_and_takes_several_iterables(client: Client) -> None:
    with client.executor(cpus=1) as ex:
        assert sum(ex.map(cube, range(100))) == sum(n**3 for n in range(100))
        assert list(ex.map(pow, [2, 3, 4], [5, 6, 7])) == [32, 729, 16384]


def test_it_is_one_job_however_many_calls_and_functions(client: Client) -> None:
    with client.executor(name="one-job") as ex:
        futures = [ex.submit(cube if n % 2 else abs, -n) for n in range(300)]
        futures.append(ex.submit("math:hypot", 3, 4))
        futures.append(ex.submit({"k": 7}.get, "k"))
        assert [f.result(60) for f in futures[:4]] == [0, -1, 2, -27]
        assert [f.result(60) for f in futures[-2:]] == [5.0, 7]
        assert isinstance(ex, concurrent.futures.Executor)
    (view,) = client.jobs(name="one-job")
    assert (view.id, view.tasks.total, view.state) == (ex.job_id, 302, "succeeded")


def test_wait_and_as_completed_work_on_its_futures(client: Client, tmp_path: Path) -> None:
    with client.executor() as ex:
        futures = {ex.submit(cube, n): n for n in range(50)}
        done, pending = concurrent.futures.wait(list(futures)[:25], timeout=60)
        assert (len(done), len(pending)) == (25, 0)
        for future in concurrent.futures.as_completed(futures, timeout=60):
            assert future.result() == futures[future] ** 3
        failing = ex.submit(fail, 1)
        waiting = ex.submit(wait_for, str(tmp_path / "go"))
        done, _ = concurrent.futures.wait([failing, waiting], 60, concurrent.futures.FIRST_EXCEPTION)
        (tmp_path / "go").touch()
        assert done == {failing}


def test_what_the_function_raised_is_raised_with_the_remote_traceback(client: Client) -> None:
    with client.executor() as ex:
        future = ex.submit(fail, 7)
        with pytest.raises(LookupError, match="no 7 here") as caught:
            future.result(60)
        assert any("in fail" in note for note in caught.value.__notes__)
        assert isinstance(caught.value.__cause__, JobFailed)
        assert isinstance(future.exception(), LookupError)


async def test_asyncio_runs_on_it(client: Client, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    with client.executor() as ex:
        assert await asyncio.gather(*(loop.run_in_executor(ex, cube, n) for n in range(20))) == [
            n**3 for n in range(20)
        ]
        assert await asyncio.wrap_future(ex.submit(cube, 4)) == 64
        with pytest.raises(LookupError):
            await loop.run_in_executor(ex, fail, 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.run_in_executor(ex, wait_for, str(tmp_path / "go")), 0.05)
        (tmp_path / "go").touch()


def test_callbacks_see_the_result_and_may_submit_more(client: Client, wait_until: WaitUntil) -> None:
    seen: list[int] = []
    with client.executor() as ex:

        def again(future: concurrent.futures.Future[int]) -> None:
            seen.append(future.result())
            if len(seen) < 5:
                ex.submit(cube, len(seen)).add_done_callback(again)

        ex.submit(cube, 0).add_done_callback(again)
        wait_until(lambda: seen, lambda now: len(now) == 5)
    assert seen == [0, 1, 8, 27, 64]


def test_after_shutdown_it_takes_nothing_and_has_waited_for_all(client: Client) -> None:
    ex = client.executor()
    futures = [ex.submit(nap, 0.01) for _ in range(20)]
    large = ex.submit(lambda: b"x" * 300_000)
    ex.shutdown()
    assert all(future.done() for future in futures)
    assert large.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        ex.submit(cube, 1)
    ex.shutdown()
    assert ex.job_id is not None
    assert client.job(ex.job_id).wait(60).state == "succeeded"


def test_shutdown_may_cancel_what_is_left(client: Client) -> None:
    ex = client.executor()
    futures = [ex.submit(nap, 60) for _ in range(30)]
    ex.shutdown(cancel_futures=True)
    for future in futures:
        assert future.cancelled() or isinstance(future.exception(), JobCancelled)
    assert ex.job_id is not None
    assert client.job(ex.job_id).wait(60).state == "cancelled"


def test_an_executor_that_was_never_used_makes_no_job(client: Client) -> None:
    before = [view.id for view in client.jobs(limit=1, all=True)]
    with client.executor() as ex:
        assert ex.job_id is None
    assert [view.id for view in client.jobs(limit=1, all=True)] == before


def test_options_can_differ_by_call(client: Client) -> None:
    with client.executor(cpus=1, name="small") as ex:
        wide = ex.with_options(cpus=2, name="wide")
        assert ex.with_options(name="wide", cpus=2) is wide
        assert ex.submit(cube, 2).result(60) == 8
        assert wide.submit(cube, 3).result(60) == 27
    assert wide.job_id != ex.job_id
    assert [client.job(job).wait(60).state for job in (wide.job_id, ex.job_id) if job] == ["succeeded"] * 2
    with pytest.raises(TypeError, match="unknown option 'cpu'"):
        client.executor(cpu=1)  # type: ignore[call-arg]


def test_bad_options_fail_the_calls_not_the_thread(client: Client) -> None:
    with client.executor(group="not a name!") as ex:
        with pytest.raises(Exception, match="group"):
            ex.submit(cube, 1).result(60)
        with pytest.raises(Exception, match="group"):
            ex.submit(cube, 1).result(60)


def test_what_cannot_be_pickled_is_told_at_once(client: Client) -> None:
    with client.executor() as ex, pytest.raises(TypeError, match="pickle"):
        ex.submit(cube, (n for n in range(3)))


def test_a_call_can_be_cancelled_until_it_is_sent(client: Client) -> None:
    ex = Executor(client)
    future = ex.submit(cube, 1)
    assert future.result(60) == 1
    assert not future.cancel()
    ex.shutdown()


def test_many_small_calls_are_sent_in_few_requests(client: Client) -> None:
    with client.executor() as ex:
        futures = [ex.submit(cube, n) for n in range(3000)]
        assert [future.result(60) for future in futures] == [n**3 for n in range(3000)]
        assert ex.job_id is not None
        indices = [future.index for future in futures]
    assert indices == list(range(3000))


def test_close_ends_what_is_open(cluster: Any) -> None:
    with cluster.client() as client:
        ex = client.executor(name="closed-by-client")
        ex.submit(cube, 1).result(60)
    with cluster.client() as client:
        (view,) = client.jobs(name="closed-by-client")
        assert client.job(view.id).wait(60).state == "succeeded"
