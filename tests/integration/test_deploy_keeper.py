"""The half of `cluster up` that runs on a machine, with a real master and agent in a home folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from depalma import config as cluster_file
from depalma.deploy import launch, plan
from depalma.deploy.orders import Action, Answer, DaemonOrder, DaemonReport, Order, decode_answer, encode
from depalma.local.folder import free_ports
from depalma.local.processes import alive, identify
from depalma.testing.certificates import throwaway_secrets


class Machine:
    """One home folder, a cluster of one master and one agent."""

    def __init__(self, home: Path) -> None:
        self.folder = home / ".local/state/depalma/clusters/lab"
        port, raft_port = free_ports(2)
        throwaway_secrets(home / "secrets", ["m1"], cluster="lab")
        self.raw: dict[str, Any] = {
            "cluster": "lab",
            "masters": [{"id": "m1", "host": "127.0.0.1", "port": port, "raft_port": raft_port, "dir": "~/m1"}],
            "hosts": [{"name": "h1", "host": "127.0.0.1", "slots": 1, "dir": str(home / "h1")}],
        }
        self.secrets = home / "secrets"

    def orders(self) -> tuple[DaemonOrder, ...]:
        config = cluster_file.parse(msgspec.yaml.encode(self.raw).decode())
        (machine,) = plan.machines(config, self.secrets, "r1")
        return machine.daemons

    def obey(self, action: Action, patience_s: float = 20.0) -> Answer:
        order = Order(action=action, cluster="lab", daemons=self.orders(), patience_s=patience_s)
        argv = [sys.executable, "-P", "-m", "depalma.deploy.keeper"]
        done = subprocess.run(argv, input=encode(order), stdout=subprocess.PIPE, check=True, timeout=60)
        answer = decode_answer(done.stdout)
        assert answer is not None
        return answer

    def reports(self, action: Action, patience_s: float = 20.0) -> dict[str, DaemonReport]:
        return {report.id: report for report in self.obey(action, patience_s).reports}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = Machine(tmp_path)
    yield made
    made.obey("kill", 5.0)


def test_start_again_change_and_stop(machine: Machine) -> None:
    first = machine.reports("start")
    assert {name: (r.did, r.running, r.problem) for name, r in first.items()} == dict.fromkeys(
        ("m1", "h1"), ("started", True, "")
    )
    assert {name: (r.did, r.pid) for name, r in machine.reports("start").items()} == {
        name: ("", report.pid) for name, report in first.items()
    }

    # Only a file changed: written, nothing restarted.
    machine.raw["hosts"][0]["priority"] = 3
    assert {name: r.differs for name, r in machine.reports("look").items()} == {"m1": "files", "h1": "files"}
    again = machine.reports("start")
    assert {name: (r.did, r.pid) for name, r in again.items()} == {
        name: ("updated", report.pid) for name, report in first.items()
    }

    machine.raw["hosts"][0]["slots"] = 2
    again = machine.reports("start")
    assert (again["h1"].did, again["m1"].did) == ("restarted", "updated")
    assert again["h1"].pid != first["h1"].pid

    assert {r.did for r in machine.reports("stop").values()} == {"stopped"}
    assert {(r.did, r.running) for r in machine.reports("stop").values()} == {("", False)}
    assert not list(machine.folder.glob("*/process.json"))


def test_one_that_cannot_start_is_named_with_its_last_words(machine: Machine) -> None:
    machine.raw["masters"][0]["dir"] = "/proc/nowhere"

    report = machine.reports("start")["m1"]

    assert not report.running
    assert report.problem.startswith("ended with exit code 1: ")
    assert "/proc/nowhere" in report.problem


def test_a_pid_that_was_used_again_is_left_alone(machine: Machine) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        who = identify(other.pid)
        assert who is not None
        folder = machine.folder / "agent-h1"
        folder.mkdir(parents=True)
        record = {"pid": other.pid, "started": who.started - 1, "boot": launch.boot_id(), "fingerprint": "", "argv": []}
        (folder / "process.json").write_bytes(msgspec.json.encode(record))

        reports = machine.reports("kill", 1.0)

        assert [report.did for report in reports.values()] == ["", ""]
        assert alive(who)
        assert not (folder / "process.json").exists()
    finally:
        other.kill()
        other.wait()


def test_the_record_of_another_machine_stays(machine: Machine) -> None:
    """Two machines may share a home folder."""
    folder = machine.folder / "agent-h1"
    folder.mkdir(parents=True)
    record = {"pid": os.getpid(), "started": launch.started(os.getpid()), "boot": "x", "fingerprint": "", "argv": []}
    (folder / "process.json").write_bytes(msgspec.json.encode(record))

    assert not machine.reports("look")["h1"].running
    machine.obey("stop", 1.0)

    assert (folder / "process.json").exists()


def test_a_secret_that_is_no_longer_needed_goes(machine: Machine) -> None:
    folder = machine.folder / "agent-h1/secrets"
    folder.mkdir(parents=True)
    (folder / "ca.key").write_text("of an earlier release")
    (folder / "agent.token").write_text("old")
    (folder / "agent.token").chmod(0o644)

    machine.reports("start")

    assert sorted(path.name for path in folder.iterdir()) == ["agent.token", "ca.crt"]
    assert (folder / "agent.token").read_bytes() == (machine.secrets / "agent.token").read_bytes()
    assert (folder / "agent.token").stat().st_mode & 0o777 == 0o600
