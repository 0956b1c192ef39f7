"""Webhooks on a cluster of real processes: receivers go, leaders are killed, every id arrives, in order."""

from __future__ import annotations

import hashlib
import hmac
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from depalma import AsyncClient, Client, LocalCluster, Rejected
from depalma.testing.one_master import free_port

WaitUntil = Callable[..., Any]
PAGE = Path(__file__).parents[2] / "docs" / "webhooks.md"


class Receiver:
    """Writes down what comes; it can be down and come back on its port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.secret = ""
        self.requests: list[tuple[int, dict[str, Any]]] = []
        self.forged: list[int] = []
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                number = int(self.headers["Depalma-Id"])
                signed = self.headers["Depalma-Timestamp"].encode() + b"." + body
                wanted = "v1=" + hmac.new(receiver.secret.encode(), signed, hashlib.sha256).hexdigest()
                if self.headers["Depalma-Signature"] != wanted:
                    receiver.forged.append(number)
                receiver.requests.append((number, json.loads(body)))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="receiver")
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    @property
    def firsts(self) -> list[int]:
        """Returns the ids in the order in which each came first."""
        return list(dict.fromkeys(number for number, _ in self.requests))

    def check(self, last: int) -> None:
        """Every id came, the first of each in order; what came twice was the same; all of it was signed."""
        assert self.firsts == list(range(1, last + 1))
        assert self.forged == []
        known: dict[int, Any] = {}
        for number, body in self.requests:
            assert body["id"] == number
            assert body["missing"] == 0
            assert known.setdefault(number, body["event"]) == body["event"]
        indices = [known[number]["index"] for number in range(1, last + 1)]
        assert indices == sorted(set(indices))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    made.start()
    yield made
    made.stop()


@contextmanager
def submitting(client: Client) -> Iterator[list[int]]:
    """Submits a job every few moments, whoever leads; the list has the ids of those that were acknowledged."""
    jobs: list[int] = []
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.05):
            jobs.append(client.command(["true"], name="hooked").id)

    thread = threading.Thread(target=work, name="submitting")
    thread.start()
    try:
        yield jobs
    finally:
        over.set()
        thread.join()


def kill_leader(cluster: LocalCluster) -> None:
    former = cluster.leader()
    cluster.kill(former, signal.SIGKILL)
    cluster.restart(former)


def survive(cluster: LocalCluster, client: Client, receiver: Receiver, wait_until: WaitUntil, down_s: float) -> None:
    """The receiver is down for a while in which the leader is killed twice; before and after it is killed, too."""
    receiver.secret = client.add_webhook("w", receiver.url, kinds=["job.*"]).secret
    with submitting(client) as jobs:
        wait_until(lambda: len(receiver.firsts), lambda count: count > 20)
        kill_leader(cluster)
        so_far = len(receiver.firsts)
        wait_until(lambda: len(receiver.firsts), lambda count: count > so_far + 20)
        receiver.stop()
        down = time.monotonic()
        wait_until(lambda: client.webhook("w").error, timeout_s=60)
        since = client.webhook("w").failing_since
        kill_leader(cluster)
        wait_until(lambda: time.monotonic() - down, lambda passed: passed > down_s / 2, down_s + 30)
        kill_leader(cluster)
        wait_until(lambda: time.monotonic() - down, lambda passed: passed > down_s, down_s + 30)
        view = wait_until(lambda: client.webhook("w"), lambda view: view.waiting > 20)
        assert (view.failing_since, view.missing) == (since, 0)
        receiver.start()
        wait_until(lambda: client.webhook("w").error, lambda error: not error, 90)
        kill_leader(cluster)
    for job in jobs:
        assert client.job(job).wait(60).state == "succeeded"
    last = wait_until(lambda: client.webhook("w"), lambda view: view.waiting == 0, 90).last
    receiver.check(last)
    for kind in ("job.submitted", "job.finished"):
        told = [
            body["event"]["job"] for number, body in dict(receiver.requests).items() if body["event"]["kind"] == kind
        ]
        assert sorted(told) == sorted(jobs)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_every_id_arrives_although_the_receiver_is_down_and_leaders_are_killed(
    fresh_cluster: Callable[..., LocalCluster], receiver: Receiver, wait_until: WaitUntil
) -> None:
    cluster = fresh_cluster(masters=3, agents=1, slots=2)
    with cluster.client() as client:
        survive(cluster, client, receiver, wait_until, down_s=6.0)


@pytest.mark.long
def test_a_webhook_from_the_command_line(
    ctl: Callable[..., subprocess.CompletedProcess[str]],
    value: Callable[..., Any],
    receiver: Receiver,
    wait_until: WaitUntil,
) -> None:
    """From its making to its end; the secret is shown once."""
    receiver.secret = ctl("webhook", "add", "ci", receiver.url, "--event", "job.*", "--tag", "night").stdout.strip()
    assert len(receiver.secret) > 30
    assert "id 1 delivered" in ctl("webhook", "test", "ci").stderr
    ctl("run", "--tag", "night", "--", "true")
    ctl("run", "--", "true")
    assert "id 4 delivered" in ctl("webhook", "test", "ci").stderr
    assert [body["event"]["kind"] for _, body in receiver.requests] == [
        "webhook.tested", "job.submitted", "job.finished", "webhook.tested",
    ]  # fmt: skip
    assert receiver.requests[1][1]["job"]["tags"] == ["night"]
    (row,) = value("webhook", "ls")
    assert (row["last"], row["delivered"], row["waiting"], row["error"]) == (4, 4, 0, "")
    assert receiver.secret not in ctl("webhook", "ls", "-o", "json").stdout + ctl("webhook", "show", "ci").stdout
    assert "3 ids from 2 on" in ctl("webhook", "replay", "ci", "--from", "2").stderr
    assert "from: 9 given; allowed: 1 to " in ctl("webhook", "replay", "ci", "--from", "9", "--skip", code=5).stderr
    former, receiver.secret = receiver.secret, ctl("webhook", "set", "ci", "--new-secret").stdout.strip()
    assert receiver.secret != former
    receiver.stop()
    wait_until(
        lambda: ctl("webhook", "test", "ci", "--wait", "2s", code=1).stderr,
        lambda said: "is not delivered: cannot connect to 127.0.0.1:" in said,  # once that has been tried
    )
    assert "failing for" in ctl("webhook", "show", "ci").stdout
    table = ctl("webhook", "ls").stdout.splitlines()
    assert table[0].split()[:3] == ["NAME", "STATE", "KINDS"]
    assert table[1].split()[:2] == ["ci", "failing"]
    assert "kinds: 'job.finnished' given" in ctl("webhook", "set", "ci", "--event", "job.finnished", code=5).stderr
    ctl("webhook", "remove", "ci")
    assert value("webhook", "ls") == []
    assert "there is no webhook 'ci'" in ctl("webhook", "show", "ci", code=None).stderr


async def test_the_asyncio_client_has_all_of_it(cluster: LocalCluster, receiver: Receiver) -> None:
    async with AsyncClient(cluster.masters, token_file=cluster.token_file) as client:
        saved = await client.add_webhook("mine", receiver.url, kinds=("task.*",), users=["ann"], keep=10)
        receiver.secret = saved.secret
        assert await client.test_webhook("mine") == 1
        assert (await client.set_webhook("mine", users=())).secret == ""
        assert (await client.webhook("mine")).users == ()
        with pytest.raises(Rejected, match="from: 7 given"):
            await client.replay_webhook("mine", 7)
        assert (await client.replay_webhook("mine", 1)).last == 1
        assert [view.name for view in await client.webhooks()] == ["mine"]
        await client.remove_webhook("mine")


def test_the_receiver_of_the_page_takes_what_is_true_and_nothing_else(
    client: Client, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """The program of docs/webhooks.md, as it stands."""
    program = PAGE.read_text().split("```python\n")[1].split("```")[0]
    port = free_port()
    (tmp_path / "receiver.py").write_text(program.replace("8080", str(port)))
    secret = client.add_webhook("page", f"http://127.0.0.1:{port}/").secret
    (tmp_path / "hook.secret").write_text(secret + "\n")
    process = subprocess.Popen([sys.executable, "-u", "receiver.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        client.test_webhook("page")
        wait_until(lambda: client.webhook("page").delivered, timeout_s=60)
        client.set_webhook("page", new_secret=True)
        client.test_webhook("page")
        error = wait_until(lambda: client.webhook("page").error, timeout_s=60)
        assert error == "answered 401 Unauthorized"
    finally:
        client.remove_webhook("page")
        process.terminate()
        said, _ = process.communicate(timeout=60)
    assert said.startswith("1 webhook.tested")
