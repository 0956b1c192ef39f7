"""The code log on real clusters: under load, under faults, on disks that were replaced."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from depalma import Client, LocalCluster
from depalma.archive import pack
from depalma.codetree import CodeEntry, tree_at, tree_digest
from depalma.model import HostView, TaskView

Fresh = Callable[..., LocalCluster]
WaitUntil = Callable[..., Any]

#: What a task saw: the content of the package's files, by its own look at them.
LOOK = 'cat "$DEPALMA_CODE_DIR"/pkg/*.py "$DEPALMA_CODE_DIR"/pkg/deep/*.py | sha256sum | cut -c1-64'


class Package:
    """A folder of code whose every file says its version."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "pkg"
        (self.path / "deep").mkdir(parents=True)
        self.version = 0

    def change(self) -> None:
        """Makes the next version."""
        self.version += 1
        (self.path / "__init__.py").write_text(f"VERSION = {self.version}\n")
        (self.path / "main.py").write_text(
            "from pkg import VERSION\nfrom pkg.deep.inner import V\ndef both(_): return VERSION, V\n"
        )
        (self.path / "deep" / "inner.py").write_text(f"V = {self.version}\n" + f"# {self.version}\n" * 50)

    def seen(self) -> str:
        """Returns what LOOK prints."""
        files = [*sorted(self.path.glob("*.py")), *sorted((self.path / "deep").glob("*.py"))]
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def log_of(client: Client) -> list[CodeEntry]:
    return [
        CodeEntry(
            index=view.index, name=view.name, kind=view.kind, digest=view.digest, size_bytes=view.size,
            added_at=view.added_at, added_by=view.added_by, requirements=view.requirements,
            rollback_of=view.rollback_of,
        )
        for view in client.code()
    ]  # fmt: skip


def check_gapless(client: Client) -> None:
    assert [view.index for view in client.code()] == list(range(1, len(client.code()) + 1))


# ---------------------------------------------------------------- a hundred changes


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_hundred_rapid_changes_under_load(fresh_cluster: Fresh, tmp_path: Path) -> None:
    """Each task, pinned or not, saw exactly the files whose digest it records, while newer ones came."""
    cluster = fresh_cluster(slots=2)
    package = Package(tmp_path)
    seen: dict[int, str] = {}
    jobs: list[tuple[int, Any]] = []
    functions: list[tuple[int, Any]] = []
    chance = random.Random(7)
    with cluster.client() as client:
        for _ in range(100):
            package.change()
            version = client.add_code(package.path, timeout_s=0.0)
            seen[version.index] = package.seen()
            jobs.append((version.index, client.command(["sh", "-c", LOOK], array=2)))
            pinned = chance.randint(1, version.index)
            jobs.append((pinned, client.command(["sh", "-c", LOOK], code_index=pinned)))
            if version.index % 20 == 0:
                functions.append((pinned, client.map("pkg.main:both", [0], code_index=pinned)))
        assert sorted(seen) == list(range(1, 101))
        check_gapless(client)
        log = log_of(client)
        for index, job in jobs:
            job.wait(120)
            wanted = tree_digest(tree_at(log, index))
            for task in job.tasks():
                assert (task.state, task.code_index, task.code_digest) == ("succeeded", index, wanted), task
                assert job.logs(task.index).strip() == seen[index]
        for index, job in functions:
            assert list(job.results(timeout=120)) == [(index, index)]


# ---------------------------------------------------------------- F23


#: agents that are killed while they sync, over the time that it takes
KILLS, SYNC_S = 20, 0.15


