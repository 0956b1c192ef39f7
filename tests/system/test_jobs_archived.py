"""Finished jobs outlive their place in the state: on each master, whoever leads, whatever becomes of a file."""

from __future__ import annotations

import csv
import io
import json
import os
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from depalma import Client, LocalCluster, Rejected
from depalma.accounting import grouped

WaitUntil = Callable[..., Any]


def ask(cluster: LocalCluster, master: str, path: str) -> Any:
    """Returns what one master answers itself."""
    token = Path(cluster.token_file).read_text().strip()
    url = next(entry.url for entry in cluster.processes if entry.id == master)
    request = urllib.request.Request(f"{url}{path}", headers={"Authorization": f"Bearer {token}"})
    tls = ssl.create_default_context(cafile=cluster.ca)
    tls.check_hostname = False  # its certificate names the master, which the answer names, too
    with urllib.request.urlopen(request, timeout=60, context=tls) as answer:
        assert answer.headers["Depalma-Master"] == master
        return json.load(answer)


def listed(client: Client, **filters: Any) -> list[int]:
    return [view.id for view in client.jobs(**{"all": True, "limit": 1000, **filters})]


def archived(cluster: LocalCluster, master: str) -> list[int]:
    page = ask(cluster, master, "/v1/jobs?all=1&limit=1000&consistency=stale")
    return [view["id"] for view in page["jobs"] if view["archived"]]


def ctl(cluster: LocalCluster, *arguments: str, code: int = 0) -> str:
    masters = ",".join(cluster.masters)
    environment = {
        **os.environ,
        "DEPALMA_MASTERS": masters,
        "DEPALMA_TOKEN_FILE": cluster.token_file,
        "DEPALMA_CA": cluster.ca,
    }
    done = subprocess.run(
        [sys.executable, "-m", "depalma.ctl", *arguments], env=environment, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_forgotten_jobs_are_found_whoever_leads_and_whatever_becomes_of_a_file(
    fresh_cluster: Callable[..., LocalCluster], wait_until: WaitUntil
) -> None:
    cluster = fresh_cluster(masters=3, agents=1, settings={"history_jobs": 3, "api_tls": "on"})
    assert all(url.startswith("https:") for url in cluster.masters), "masters ask each other in TLS"
    with cluster.client() as client:
        many = client.command(["echo", "{}"], arguments=[str(n) for n in range(50)], name="many", tags=["wide"])
        bad = client.command(["sh", "-c", "echo no >&2; exit 3"], name="bad-1")
        many.wait(60)
        bad.wait(60)
        jobs = [many.id, bad.id, *(client.command(["true"], name=f"job-{n}").id for n in range(8))]
        for job in jobs:
            client.job(job).wait(60)

        # All but the newest three go, once a majority has them; a search does not show the seam.
        wait_until(lambda: [view.id for view in client.jobs()], lambda seen: len(seen) <= 3)
        assert listed(client) == jobs[::-1]
        assert listed(client, name="job-*") == jobs[:1:-1]
        assert listed(client, state="failed") == [bad.id]
        assert listed(client, tag="wide") == [many.id]
        assert client.job(bad.id).view().archived
        assert len(many.tasks()) == 50
        assert "exit code 3" in " ".join(bad.explain())
        assert refused(lambda: many.logs(7)) == "output_gone"

        # The leader is lost: the next one has them, too, and more are forgotten without the one that is down.
        lost = cluster.leader()
        cluster.kill(lost)
        assert listed(client) == jobs[::-1]
        more = [client.command(["true"], name="later").id for _ in range(6)]
        for job in more:
            client.job(job).wait(60)
        jobs += more
        wait_until(lambda: [view.id for view in client.jobs()], lambda seen: len(seen) <= 3)
        assert listed(client) == jobs[::-1]

        # Its file is damaged meanwhile: it begins anew, and gets everything from the others.
        file = cluster.directory / lost / "jobs.sqlite"
        for suffix in ("-wal", "-shm"):
            file.with_name(file.name + suffix).unlink(missing_ok=True)
        file.write_bytes(b"not a database" * 1000)
        cluster.restart(lost)
        leader = cluster.leader()
        expected = archived(cluster, leader)
        wait_until(lambda: archived(cluster, lost), lambda seen: seen == expected)
        wait_until(lambda: ask(cluster, lost, "/v1/archive")["missing"], (0).__eq__)
        assert file.with_name("jobs.sqlite.damaged").read_bytes().startswith(b"not a database")

        # What they used, from live and archived ones.
        rows = list(client.accounting())
        assert [row.job for row in rows] == jobs[::-1]
        (failed,) = [row for row in rows if row.job == bad.id]
        assert (failed.tasks, failed.failed, failed.attempts) == (1, 1, 1)
        (by_host,) = grouped(rows, "host")
        assert (by_host.key, by_host.tasks) == ("h1", 50 + len(jobs) - 1)
        table = list(csv.DictReader(io.StringIO(ctl(cluster, "accounting", "-q", "-o", "csv"))))
        assert [int(row["job"]) for row in table] == jobs[::-1]
        assert {row["hosts"] for row in table} == {"h1"}
        assert "Archived" in ctl(cluster, "show", str(bad.id))
        assert f"job {bad.id} " in ctl(cluster, "result", str(bad.id), "--output", "x", code=1)
        assert "there is no job 999" in ctl(cluster, "show", "999", code=3)


def refused(what: Callable[[], object]) -> str:
    try:
        what()
    except Rejected as error:
        return error.code
    raise AssertionError("it was not refused")
