"""A machine that has nothing but a string joins a real cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from depalma import Client, LocalCluster
from depalma.joining import Invitation

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
        process.communicate(timeout=30)


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
    argv += ["--token-file", cluster.token_file, "host", "invite", host, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_a_string_lets_one_machine_in_once_also_across_a_fail_over(
    fresh_cluster: Callable[..., LocalCluster], wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    cluster = fresh_cluster(masters=3, agents=0)
    with cluster.client() as client:
        text = invite(cluster, "h9")
        assert Invitation.read(text).secret not in "".join(map(str, client.events()))
        kill_leader(cluster, client)

        with running(text, folder(tmp_path, "first")) as process:
            wait_until(lambda: [h.name for h in client.hosts() if h.state == "up"], lambda up: up == ["h9"])
            assert client.command(["hostname"]).wait(30).state == "succeeded"

            joined = tmp_path / "first/.local/state/depalma/joined/local/h9"
            files = {path.name: path.stat().st_mode & 0o777 for path in joined.rglob("*") if path.is_file()}
            assert files == {"cluster.yaml": 0o600, "agent.token": 0o600, "ca.crt": 0o600}
            assert process.poll() is None

            # Somebody else has the string too; the one who led then is back, and no longer the leader.
            assert "was used already" in refused(text, folder(tmp_path, "second"))

        # The same machine again, after a reboot: it has its files, and asks nobody.
        with running(text, tmp_path / "first"):
            wait_until(lambda: client.host("h9").state, lambda state: state == "up")
        kinds = [event.kind for event in client.events() if event.host == "h9"]
        assert kinds[:3] == ["host.invited", "host.added", "host.joined"]

        late = invite(cluster, "h8", "--valid", "0s")
        assert "expired" in refused(late, folder(tmp_path, "third"))


def kill_leader(cluster: LocalCluster, client: Client) -> None:
    (leader,) = [master.id for master in client.masters() if master.role == "leader"]
    cluster.kill(leader)
    client.hosts()  # answered by the next one
    cluster.restart(leader)


def test_another_authority_is_told_nothing(fresh_cluster: Callable[..., LocalCluster], tmp_path: Path) -> None:
    """A string whose hash is of another authority: the masters that it names cannot prove themselves."""
    cluster = fresh_cluster(masters=1, agents=0)
    invitation = Invitation.read(invite(cluster, "h9"))
    wrong = Invitation(invitation.cluster, "h9", invitation.masters, "0" * 64, invitation.secret)

    process = agent(wrong.text(), folder(tmp_path, "home"), "--join-wait", "1")
    _, said = process.communicate(timeout=60)

    assert process.returncode == 4, said
    assert "it shows another authority than the string names; nothing was told to it" in said
    # It is still good: nobody heard the secret.
    with running(invitation.text(), folder(tmp_path, "other")), cluster.client() as client:
        assert client.command(["true"]).wait(30).state == "succeeded"