class Faults:
    """What happens to code on its way, and the proof that it does no harm."""

    def __init__(self, cluster: LocalCluster, client: Client, package: Package, wait_until: WaitUntil) -> None:
        self.cluster = cluster
        self.client = client
        self.package = package
        self.wait_until = wait_until
        self.seen: dict[int, str] = {}
        self.jobs: list[tuple[int, Any]] = []
        self.chance = random.Random(23)

    def add(self, times: int = 1) -> int:
        """Adds versions, waits for nobody, and leaves work for the newest."""
        index = 0
        for _ in range(times):
            self.package.change()
            index = self.client.add_code(self.package.path, timeout_s=0.0).index
            self.seen[index] = self.package.seen()
        self.jobs.append((index, self.client.command(["sh", "-c", LOOK], array=4)))
        return index

    def agree(self) -> float:
        """Returns after how long every host had the leader's tree, by its own signed word and on its disk."""
        began_s = time.monotonic()

        def look() -> list[dict[str, Any]]:
            status = self.client.get("/v1/code/status")
            return [h for h in status["hosts"] if (h["lag"], h["signature"], h["state"]) != (0, "valid", "up")]

        self.wait_until(look, until=lambda behind: not behind, timeout_s=60.0)
        newest = self.client.code()[-1].index
        for host in ("h1", "h2"):
            tree = self.cluster.directory / host / "code" / "trees" / str(newest) / "pkg"
            name, kind, data = pack(tree, "pkg")
            digest = hashlib.sha256(data).hexdigest()
            assert digest == tree_at(log_of(self.client), newest)["pkg"].digest, (host, name, kind)
        return time.monotonic() - began_s

    def check_tasks(self) -> None:
        """No task ran below the index that it needs, and each saw what it records."""
        log = log_of(self.client)
        for index, job in self.jobs:
            job.wait(100)
            for task in job.tasks():
                assert (task.state, task.code_index) == ("succeeded", index), task
                assert task.code_digest == tree_digest(tree_at(log, index))
                assert job.logs(task.index).strip() == self.seen[index]
        starts = [event for event in self.client.events() if event.kind == "task.assigned"]
        assert starts


@pytest.mark.long
@pytest.mark.timeout(300)
def test_hosts_end_with_the_leaders_tree(fresh_cluster: Fresh, wait_until: WaitUntil, tmp_path: Path) -> None:
    """F23: agents killed while they sync, bytes flipped on masters and agents, lags of 1 to 10 entries."""
    cluster = fresh_cluster(settings={"lease_s": 3.0, "heartbeat_s": 0.2, "code_lag_s": 0.5, "code_kick_s": 60.0})
    worst_s = 0.0
    with cluster.client() as client:
        faults = Faults(cluster, client, Package(tmp_path), wait_until)
        faults.add(3)
        faults.agree()

        for turn in range(KILLS):  # killed at any point of syncing: early, late, and everywhere between
            host = ("h1", "h2")[turn % 2]
            killer = threading.Timer((turn + faults.chance.random()) * SYNC_S / KILLS, cluster.kill, (host,))
            killer.start()
            faults.add(faults.chance.randint(1, 5))
            killer.join()
            cluster.restart(host, wait_s=0)
            worst_s = max(worst_s, faults.agree())

        for behind in (1, 3, 10):  # away for so many entries
            cluster.kill("h1", signal.SIGKILL)
            faults.add(behind)
            cluster.restart("h1", wait_s=0)
            worst_s = max(worst_s, faults.agree())

        cluster.pause("h2")  # frozen for so many
        faults.add(5)
        cluster.resume("h2")
        worst_s = max(worst_s, faults.agree())

        # A byte of the newest archive changes on a master's disk, before one host has it.
        cluster.kill("h1")
        faults.add(2)
        digest = client.code()[-1].digest
        leader = cluster.leader()
        blob = cluster.directory / leader / "blobs" / digest[:2] / digest[2:]
        wait_until(blob.exists)  # a majority has it, the leader in the end
        right = blob.read_bytes()
        blob.write_bytes(right[:40] + bytes([right[40] ^ 1]) + right[41:])
        cluster.restart("h1", wait_s=0)
        worst_s = max(worst_s, faults.agree())

        # A byte of the tree changes on an agent.
        newest = client.code()[-1].index
        file = cluster.directory / "h2" / "code" / "trees" / str(newest) / "pkg" / "main.py"
        text = file.read_bytes()
        file.write_bytes(text[:5] + bytes([text[5] ^ 1]) + text[6:])
        wait_until(lambda: file.exists() and file.read_bytes() == text)  # it is taken away and fetched again
        worst_s = max(worst_s, faults.agree())

        # The leader dies while a host is behind.
        cluster.pause("h1")
        faults.add(3)
        cluster.kill(cluster.leader())
        cluster.resume("h1")
        worst_s = max(worst_s, faults.agree())
        faults.check_tasks()
        check_gapless(client)
    print(f"F23: hosts agreed after {worst_s:.1f} s at worst")  # noqa: T201


# ---------------------------------------------------------------- hosts that do not come on


def host(client: Client, name: str) -> HostView:
    return next(view for view in client.hosts() if view.name == name)


