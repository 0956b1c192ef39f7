"""A cluster of real processes moves from plain HTTP to TLS while it works, and then takes nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from depalma import AsyncClient, Client, LocalCluster, NoLeader, Rejected
from depalma.certificates import Authority
from depalma.client.transport import Request
from depalma.config import load
from depalma.local import folder

Fresh = Callable[..., LocalCluster]
WaitUntil = Callable[..., Any]
LARGE = 2_000_000


def set_mode(cluster: LocalCluster, mode: str) -> None:
    """Changes the cluster file, and restarts one master after the other."""
    config = load(cluster.directory / folder.CLUSTER_FILE)
    folder.save(cluster.directory, replace(config, settings=replace(config.settings, api_tls=mode)))
    scheme = "http" if mode in ("off", "allow") else "https"
    for entry in cluster.processes:
        if entry.role == "master":
            cluster.restart(entry.id, wait_s=0)
            with Client(entry.url.replace("http", scheme), token_file=cluster.token_file, ca=cluster.ca) as client:
                deadline = time.monotonic() + 60
                while any(master.role == "unreachable" for master in client.masters()):
                    assert time.monotonic() < deadline, client.masters()
                    time.sleep(0.02)


class Caller:
    """Runs one task after the other on a cluster until it is told to stop; each has to succeed."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.done = 0
        self._stopping = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                assert self.client.submit(abs, -self.done).result(60) == self.done
                self.done += 1
        except BaseException as error:
            self._problem = error

    def stop(self) -> int:
        self._stopping.set()
        self._thread.join()
        self.client.close()
        if self._problem is not None:
            raise self._problem
        return self.done


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_cluster_moves_to_tls_without_a_stop(fresh_cluster: Fresh, wait_until: WaitUntil, tmp_path: Path) -> None:
    """allow, prefer, on, as docs/operations.md says: no call fails, no agent is restarted or lost."""
    cluster = fresh_cluster(agents=1)
    plain, secure = cluster.masters, [url.replace("http:", "https:") for url in cluster.masters]
    calls = Caller(Client(plain, token_file=cluster.token_file, deadline_s=60))
    calls_secure = Caller(Client(secure, token_file=cluster.token_file, ca=cluster.ca, deadline_s=60))
    try:
        set_mode(cluster, "prefer")
        assert calls.stop() > 0
        set_mode(cluster, "on")
    finally:
        assert min(calls.stop(), calls_secure.stop()) > 0

    with Client(secure, token_file=cluster.token_file, ca=cluster.ca) as client:
        assert not [event for event in client.events() if event.kind in ("host.lost", "task.lost")]
        assert len(client.submit(bytes, LARGE).result(60)) == LARGE  # a blob from the agent
        assert client.submit(len, bytes(LARGE)).result(60) == LARGE  # and one to it
        check_clients(cluster, secure, tmp_path)
        check_refusals(cluster, plain, secure, client, tmp_path)
        cluster.kill("h1", 15)  # its monitor tells the masters, by TLS too
        wait_until(lambda: [event for event in client.events() if event.kind == "host.lost"])


def check_clients(cluster: LocalCluster, secure: list[str], tmp_path: Path) -> None:
    """asyncio's client, and depalmactl by a context that names the authority."""

    async def ask() -> Any:
        async with AsyncClient(secure, token_file=cluster.token_file, ca=cluster.ca) as client:
            return await (await client.submit(abs, -5))

    assert asyncio.run(ask()) == 5
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DEPALMA_")}
    environ["XDG_CONFIG_HOME"] = str(tmp_path / "config")

    def ctl(*words: str) -> str:
        argv = [sys.executable, "-m", "depalma.ctl", *words]
        return subprocess.run(argv, env=environ, check=True, capture_output=True, text=True, timeout=60).stdout

    ctl("context", "add", "lab", ",".join(secure), "--token-file", cluster.token_file, "--ca", cluster.ca)
    assert ctl("run", "--", "echo", "hello") == "hello\n"
    assert {finding["status"] for finding in json.loads(ctl("-o", "json", "doctor"))} <= {"ok", "warn"}


def check_refusals(cluster: LocalCluster, plain: list[str], secure: list[str], client: Client, tmp_path: Path) -> None:
    """Plain text and a client that believes in another authority; both are counted."""
    with (
        Client(plain, token_file=cluster.token_file, deadline_s=5) as wrong,
        pytest.raises(Rejected, match="say https"),
    ):
        wrong.jobs()
    (tmp_path / "other.crt").write_bytes(Authority.make("local").certificate_pem())
    with (
        Client(secure, token_file=cluster.token_file, ca=tmp_path / "other.crt", deadline_s=1) as wrong,
        pytest.raises(NoLeader, match="not to be trusted"),
    ):
        wrong.jobs()
    counts: dict[str, int] = {}
    for url in secure:
        with Client([url], token_file=cluster.token_file, ca=cluster.ca) as one:
            lines = one.request(Request("GET", "/metrics")).body.decode().splitlines()
        for line in lines:
            if line.startswith("depalma_api_refused_total"):
                name, _, number = line.rpartition(" ")
                counts[name] = counts.get(name, 0) + int(number)
    assert counts['depalma_api_refused_total{reason="plain_text"}'] > 0, counts
    assert counts['depalma_api_refused_total{reason="refused_us"}'] > 0, counts
