"""Which machine gets what, and what has to be restarted when the file changes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from depalma import config as cluster_file
from depalma.config import ClusterConfig
from depalma.deploy import plan
from depalma.errors import ConfigError
from depalma.testing.certificates import throwaway_secrets

TEXT = """
cluster: lab
masters:
  - {id: m1, host: 10.0.0.1, dir: ~/m1}
  - {id: m2, host: 10.0.0.2, dir: ~/m2, ssh: root@two}
  - {id: m3, host: 10.0.0.3, dir: ~/m3}
hosts:
  - {name: h1, host: 10.0.0.1}
  - {name: h2, ssh: bob@laptop}
  - {name: h3}
"""


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    throwaway_secrets(tmp_path / "secrets", ["m1", "m2", "m3"], cluster="lab")
    return tmp_path / "secrets"


def parsed(text: str = TEXT) -> ClusterConfig:
    return cluster_file.parse(text)


def fingerprints(config: ClusterConfig, secrets: Path, release: str = "r1") -> dict[str, str]:
    return {d.name: d.fingerprint for machine in plan.machines(config, secrets, release) for d in machine.daemons}


def changed(config: ClusterConfig, secrets: Path, release: str = "r1") -> set[str]:
    """Returns the daemons that have to be restarted when the file becomes this one."""
    before, after = fingerprints(parsed(), secrets), fingerprints(config, secrets, release)
    return {name for name in after if after[name] != before.get(name)}


def test_one_connection_a_machine(secrets: Path) -> None:
    machines = plan.machines(parsed(), secrets, "r1")

    found = {machine.target: [daemon.name for daemon in machine.daemons] for machine in machines}
    assert found == {
        "10.0.0.1": ["master-m1", "agent-h1"],
        "root@two": ["master-m2"],
        "10.0.0.3": ["master-m3"],
        "bob@laptop": ["agent-h2"],
    }
    assert plan.unreachable(parsed()) == ["h3"]


def test_a_daemon_gets_its_own_secrets_only(secrets: Path) -> None:
    orders = {d.name: d for machine in plan.machines(parsed(), secrets, "r1") for d in machine.daemons}

    common = {"secrets/token", "secrets/agent.token", "secrets/raft.secret", "secrets/ca.crt", "cluster.yaml"}
    hosts = {"secrets/hosts.crt", "secrets/hosts.key"}
    assert set(orders["master-m2"].files) == common | hosts | {"secrets/master-m2.pem"}
    assert set(orders["agent-h1"].files) == {"secrets/agent.token", "secrets/ca.crt", "cluster.yaml"}
    written = cluster_file.parse(orders["agent-h1"].files["cluster.yaml"].decode())
    assert written.secrets == "./secrets"
    assert [host.name for host in written.hosts] == ["h1"]


def test_only_what_must_be_is_restarted(secrets: Path) -> None:
    config = parsed()
    settings = msgspec.structs.replace(config.settings, lease_s=20.0)
    others = {"master-m1", "master-m2", "master-m3", "agent-h1", "agent-h2"}

    assert changed(config, secrets) == set()
    assert changed(config, secrets, "r2") == others
    assert changed(msgspec.structs.replace(config, settings=settings), secrets) == others
    assert changed(parsed(TEXT.replace("{name: h1, host", "{name: h1, slots: 2, host")), secrets) == {"agent-h1"}
    assert changed(parsed(TEXT.replace("{name: h1, host", "{name: h1, groups: [g], host")), secrets) == set()
    assert changed(parsed(TEXT.replace("{name: h1, host", "{name: h1, owner: {idle_s: 9}, host")), secrets) == set()
    assert changed(parsed(TEXT.replace("root@two", "root@other")), secrets) == set()
    assert changed(parsed(TEXT.replace("host: 10.0.0.3", "host: 10.0.0.3, port: 80")), secrets) == {"master-m3"}
    assert changed(parsed(TEXT + "  - {name: h4, host: 10.0.0.4}\n"), secrets) == {"agent-h4"}


@pytest.mark.parametrize("mode", ["off", "allow", "prefer", "on"])
def test_agents_are_not_restarted_to_speak_tls(secrets: Path, mode: str) -> None:
    """They learn it from the masters, and so keep their tasks; a master comes with a URL of the right kind."""
    config = parsed(TEXT + f"settings: {{api_tls: {mode}}}\n")
    assert changed(config, secrets) == {"master-m1", "master-m2", "master-m3"}
    orders = {d.name: d for machine in plan.machines(config, secrets, "r1") for d in machine.daemons}
    scheme = "https" if mode in ("prefer", "on") else "http"
    assert orders["master-m1"].url == f"{scheme}://10.0.0.1:7070"
    assert ("secrets/ca.crt" in orders["agent-h1"].files) == (mode != "off")


def test_a_new_certificate_is_copied_and_nothing_restarted(secrets: Path) -> None:
    def digests() -> dict[str, str]:
        return {d.name: d.files_digest for machine in plan.machines(parsed(), secrets, "r1") for d in machine.daemons}

    prints, before = fingerprints(parsed(), secrets), digests()
    (secrets / "master-m2.pem").write_bytes((secrets / "master-m1.pem").read_bytes())

    assert fingerprints(parsed(), secrets) == prints
    after = digests()
    assert {name for name in after if after[name] != before[name]} == {"master-m2"}


def test_an_address_is_no_option_of_ssh(secrets: Path) -> None:
    """Whoever made the configuration; in a file it is refused already."""
    config = parsed()
    hosts = tuple(msgspec.structs.replace(host, ssh="-oProxyCommand=x") for host in config.hosts)
    with pytest.raises(ConfigError, match=r"hosts\.\w+\.ssh: '-oProxyCommand=x' given"):
        plan.machines(msgspec.structs.replace(config, hosts=hosts), secrets, "r1")


@pytest.mark.parametrize("name", ["../x", "a b", ".", ""])
def test_the_name_of_the_cluster_becomes_a_folder(secrets: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^cluster: "):
        plan.machines(msgspec.structs.replace(parsed(), cluster=name), secrets, "r1")


def test_missing_secrets_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"token: cannot be read.*cluster init"):
        plan.machines(parsed(), tmp_path, "r1")