def test_a_host_that_does_not_come_on(fresh_cluster: Fresh, wait_until: WaitUntil, tmp_path: Path) -> None:
    """It is shown as lagging with the reason, kicked out after the limit, and comes back by catching up."""
    # Long enough for those that do come on, on a busy machine.
    cluster = fresh_cluster(settings={"code_lag_s": 0.5, "code_kick_s": 6.0})
    switch = tmp_path / "switch"
    with cluster.client() as client:
        old = client.run_on_hosts(["true"], timeout_s=60)
        assert (old.missing, old.failed, sorted(old.acknowledged)) == ((), {}, ["h1", "h2"])
        before = list(client.events())[-1].index
        script = f'[ "$DEPALMA_HOST" = h1 ] || [ -e {switch} ] || {{ echo no switch on $DEPALMA_HOST; exit 7; }}'
        added = client.run_on_hosts(["sh", "-c", script], timeout_s=60)
        assert (added.missing, added.failed) == (("h2",), {"h2": 7})
        assert "exit code 7" in added.lagging["h2"]
        assert host(client, "h2").state in ("lagging", "kicked")
        assert host(client, "h1").state == "up"

        job = client.command(["sh", "-c", "echo $DEPALMA_HOST"], array=6)  # above what h2 has
        assert {task.host for task in job.wait(60).tasks()} == {"h1"}
        wait_until(lambda: host(client, "h2").state, until="kicked".__eq__)
        refused = client.command(["true"], on_host="h2", code_index=old.index)
        assert "kicked out" in " ".join(client.get(f"/v1/jobs/{refused.id}/explain")["lines"])
        assert client.run_on_hosts(["true"], timeout_s=60).missing == ()  # nobody waits for it

        switch.touch()
        assert client.post("/v1/code/retry", {"hosts": ["h2"]}) == {"hosts": ["h2"]}
        wait_until(lambda: host(client, "h2").state, until="up".__eq__)
        assert refused.wait(60).state == "succeeded"
        said = [event for event in client.events(after=before) if event.host == "h2"]
        kinds = [event.kind for event in said if event.kind.startswith("code.") and event.kind != "code.acknowledged"]
        # It lags twice where its agent is slow to say why.
        assert [kind for kind, _ in groupby(kinds)] == ["code.lagging", "code.kicked", "code.caught_up"]
        assert {one["signature"] for one in client.get(f"/v1/code/{added.index}/hosts")["hosts"]} == {"valid"}


# ---------------------------------------------------------------- masters


def blobs_of(cluster: LocalCluster, master: str) -> set[str]:
    folders = (cluster.directory / master / "blobs").glob("??")
    return {folder.name + file.name for folder in folders for file in folder.iterdir()}


def test_a_master_with_a_new_disk_gets_the_blobs(fresh_cluster: Fresh, wait_until: WaitUntil, tmp_path: Path) -> None:
    """By itself, all that the state names."""
    cluster = fresh_cluster(agents=1)
    package = Package(tmp_path)
    with cluster.client() as client:
        for _ in range(5):
            package.change()
            client.add_code(package.path)
        named = {view.digest for view in client.code()}
        follower = next(e.id for e in cluster.processes if e.role == "master" and e.id != cluster.leader())
        wait_until(lambda: blobs_of(cluster, follower) >= named)
        cluster.kill(follower)
        shutil.rmtree(cluster.directory / follower / "blobs")
        cluster.restart(follower)
        wait_until(lambda: blobs_of(cluster, follower) >= named)


@pytest.mark.timeout(120)
def test_what_is_added_after_a_restart_of_everything(fresh_cluster: Fresh, tmp_path: Path) -> None:
    """The log goes on where it was; a rollback brings back the first tree."""
    cluster = fresh_cluster(masters=1, agents=1)
    package = Package(tmp_path)
    with cluster.client() as client:
        package.change()
        first, saw = client.add_code(package.path), package.seen()
        for name in ("h1", "m1"):
            cluster.kill(name)
        cluster.restart("m1", wait_s=0)
        cluster.restart("h1")
        package.change()
        client.add_code(package.path)
        back = client.roll_back_code(first.index)
        assert (back.index, back.digest, back.missing) == (3, first.digest, ())
        tasks: list[TaskView] = client.command(["sh", "-c", LOOK]).wait(60).tasks()
        assert client.job(1).logs().strip() == saw
        assert tasks[0].code_digest == tree_digest(tree_at(log_of(client), 1))
