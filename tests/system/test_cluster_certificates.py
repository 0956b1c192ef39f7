"""Certificates of a cluster of real processes: its masters start with them only, and take new ones while they work."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depalma import LocalCluster
from depalma.certificates import Authority, load_certificates
from depalma.local.folder import ProcessEntry
from depalma.local.processes import identify
from tests.system.calm import STEADY

WaitUntil = Callable[..., Any]
CTL = [sys.executable, "-m", "depalma.ctl"]
IDS = ["m1", "m2", "m3"]


def metrics(cluster: LocalCluster, master: ProcessEntry) -> dict[str, str]:
    token = Path(cluster.token_file).read_text().strip()
    request = urllib.request.Request(f"{master.url}/metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def masters_of(cluster: LocalCluster) -> list[ProcessEntry]:
    return [entry for entry in cluster.processes if entry.role == "master"]


def address(master: ProcessEntry) -> tuple[str, int]:
    host, _, port = master.raft.rpartition(":")
    return host, int(port)


def shown(cluster: LocalCluster, master: ProcessEntry) -> int:
    """Serial number of the certificate that the master shows to somebody without one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cluster.directory / "secrets" / "ca.crt")
    with socket.create_connection(address(master), timeout=60) as plain, context.wrap_socket(plain) as secured:
        certificate = secured.getpeercert()
    assert certificate
    return int(str(certificate["serialNumber"]), 16)


def in_files(cluster: LocalCluster) -> list[int]:
    folder = cluster.directory / "secrets"
    return [load_certificates(folder / f"master-{name}.pem")[0].serial_number for name in IDS]


def cluster_init(cluster: LocalCluster, *flags: str) -> None:
    argv = [*CTL, "cluster", "init", "-f", str(cluster.directory / "cluster.yaml"), *flags]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_an_authority_is_replaced_while_a_job_runs(
    fresh_cluster: Callable[..., LocalCluster], wait_until: WaitUntil
) -> None:
    cluster = fresh_cluster(masters=3, agents=1, settings=STEADY)
    masters = masters_of(cluster)
    assert 700 * 86_400 < float(metrics(cluster, masters[0])["depalma_raft_certificate_seconds_left"]) < 731 * 86_400
    with cluster.client() as client:
        leader, term = cluster.leader(), max(master.term for master in client.masters())
        job = client.command(["sleep", "600"])
        before = in_files(cluster)
        cluster_init(cluster, "--new-ca")
        wait_until(lambda: [cluster.log(name).count("2 authorities are believed") for name in IDS], [1, 1, 1].__eq__)
        cluster_init(cluster, "--renew")
        wait_until(lambda: [shown(cluster, master) for master in masters], in_files(cluster).__eq__)
        cluster_init(cluster, "--drop-old-ca")
        wait_until(lambda: [cluster.log(name).count("1 authority is believed") for name in IDS], [1, 1, 1].__eq__)
        assert not set(before) & set(in_files(cluster))
        assert client.submit(pow, 2, 5).result(60) == 32
        assert (cluster.leader(), max(master.term for master in client.masters())) == (leader, term)

        follower = next(name for name in IDS if name != leader)
        cluster.restart(follower)  # its connections are new: made with what was made since
        assert cluster.leader() == leader
        assert job.view().state == "running"
        job.cancel()


def test_plain_text_is_counted(fresh_cluster: Callable[..., LocalCluster], wait_until: WaitUntil) -> None:
    cluster = fresh_cluster(masters=3, agents=0)
    (master, *_) = masters_of(cluster)
    for _ in range(3):
        with socket.create_connection(address(master), timeout=60) as plain:
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert plain.recv(100) == b""
    name = 'depalma_raft_refused_total{reason="plain_text"}'
    wait_until(lambda: metrics(cluster, master)[name], "3".__eq__)
    wait_until(lambda: cluster.log("m1"), lambda log: log.count("it does not speak TLS, but begins with b'GET /") == 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (None, "has no master-m1.pem; make what is missing with: depalmactl cluster init -f"),
        (lambda folder: Authority.make("local").issue("local", "m1"), "master-m1.pem: does not fit"),
        (lambda folder: Authority.load(folder).issue("local", "m2"), "not for master m1"),
    ],
    ids=["missing", "other authority", "other master"],
)
def test_a_master_does_not_start_with_a_certificate_that_nobody_would_take(
    tmp_path: Path, make: Callable[[Path], bytes] | None, words: str
) -> None:
    with LocalCluster(masters=1, agents=0, directory=tmp_path) as cluster:
        (entry,) = masters_of(cluster)
    assert identify(entry.pid or 0) is None
    file = tmp_path / "secrets" / "master-m1.pem"
    if make is None:
        file.unlink()
    else:
        file.write_bytes(make(tmp_path / "secrets"))

    done = subprocess.run(entry.argv, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_local_cluster_that_is_started_again_renews_what_would_end_soon(tmp_path: Path) -> None:
    with LocalCluster(masters=1, agents=0, directory=tmp_path):
        pass
    file = tmp_path / "secrets" / "master-m1.pem"
    file.write_bytes(Authority.load(tmp_path / "secrets").issue("local", "m1", days=3))
    with LocalCluster(masters=1, agents=0, directory=tmp_path) as cluster:
        (entry,) = masters_of(cluster)
        assert float(metrics(cluster, entry)["depalma_raft_certificate_seconds_left"]) > 700 * 86_400
