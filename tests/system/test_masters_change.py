"""Masters join, leave, move on and hand over while work runs: nothing is lost, nothing runs twice, no call fails."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from depalma import Client, LocalCluster, Rejected
from tests.system.calm import STEADY

Fresh = Callable[..., LocalCluster]
WaitUntil = Callable[..., Any]
#: More jobs than this are submitted while masters change.
ENOUGH = 20


class Work:
    """Clients that submit without pause; each task leaves a line in a file of its own, so that runs can be counted."""

    def __init__(self, cluster: LocalCluster, witness: Path) -> None:
        self.acknowledged: list[int] = []
        self.failed: list[BaseException] = []
        self.slowest_s = 0.0
        self._cluster = cluster
        self._witness = witness
        self._over = threading.Event()
        witness.mkdir()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._submit, args=(name,)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        try:
            yield
            deadline = time.monotonic() + 60
            while len(self.acknowledged) <= ENOUGH and not self.failed and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            self._over.set()
            for thread in threads:
                thread.join(60)

    def _submit(self, name: str) -> None:
        number = 0
        with self._cluster.client() as client:
            while not self._over.is_set():
                number += 1
                began = time.monotonic()
                try:
                    job = client.command(["sh", "-c", f"echo ran >> {self._witness}/{name}{number}"])
                except Exception as error:
                    self.failed.append(error)
                    return
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self.acknowledged.append(job.id)

    def judge(self, client: Client) -> None:
        """Every call succeeded; every job that was acknowledged ran once, and there are no others."""
        assert self.failed == []
        assert len(self.acknowledged) == len(set(self.acknowledged)) > ENOUGH
        for job in self.acknowledged:
            view = client.job(job).wait(60).view()
            assert (view.state, view.tasks.total) == ("succeeded", 1)
        runs = [path.read_text() for path in self._witness.iterdir()]
        assert len(runs) == len(self.acknowledged)
        assert set(runs) == {"ran\n"}, "a task ran twice"


def roles(client: Client) -> dict[str, str]:
    return {master.id: master.role for master in client.masters()}


def equal(client: Client) -> set[tuple[int, str]]:
    return {(master.applied_index, master.state_hash) for master in client.masters()}


@pytest.mark.long
def test_all_masters_are_restarted_one_after_the_other(
    fresh_cluster: Fresh, tmp_path: Path, wait_until: WaitUntil
) -> None:
    cluster = fresh_cluster(masters=3, agents=2)
    work = Work(cluster, tmp_path / "witness")
    with cluster.client() as client:
        with work.going_on():
            for name in ("m1", "m2", "m3"):
                cluster.restart(name)
                wait_until(lambda: sorted(roles(client).values()), lambda seen: seen == ["follower"] * 2 + ["leader"])
        work.judge(client)
        assert len(wait_until(lambda: equal(client), lambda seen: len(seen) == 1)) == 1


def test_a_leader_that_is_told_to_stop_hands_over_first(fresh_cluster: Fresh) -> None:
    cluster = fresh_cluster(masters=3, agents=1)
    leader = cluster.leader()
    cluster.kill(leader, signal.SIGTERM)

    assert f"{leader} hands over to" in cluster.log(leader)
    assert cluster.leader() != leader


@pytest.mark.long
def test_one_master_grows_to_three_under_load(fresh_cluster: Fresh, tmp_path: Path, wait_until: WaitUntil) -> None:
    cluster = fresh_cluster(masters=1, agents=2)
    work = Work(cluster, tmp_path / "witness")
    with cluster.client() as client:
        with work.going_on():
            assert cluster.resize(3) == ["m1", "m2", "m3"]
            assert sorted(roles(client)) == ["m1", "m2", "m3"]  # with this answer the client has heard of them too
            cluster.kill("m1")  # the founder: agents and clients have to have heard of the others
            wait_until(lambda: [role for role in roles(client).values() if role == "leader"])
            before = len(work.acknowledged)
            wait_until(lambda: len(work.acknowledged) > before + 10)
            cluster.restart("m1")
        work.judge(client)
        kinds = [event.kind for event in client.events() if event.kind.startswith("master.")]
        assert kinds == ["master.added"] * 3


def test_one_that_is_lost_for_good_is_replaced(fresh_cluster: Fresh, tmp_path: Path, wait_until: WaitUntil) -> None:
    cluster = fresh_cluster(masters=3, agents=2)
    work = Work(cluster, tmp_path / "witness")
    with cluster.client() as client:
        with work.going_on():
            lost = cluster.leader()
            cluster.kill(lost)
            new = cluster.replace_master(lost)
        assert sorted(roles(client)) == sorted({"m1", "m2", "m3", new} - {lost})
        work.judge(client)
        wait_until(lambda: equal(client), lambda seen: len(seen) == 1)
        for name in roles(client):  # the newcomer counts: without it there would be no majority
            if name != new:
                cluster.kill(name)
                break
        assert client.command(["true"]).wait(60).exit_code == 0


def test_three_shrink_to_one_and_who_left_ends_and_stays_out(fresh_cluster: Fresh) -> None:
    cluster = fresh_cluster(masters=3, agents=1, settings=STEADY)
    argv = {entry.id: entry.argv for entry in cluster.processes}
    with cluster.client() as client:
        client.transfer("m3")
        assert cluster.leader() == "m3"
        assert cluster.resize(1) == ["m1"]
        assert roles(client) == {"m1": "leader"}
        assert client.command(["true"]).wait(60).exit_code == 0

    again = subprocess.run(argv["m3"], capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == (3 if "was removed from the cluster" in again.stderr else 2), again.stderr


def test_what_cannot_be_is_refused_and_changes_nothing(fresh_cluster: Fresh, tmp_path: Path) -> None:
    cluster = fresh_cluster(masters=3, agents=1)
    with cluster.client() as client:
        before = roles(client).keys()
        with pytest.raises(Rejected) as absent:
            client.add_master("m4", "127.0.0.1", port=1, raft_port=2, timeout_s=1.0)
        with pytest.raises(Rejected) as unknown:
            client.remove_master("m9")
        cluster.kill("m1")
        with pytest.raises(Rejected) as dead:
            client.transfer("m1")

        assert (absent.value.code, unknown.value.code, dead.value.code) == (
            "not_ready",
            "unknown_master",
            "transfer_failed",
        )
        assert roles(client).keys() == before


def test_the_command_line_changes_masters(fresh_cluster: Fresh, tmp_path: Path) -> None:
    cluster = fresh_cluster(masters=3, agents=1)

    def ctl(*words: str) -> subprocess.CompletedProcess[str]:
        program = [cluster.processes[0].argv[0], "-m", "depalma.ctl", "--masters", ",".join(cluster.masters)]
        program += ["--token-file", cluster.token_file]
        return subprocess.run([*program, *words], capture_output=True, text=True, timeout=60, check=False)

    target = next(name for name in ("m1", "m2") if name != cluster.leader())
    assert json.loads(ctl("master", "transfer", target, "-o", "json").stdout) == {"leader": target}
    removed = ctl("master", "remove", "m3")
    assert (removed.returncode, removed.stdout.split()) == (0, ["Masters", "m1,", "m2"])
    assert "2 masters survive no more failures than 1" in removed.stderr
    assert (ctl("master", "remove", "m3").returncode, ctl("master", "add", "m3").returncode) == (3, 2)
    late = ctl("master", "add", "m3", "-f", str(cluster.directory / "cluster.yaml"), "--wait", "1s")
    assert late.returncode == 5
    assert "m3 did not catch up" in late.stderr
