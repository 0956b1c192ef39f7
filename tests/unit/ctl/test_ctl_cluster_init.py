"""`cluster init`: makes what is missing, says what it did, and destroys nothing that it was not told to."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from depalma.certificates import Authority
from depalma.config import load, load_secrets
from depalma.ctl.main import cli

TEXT = """\
cluster: lab
masters:
  - {id: m1, host: 10.0.0.1, dir: /var/m1}
  - {id: m2, host: 10.0.0.2, dir: /var/m2}
  - {id: m3, host: 10.0.0.3, dir: /var/m3}
secrets: ./private
"""
MEMBERS = ["master-m1.pem", "master-m2.pem", "master-m3.pem"]
ALL = ["token", "agent.token", "raft.secret", "ca.crt", "ca.key", "hosts.crt", "hosts.key", *MEMBERS]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lab.yaml"
    path.write_text(TEXT)
    return path


def init(file: Path, *flags: str) -> Result:
    return CliRunner().invoke(cli, ["cluster", "init", "-f", str(file), *flags])


def actions(file: Path, *flags: str) -> dict[str, str]:
    result = init(file, "-o", "json", *flags)
    assert result.exit_code == 0, result.stderr
    return {row["file"]: row["action"] for row in json.loads(result.stdout)}


def contents(file: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (file.parent / "private").iterdir()}


def certificates_in(data: bytes) -> bytes:
    return data[data.index(b"-----BEGIN") :]


@pytest.mark.parametrize(
    ("host", "setting", "scheme"),
    [
        ("10.0.0.1", "", "https"),
        ("127.0.0.1", "", "http"),
        ("10.0.0.1", "settings: {api_tls: allow}\n", "http"),
        ("127.0.0.1", "settings: {api_tls: on}\n", "https"),
    ],
)
def test_a_new_cluster_between_machines_speaks_tls(tmp_path: Path, host: str, setting: str, scheme: str) -> None:
    """By what the authority's file says: every machine that has it agrees. Clusters of before have no such line."""
    path = tmp_path / "lab.yaml"
    path.write_text(f"masters: [{{id: m1, host: {host}, dir: /var/m1}}]\nsecrets: ./private\n{setting}")
    assert load(path).scheme == ("https" if "on}" in setting else "http")
    assert ("and ca.crt" in init(path).stderr) == (scheme == "https")
    assert load(path).scheme == scheme
    assert load(path).url(load(path).masters[0]) == f"{scheme}://{host}:7070"
    old = tmp_path / "private" / "ca.crt"
    old.write_bytes(certificates_in(old.read_bytes()))
    assert load(path).scheme == ("https" if "on}" in setting else "http")


def test_everything_is_made_and_a_second_time_kept(file: Path) -> None:
    assert actions(file) == dict.fromkeys(ALL, "made")
    folder = file.parent / "private"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert load_secrets(folder, "m3").token
    before = contents(file)

    assert actions(file) == dict.fromkeys(ALL, "kept")
    assert contents(file) == before


def test_people_are_told_where_it_is_and_what_a_master_needs(file: Path) -> None:
    result = init(file)
    assert str(file.parent / "private") in result.stderr
    assert "agent.token" in result.stderr
    assert "ca.key" in result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["FILE", *ALL]
    assert init(file, "-q").stderr == ""
    assert init(file, "-o", "name").stdout.split() == ALL


def test_no_secret_is_shown(file: Path) -> None:
    results = [init(file), init(file, "-o", "json"), init(file, "--renew"), init(file, "--new-ca")]
    shown = "".join(result.stdout + result.stderr for result in results)
    for name in ("token", "agent.token", "raft.secret"):
        assert contents(file)[name].decode().strip() not in shown
    assert "BEGIN" not in shown


def test_renewing_and_replacing_the_authority(file: Path) -> None:
    init(file)
    before = contents(file)
    assert actions(file, "--renew") == dict.fromkeys(MEMBERS, "renewed")
    assert actions(file, "--new-ca") == {"ca.key": "replaced", "ca.crt": "replaced"}
    assert certificates_in(before["ca.crt"]) in contents(file)["ca.crt"]
    early = init(file, "--drop-old-ca")
    assert early.exit_code == 1
    assert "master-m1.pem: was made by no authority that is believed; renew the certificates first" in early.stderr
    assert actions(file, "--renew") == dict.fromkeys(MEMBERS, "renewed")
    assert actions(file, "--drop-old-ca") == {"ca.crt": "replaced"}
    assert certificates_in(before["ca.crt"]) not in contents(file)["ca.crt"]
    assert load(file).scheme == "https"
    assert contents(file)["token"] == before["token"]


def test_a_certificate_that_is_no_good_is_kept_and_told(file: Path) -> None:
    init(file)
    member = file.parent / "private" / MEMBERS[1]
    member.write_bytes(Authority.make("lab").issue("lab", "m2"))
    result = init(file, "-q")
    assert result.exit_code == 0
    assert "warning: master-m2.pem was made by no authority that is believed" in result.stderr
    assert "--renew" in result.stderr


@pytest.mark.parametrize("flags", [["--renew", "--new-ca"], ["--new-ca", "--drop-old-ca"]])
def test_two_steps_at_once_are_refused(file: Path, flags: list[str]) -> None:
    result = init(file, *flags)
    assert result.exit_code == 2
    assert "give one of them" in result.stderr
    assert not (file.parent / "private").exists()


def test_renewing_what_was_never_made_says_what_is_missing(file: Path) -> None:
    result = init(file, "--renew")
    assert result.exit_code == 1
    assert "ca.key: is missing" in result.stderr
