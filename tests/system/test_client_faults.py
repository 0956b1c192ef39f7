"""Work goes on through the death of any process, and each result comes once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from depalma import Client, DepalmaError, LocalCluster, NoLeader
from depalma.client.job import JobHandle

Fresh = Callable[..., LocalCluster]
WaitUntil = Callable[..., Any]


def slow_square(x: int) -> int:
    import time

    time.sleep(0.002)
    return x * x


slow_square.__module__ = "__main__"  # travels by value: agents need not import this test

TASKS = 1500
EXPECTED = [(n, n * n) for n in range(TASKS)]


def collect(job: JobHandle, at: int, act: Callable[[], object]) -> list[tuple[int, Any]]:
    """Returns index and value of every task as they came, after doing something in the middle."""
    got = []
    for task in job.as_completed(timeout=60):
        got.append((task.index, task.result()))
        if len(got) == at:
            act()
    return got


def test_a_map_survives_its_leader(fresh_cluster: Fresh) -> None:
    cluster = fresh_cluster()
    with cluster.client() as client:
        killed: list[str] = []

        def kill_the_leader() -> None:
            killed.append(cluster.leader())
            cluster.kill(killed[-1])

        job = client.map(slow_square, range(TASKS))
        assert sorted(collect(job, 400, kill_the_leader)) == EXPECTED
        assert list(job.results(timeout=60)) == [square for _, square in EXPECTED]
        assert cluster.leader() not in killed
        assert job.wait(60).view().tasks.succeeded == TASKS

        cluster.restart(killed[0])
        job = client.map(slow_square, range(TASKS))
        assert sorted(collect(job, 400, kill_the_leader)) == EXPECTED


def test_a_follower_and_an_agent_die(fresh_cluster: Fresh, wait_until: WaitUntil) -> None:
    cluster = fresh_cluster()
    with cluster.client() as client:
        leader = cluster.leader()
        follower = next(entry.id for entry in cluster.processes if entry.role == "master" and entry.id != leader)
        job = client.map(slow_square, range(TASKS))
        assert sorted(collect(job, 200, lambda: cluster.kill(follower))) == EXPECTED
        job = client.map(slow_square, range(TASKS))
        assert sorted(collect(job, 200, lambda: cluster.kill("h1"))) == EXPECTED
        wait_until(
            lambda: {host.name: host.state for host in client.hosts()}, lambda seen: seen == {"h1": "lost", "h2": "up"}
        )
        cluster.restart("h1")
        assert sorted(collect(client.map(slow_square, range(50)), 60, lambda: None)) == EXPECTED[:50]


def test_a_frozen_leader_is_left_and_does_no_harm_when_it_wakes(fresh_cluster: Fresh) -> None:
    cluster = fresh_cluster()
    with cluster.client() as client:
        frozen: list[str] = []

        def freeze() -> None:
            frozen.append(cluster.leader())
            cluster.pause(frozen[0])

        job = client.map(slow_square, range(TASKS))
        assert sorted(collect(job, 300, freeze)) == EXPECTED
        assert client.submit(slow_square, 9).result(60) == 81
        cluster.resume(frozen[0])
        cluster.wait_ready()
        assert cluster.leader() not in frozen
        assert client.submit(slow_square, 10).result(60) == 100


def test_each_submission_through_a_dying_leader_makes_one_job(fresh_cluster: Fresh) -> None:
    cluster = fresh_cluster()
    with cluster.client() as client:
        killer = threading.Timer(0.3, lambda: cluster.kill(cluster.leader()))
        killer.start()
        began = time.monotonic()
        futures = []
        while time.monotonic() - began < 1.5:
            futures.append(client.submit(pow, len(futures), 2))
        killer.join()
        assert [future.result(60) for future in futures] == [n * n for n in range(len(futures))]
        ids = [future.job_id for future in futures]
        assert ids == sorted(set(ids))
        assert len(client.jobs(all=True, limit=10_000)) == len(futures)


def test_an_executor_survives_its_leader(fresh_cluster: Fresh) -> None:
    cluster = fresh_cluster()
    with cluster.client() as client, client.executor() as ex:
        futures = []
        for n in range(TASKS):
            futures.append(ex.submit(slow_square, n))
            if n == 200:
                cluster.kill(cluster.leader())
            if n % 50 == 0:
                futures[-1].result(60)
        assert [future.result(60) for future in futures] == [square for _, square in EXPECTED]
        assert ex.job_id is not None
        ex.shutdown()
        view = client.job(ex.job_id).wait(60).view()
        assert (view.tasks.total, view.tasks.succeeded) == (TASKS, TASKS)


def test_without_a_majority_calls_end_at_their_deadline_and_work_resumes(fresh_cluster: Fresh) -> None:
    cluster = fresh_cluster(agents=1)
    with cluster.client() as client, cluster.client(deadline_s=1.0) as impatient:
        job = client.map(slow_square, range(TASKS))
        next(job.as_completed(timeout=60))
        for name in ("m1", "m2"):
            cluster.kill(name)
        with pytest.raises(NoLeader, match="within 1 s"):
            impatient.submit(pow, 2, 2)
        cluster.restart("m1")
        assert list(job.results(timeout=60)) == [square for _, square in EXPECTED]


def test_those_who_wait_for_results_learn_that_the_cluster_is_gone(fresh_cluster: Fresh) -> None:
    cluster = fresh_cluster(masters=1, agents=1)
    with Client(cluster.masters, token_file=cluster.token_file, deadline_s=5.0, patience_s=0.5) as client:

        def long() -> None:
            import time

            time.sleep(600)

        future = client.submit(long)
        cluster.stop()
        with pytest.raises(NoLeader):
            future.result(60)
        with pytest.raises(DepalmaError):
            client.submit(pow, 2, 2)


def test_tasks_die_with_a_killed_agent(fresh_cluster: Fresh, wait_until: WaitUntil) -> None:
    cluster = fresh_cluster(masters=1, agents=1)
    with cluster.client() as client:
        job = client.command(["sleep", "600"], restartable=False)
        (process,) = wait_until(lambda: client.ps(job.id).processes)
        cluster.kill("h1", signal.SIGKILL)

        def gone() -> bool:
            try:
                os.kill(process.pid, 0)
            except ProcessLookupError:
                return True
            return False

        wait_until(gone)
        assert job.wait(60).state == "lost"
