"""A machine that has nothing but a string joins a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import NameOID

from depalma import Client, LocalCluster
from depalma.certificates import HOSTS_FILE, HOSTS_KEY_FILE, Authority, load_certificates
from depalma.client.connections import HttpConnection
from depalma.client.transport import Request
from depalma.joining import Invitation
from depalma.trust import Trust

Ctl = Callable[..., subprocess.CompletedProcess[str]]


def agent(text: str, home: Path, *words: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "depalma.remote", "--join", "-", *words]
    environ = {**os.environ, "HOME": str(home)}
    process = subprocess.Popen(argv, env=environ, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.close()
    process.stdin = None
    return process


@contextmanager
def running(text: str, home: Path) -> Iterator[subprocess.Popen[str]]:
    process = agent(text, home)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def refused(text: str, home: Path) -> str:
    """Returns the last words of an agent that must not get in."""
    process = agent(text, home)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert not list(home.rglob("agent.token"))
    return said.splitlines()[-1]


def folder(base: Path, name: str) -> Path:
    made = base / name
    made.mkdir()
    return made


def invite(cluster: LocalCluster, host: str, *words: str) -> str:
    argv = [sys.executable, "-m", "depalma.ctl", "--masters", ",".join(cluster.masters)]
    argv += ["--token-file", cluster.token_file, "--ca", cluster.ca, "host", "invite", host, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.mark.long
@pytest.mark.parametrize("mode", ["allow", "on"])
def test_a_string_lets_one_machine_in_once_also_across_a_fail_over(
    fresh_cluster: Callable[..., LocalCluster], wait_until: Callable[..., Any], tmp_path: Path, mode: str
) -> None:
    """By TLS inside plain HTTP, and by the API's own."""
    cluster = fresh_cluster(masters=3, agents=0, settings={"api_tls": mode})
    with cluster.client() as client:
        text = invite(cluster, "h9")
        assert Invitation.read(text).secret not in "".join(map(str, client.events()))
        kill_leader(cluster, client)

        with running(text, folder(tmp_path, "first")) as process:
            wait_until(lambda: [h.name for h in client.hosts() if h.state == "up"], lambda up: up == ["h9"])
            assert client.command(["hostname"]).wait(60).state == "succeeded"

            joined = tmp_path / "first/.local/state/depalma/joined/local/h9"
            files = {path.name: path.stat().st_mode & 0o777 for path in joined.rglob("*") if path.is_file()}
            assert files == dict.fromkeys(("cluster.yaml", "agent.token", "agent.pem", "ca.crt"), 0o600)
            assert process.poll() is None

            # Somebody else has the string too; the one who led then is back, and no longer the leader.
            assert "was used already" in refused(text, folder(tmp_path, "second"))
        wait_until(lambda: client.host("h9").state, lambda state: state != "up")

        # The same machine again, after a reboot: it has its files, and asks nobody.
        with running(text, tmp_path / "first"):
            wait_until(lambda: [h.name for h in client.hosts() if h.state == "up"], lambda up: "h9" in up)
        kinds = [event.kind for event in client.events() if event.host == "h9"]
        assert kinds[:3] == ["host.invited", "host.added", "host.joined"]

        late = invite(cluster, "h8", "--valid", "0s")
        assert "expired" in refused(late, folder(tmp_path, "third"))


def kill_leader(cluster: LocalCluster, client: Client) -> None:
    leader = cluster.leader()
    cluster.kill(leader)
    client.hosts()  # answered by the next one
    cluster.restart(leader)


@pytest.mark.parametrize("mode", ["allow", "on"])
def test_another_authority_is_told_nothing(
    fresh_cluster: Callable[..., LocalCluster], tmp_path: Path, mode: str
) -> None:
    """A string whose hash is of another authority: the masters that it names cannot prove themselves."""
    cluster = fresh_cluster(masters=1, agents=0, settings={"api_tls": mode})
    invitation = Invitation.read(invite(cluster, "h9"))
    wrong = Invitation(invitation.cluster, "h9", invitation.masters, "0" * 64, invitation.secret)

    process = agent(wrong.text(), folder(tmp_path, "home"), "--join-wait", "1")
    _, said = process.communicate(timeout=60)

    assert process.returncode == 4, said
    assert "it shows another authority than the string names; nothing was told to it" in said
    # It is still good: nobody heard the secret.
    with running(invitation.text(), folder(tmp_path, "other")), cluster.client() as client:
        assert client.command(["true"]).wait(60).state == "succeeded"


