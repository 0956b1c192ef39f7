"""The folder of a local cluster, and processes by the kernel's own account."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from depalma import config
from depalma.errors import ConfigError
from depalma.local import folder, processes
from depalma.local.processes import Daemon, Identity

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_the_cluster_file_is_one_that_daemons_accept(tmp_path: Path) -> None:
    made = folder.make(tmp_path, masters=3, agents=2, slots=4)
    assert config.load(tmp_path / "cluster.yaml") == made
    assert (made.settings.lease_s, made.settings.heartbeat_s) == (3.0, 0.5)
    assert [host.slots for host in made.hosts] == [4, 4]
    assert [config.load_secrets(Path(made.secrets), name).folder for name in ("m1", "m2", "m3")]


def test_secrets_are_random_private_and_kept(tmp_path: Path) -> None:
    folder.make(tmp_path, masters=1, agents=0, slots=1)
    token = (tmp_path / "secrets" / "token").read_text()
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "secrets").iterdir()] == [0o600] * 8
    assert len({file.read_text() for file in (tmp_path / "secrets").iterdir()}) == 8
    folder.make(tmp_path, masters=1, agents=0, slots=1)
    assert (tmp_path / "secrets" / "token").read_text() == token


def test_a_folder_that_was_used_keeps_its_ports_and_its_number_of_masters(tmp_path: Path) -> None:
    first = folder.make(tmp_path, masters=3, agents=2, slots=1)
    assert folder.make(tmp_path, masters=3, agents=1, slots=1).masters == first.masters
    with socket.create_server(("127.0.0.1", first.masters[1].port)):
        assert folder.make(tmp_path, masters=3, agents=1, slots=1).masters != first.masters
    with pytest.raises(ConfigError, match="holds the state of 3 masters, not 1"):
        folder.make(tmp_path, masters=1, agents=1, slots=1)


def test_settings_can_be_given_and_wrong_ones_are_named(tmp_path: Path) -> None:
    assert folder.make(tmp_path, masters=1, agents=0, slots=1, settings={"lease_s": 5}).settings.lease_s == 5
    with pytest.raises(ConfigError, match="leese_s"):
        folder.make(tmp_path, masters=1, agents=0, slots=1, settings={"leese_s": 5})


def test_ports_are_different_free_and_not_given_to_outgoing_connections() -> None:
    ports = folder.free_ports(10)
    assert len(set(ports)) == 10
    begin = folder._ephemeral_begin()
    assert begin <= 11_000 or all(port < begin for port in ports)
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_a_port_is_not_given_to_two_who_have_not_begun_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two local clusters that were started at the same moment could get the same one."""
    (taken, *_) = folder.free_ports(1)
    asks = f"from depalma.local import folder; print(folder.free_ports(1), folder._is_taken_note_of({taken}))"
    other = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True)
    assert other.stdout.split()[1] == "False", other.stdout
    monkeypatch.setattr(folder, "_NOTES", 0)
    folder.free_ports(1)  # and lets go of what it was given before
    other = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True)
    assert other.stdout.split()[1] == "True", other.stdout


def test_cluster_json_says_what_the_contract_promises(tmp_path: Path) -> None:
    made = folder.make(tmp_path, masters=1, agents=1, slots=1)
    state = folder.ClusterState(processes=folder.entries(made, tmp_path), masters=["http://x"], token_file="t")
    folder.save_state(tmp_path, state)
    assert folder.load_state(tmp_path) == state
    master, agent = state.processes
    assert master.argv[1:] == ["-m", "depalma.master", "--config", str(tmp_path / "cluster.yaml"), "--id", "m1"]
    assert agent.argv[1:] == ["-m", "depalma.remote", "--config", str(tmp_path / "cluster.yaml"), "--name", "h1"]
    assert (master.role, master.url, agent.role, agent.dir) == (
        "master", made.url(made.masters[0]), "agent", str(tmp_path / "h1"),
    )  # fmt: skip


def test_a_folder_that_is_no_cluster_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.json: cannot be read"):
        folder.load_state(tmp_path)
    (tmp_path / "cluster.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"cluster\.json: .*processes"):
        folder.load_state(tmp_path)


def test_a_pid_that_was_used_again_is_not_signalled() -> None:
    child = subprocess.Popen(SLEEP)
    try:
        now = processes.identify(child.pid)
        assert now is not None
        other = Identity(now.pid, now.started - 1)
        assert not processes.alive(other)
        assert not processes.send(other, signal.SIGKILL)
        assert child.poll() is None
        assert processes.send(now, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    assert not processes.alive(now)


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    found = processes.identify(child.pid)
    assert found is not None
    assert not processes.alive(found)
    child.wait()


def test_processes_are_found_by_mark_by_folder_by_arguments_and_by_descent(tmp_path: Path) -> None:
    marked = subprocess.Popen(SLEEP, env={**os.environ, processes.MARK: str(tmp_path)})
    inside = subprocess.Popen(SLEEP, cwd=tmp_path)
    other = subprocess.Popen([*SLEEP, str(tmp_path)])  # others may run the same test
    parent = subprocess.Popen(["sh", "-c", "sleep 600 & echo ready; wait"], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        assert {found.pid for found in processes.marked(str(tmp_path), tmp_path)} == {marked.pid, inside.pid}
        found = processes.find([*SLEEP, str(tmp_path)])
        assert found is not None
        assert found.pid == other.pid
        assert processes.find([*SLEEP, "no such"]) is None
        root = processes.identify(parent.pid)
        assert root is not None
        below = processes.descendants([root])
        assert len(below) == 2
        for process in below:
            processes.send(process, signal.SIGKILL)
    finally:
        for child in (marked, inside, other, parent):
            child.kill()
            child.wait()
        if parent.stdout is not None:
            parent.stdout.close()


def test_a_daemon_is_started_stopped_and_by_force_if_it_does_not_listen(tmp_path: Path) -> None:
    polite, deaf = Daemon("polite", tmp_path / "polite.log"), Daemon("deaf", tmp_path / "deaf.log")
    polite.start(SLEEP, tmp_path / "polite", os.environ)
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    deaf.start([sys.executable, "-c", code], tmp_path / "deaf", os.environ)
    assert os.getsid(polite.pid or 0) == polite.pid
    while "up" not in deaf.last_lines():
        assert deaf.running()
    deaf.signal(signal.SIGSTOP)
    assert processes.stop_all([polite, deaf], 4.0) == ["deaf"]
    assert (polite.exit_code, deaf.exit_code) == (-signal.SIGTERM, -signal.SIGKILL)