def test_the_certificate_of_a_host_is_good_for_it_alone(
    fresh_cluster: Callable[..., LocalCluster], wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    """It is what the agent proves itself by; for another host it is refused; it is renewed before it ends."""
    cluster = fresh_cluster(masters=1, agents=1, settings={"api_tls": "on"})
    text = invite(cluster, "h9")
    joined = tmp_path / "home/.local/state/depalma/joined/local/h9"
    own = joined / "secrets/agent.pem"
    with cluster.client() as client:
        with running(text, folder(tmp_path, "home")):
            wait_until(lambda: [h.name for h in client.hosts() if h.state == "up"], lambda up: "h9" in up)
            version = client.run_on_hosts(["true"], timeout_s=60)
            assert sorted(version.acknowledged) == ["h1", "h9"]
            said = client.get(f"/v1/code/{version.index}/hosts")["hosts"]
            assert {each["host"]: each["signature"] for each in said} == {"h1": "valid", "h9": "valid"}
        assert certificate_of(own) == "host h9"
        token = (joined / "secrets/agent.token").read_text().strip()
        assert token != (cluster.directory / "secrets/agent.token").read_text().strip()

        # By the certificate alone, by the token alone, by both: as h9, and as nobody else.
        for shown, bearer in ((own, ""), (None, token), (own, token)):
            assert call(cluster, "GET", "/v1/agent", "h9", shown, bearer) == (400, "bad_field")  # no WebSocket
            assert call(cluster, "POST", "/v1/agent/gone", "h9", shown, bearer, speaks_for="h1") == (
                403, "not_authorised",
            )  # fmt: skip
            assert call(cluster, "GET", "/v1/jobs", "h9", shown, bearer)[0] == 403
        assert call(cluster, "GET", "/v1/agent", "h1", own, token)[0] in (401, 403)
        assert call(cluster, "GET", "/v1/agent", "h1", own, "")[0] == 403
        assert call(cluster, "GET", "/v1/agent", "h1", None, token)[0] == 401

        # One that is about to end, and one that has ended while the machine was off, are replaced.
        authority = Authority.load(cluster.directory / "secrets", HOSTS_FILE, HOSTS_KEY_FILE)
        long_ago = datetime.now(UTC) - timedelta(days=200)
        for old in (authority.sign_host("local", "h9", days=1), authority.sign_host("local", "h9", now=long_ago)):
            own.write_bytes(old)
            with running(text, tmp_path / "home"):
                wait_until(lambda: [h.name for h in client.hosts() if h.state == "up"], lambda up: "h9" in up)
                wait_until(lambda: load_certificates(own)[0].not_valid_after_utc > datetime.now(UTC) + timedelta(80))
            assert own.stat().st_mode & 0o777 == 0o600

        client.remove_host("h9")
        assert call(cluster, "GET", f"/v1/blobs/{'0' * 64}", "h9", own, "")[0] == 401
        assert call(cluster, "GET", f"/v1/blobs/{'0' * 64}", "h9", None, token)[0] == 401
        assert call(cluster, "POST", "/v1/agent/certificate", "h9", own, token)[0] in (400, 403)


def certificate_of(file: Path) -> str:
    (name,) = load_certificates(file)[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


def call(
    cluster: LocalCluster, method: str, path: str, host: str, own: Path | None, token: str, *, speaks_for: str = ""
) -> tuple[int, str]:
    """Returns status and code of what a master answers to somebody who shows these."""
    connection = HttpConnection.to(cluster.masters[0], Trust(cluster.ca, own or ""), timeout_s=60)
    headers = {"Depalma-Host": host, **({"Authorization": f"Bearer {token}"} if token else {})}
    gone = json.dumps({"host": speaks_for or host, "incarnation": "x", "reason": "killed"}).encode()
    try:
        answer = connection.exchange(Request(method, path, gone if method == "POST" else b""), headers)
        body = answer.read()
        return answer.status, json.loads(body).get("code", "") if answer.status >= 400 else ""
    finally:
        connection.close()
