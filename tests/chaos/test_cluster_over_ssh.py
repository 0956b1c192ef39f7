"""A cluster of several machines that is started, changed and stopped over real ssh."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from depalma.client.client import Client
from depalma.testing.chaos.network import Network
from depalma.testing.chaos.shell import run
from depalma.testing.chaos.sshd import SshMachines
from depalma.testing.chaos.waiting import wait_until

CLUSTER = "lab"
#: Each starts some twenty processes, several times, and installs once.
pytestmark = pytest.mark.timeout(400)
ROOT = Path(__file__).parents[2]
MASTER_FILES = {"token", "agent.token", "raft.secret", "ca.crt", "hosts.crt", "hosts.key"}


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The machines of all tests here share what was installed by the first that needed it."""
    return tmp_path_factory.mktemp("environments")


class Lab:
    """A cluster file and the machines that it names."""

    def __init__(self, network: Network, ssh: SshMachines, directory: Path, temporary: str) -> None:
        self.network = network
        self.ssh = ssh
        self.file = directory / "lab.yaml"
        self.secrets = directory / "secrets"
        #: a short one, for the sockets of ssh, which a killed depalmactl leaves behind
        self.environ = {**os.environ, "TMPDIR": temporary}

    def write(self, masters: dict[str, str], hosts: dict[str, str], **settings: Any) -> None:
        """`masters` and `hosts`: id → machine."""
        address = self.network.address
        config = {
            "cluster": CLUSTER,
            "masters": [{"id": name, "host": address(m), "dir": f"~/state/{name}"} for name, m in masters.items()],
            "hosts": [{"name": name, "host": address(m), "slots": 1} for name, m in hosts.items()],
            # So long that no busy machine is taken for a dead one, and that one that is cut off keeps its tasks.
            "settings": {"lease_s": 60.0, **settings},
        }
        self.file.write_bytes(msgspec.yaml.encode(config))

    def change(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Changes the file."""
        config = msgspec.yaml.decode(self.file.read_bytes())
        change(config)
        self.file.write_bytes(msgspec.yaml.encode(config))

    def ctl(self, *words: str, code: int = 0) -> tuple[Any, str]:
        """Returns what `depalmactl cluster …` printed: data, and what it said to people."""
        own = ["-F", str(self.ssh.config)] if words[0] != "init" else []
        argv = [sys.executable, "-m", "depalma.ctl", "cluster", *words, *own, "-f", str(self.file), "-o", "json"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300, env=self.environ)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout), done.stderr

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """Starts `depalmactl cluster …` in a process group of its own."""
        argv = [sys.executable, "-m", "depalma.ctl", "cluster", *words, "-f", str(self.file)]
        return subprocess.Popen([*argv, "-F", str(self.ssh.config)], start_new_session=True, env=self.environ)

    def processes(self, machine: str) -> list[str]:
        """Returns what runs on the machine, other than sshd."""
        lines = [self.command(pid) for pid in self.pids_of(machine)]
        return [line for line in lines if line and "sshd" not in line]

    def pids_of(self, machine: str) -> list[str]:
        return run("ip", "netns", "pids", self.network.namespace(machine)).split()

    def command(self, pid: str) -> str:
        return run("ps", "-ww", "-o", "args=", "-p", pid, check=False).strip()

    def clear(self) -> None:
        """Kills what a test that failed has left."""
        for name in self.network.names:
            for pid in self.pids_of(name):
                if "sshd" not in self.command(pid):
                    run("kill", "-KILL", pid, check=False)

    def client(self) -> Client:
        config = msgspec.yaml.decode(self.file.read_bytes())
        urls = [f"https://{master['host']}:7070" for master in config["masters"]]
        return Client(urls, token=(self.secrets / "token").read_text().strip(), ca=self.secrets / "ca.crt")


@contextmanager
def lab(machines: str, directory: Path, environments: Path) -> Iterator[Lab]:
    names = machines.split()
    with (
        tempfile.TemporaryDirectory(prefix="dps-") as temporary,
        Network(names) as network,
        SshMachines(network, directory / "ssh", environments=environments) as ssh,
    ):
        made = Lab(network, ssh, directory, temporary)
        try:
            yield made
            left = {name: made.processes(name) for name in names}
        finally:
            made.clear()
        assert left == {name: [] for name in names}


def pids(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Returns the daemons that run."""
    return {daemon["id"]: daemon["pid"] for row in rows for daemon in row["daemons"] if daemon["running"]}


def actions(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {daemon["id"]: daemon["action"] for row in rows for daemon in row["daemons"] if daemon["action"]}


def secrets_on(ssh: SshMachines, machine: str) -> dict[str, set[str]]:
    """Returns the files of secrets on a machine, by daemon; asserts that nobody else may read them."""
    found: dict[str, set[str]] = {}
    for file in (ssh.home(machine) / ".local/state/depalma/clusters" / CLUSTER).glob("*/secrets/*"):
        found.setdefault(file.parents[1].name, set()).add(file.name)
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
    return found


def test_from_nothing_to_a_cluster_and_back(needs: Callable[..., None], tmp_path: Path, environments: Path) -> None:
    needs("sshd", "ssh", "ssh-keygen")
    with lab("a b c d", tmp_path, environments) as made:
        made.write({"m1": "a", "m2": "b", "m3": "c"}, {"h1": "b", "h2": "c", "h3": "d"})
        made.ctl("init")

        # Dry: nothing is there, and nothing gets there.
        rows, _ = made.ctl("up", "--dry-run")
        assert actions(rows) == dict.fromkeys(("m1", "m2", "m3", "h1", "h2", "h3"), "start")
        assert {row["release"] for row in rows} == {"install"}
        assert not list(environments.iterdir())

        # The first machine installs, from wheels that come from here.
        rows, said = made.ctl("up", "--offline")
        assert actions(rows) == dict.fromkeys(("m1", "m2", "m3", "h1", "h2", "h3"), "started")
        assert [row["state"] for row in rows] == ["ok"] * 4
        assert "4 machines; none failed; changed" in said
        before = pids(rows)

        # Each machine has its own secrets and no others, and none is on a command line.
        agent = {"agent.token", "ca.crt"}
        assert secrets_on(made.ssh, "a") == {"master-m1": MASTER_FILES | {"master-m1.pem"}}
        assert secrets_on(made.ssh, "b") == {"master-m2": MASTER_FILES | {"master-m2.pem"}, "agent-h1": agent}
        assert secrets_on(made.ssh, "d") == {"agent-h3": agent}
        tokens = [(made.secrets / name).read_text().strip() for name in ("token", "agent.token", "raft.secret")]
        lines = "\n".join(line for name in "abcd" for line in made.processes(name))
        assert "depalma.master" in lines
        assert not [token for token in tokens if token in lines]

        with made.client() as client:
            assert client.command(["hostname"], array=6).wait(60).state == "succeeded"

            # Again: nothing is changed, and it says so.
            rows, said = made.ctl("up")
            assert actions(rows) == {}
            assert "nothing had to be changed" in said
            assert pids(rows) == before

            # The connections go, the cluster stays.
            for name in "abcd":
                made.ssh.stop(name)
            assert client.command(["hostname"], array=3).wait(60).state == "succeeded"
            for name in "abcd":
                made.ssh.start(name)
                made.ssh.wait(name)
            rows, _ = made.ctl("status")
            assert pids(rows) == before

            # One line of the file is changed: one daemon is restarted.
            made.change(lambda config: config["hosts"][1].update(slots=3))
            rows, _ = made.ctl("up", "--dry-run")
            assert actions(rows)["h2"] == "restart"
            rows, _ = made.ctl("up")
            assert {name for name, action in actions(rows).items() if action == "restarted"} == {"h2"}
            after = pids(rows)
            assert {name for name in before if before[name] != after[name]} == {"h2"}

            # A new line: the cluster, which keeps its list of hosts itself, is told of it.
            made.change(lambda config: config["hosts"].append({**config["hosts"][0], "name": "h4"}))
            rows, _ = made.ctl("up")
            assert actions(rows) == {"h4": "started", **dict.fromkeys(("m1", "m2", "m3"), "updated")}
            assert client.host("h4").state == "up"
            assert {name: pid for name, pid in pids(rows).items() if name != "h4"} == after

        rows, said = made.ctl("down")
        assert actions(rows) == dict.fromkeys(("m1", "m2", "m3", "h1", "h2", "h3", "h4"), "stopped")
        assert [made.processes(name) for name in "abcd"] == [[]] * 4
        rows, said = made.ctl("down")
        assert "nothing ran" in said
        rows, _ = made.ctl("status", code=1)
        assert {row["state"] for row in rows} == {"failed"}


def test_machines_that_fail_are_named_and_the_others_go_on(
    needs: Callable[..., None], tmp_path: Path, environments: Path
) -> None:
    needs("sshd", "ssh", "ssh-keygen")
    with lab("a b c d", tmp_path, environments) as made:
        made.write({"m1": "a", "m2": "b", "m3": "d"}, {"h1": "a", "h2": "b", "h3": "c", "h4": "d"})
        made.ctl("init")
        made.ssh.stop("b")
        made.ssh.stop("c")
        made.ssh.start("c", authorized_keys="wrong_key.pub")
        made.ssh.wait("c")

        rows, said = made.ctl("up", "--offline", code=1)

        reasons = {row["machine"]: row["reason"] for row in rows if row["state"] == "failed"}
        assert set(reasons) == {made.network.address("b"), made.network.address("c")}
        assert "Connection refused" in reasons[made.network.address("b")]
        assert "Permission denied (publickey)" in reasons[made.network.address("c")]
        assert actions(rows) == dict.fromkeys(("m1", "m3", "h1", "h4"), "started")
        assert f"2 failed: {made.network.address('b')}, {made.network.address('c')}" in said
        with made.client() as client:
            assert {host.name for host in client.hosts() if host.state == "up"} == {"h1", "h4"}

        made.ssh.start("b")
        made.ssh.wait("b")
        rows, _ = made.ctl("up", "--offline", code=1)
        assert actions(rows) == {"m2": "started", "h2": "started"}
        # A master that comes later finds the cluster that is there.
        with made.client() as client:
            wait_until(
                lambda: sorted(master.role for master in client.masters()),
                lambda roles: roles == ["follower", "follower", "leader"],
                within_s=60,
                what="three masters are one cluster",
            )
        made.ctl("down", code=1)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """With its ssh, which would still deliver the order."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_cluster(made: Lab) -> str:
    argv = [sys.executable, str(ROOT / "bin/kill_cluster.py"), "-f", str(made.file), "-F", str(made.ssh.config)]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout


def test_what_a_killed_down_leaves_is_found_by_its_record(
    needs: Callable[..., None], tmp_path: Path, environments: Path
) -> None:
    needs("sshd", "ssh", "ssh-keygen")
    with lab("a b", tmp_path, environments) as made:
        made.write({"m1": "a"}, {"h1": "a", "h2": "b"})
        made.ctl("init")
        # An `up` that is killed half way: the next one goes on from there, and starts nothing twice.
        up = made.begin("up", "--offline")
        record = made.ssh.home("a") / ".local/state/depalma/clusters" / CLUSTER / "master-m1/process.json"
        wait_until(record.exists, within_s=120, what="the master is on record")
        kill_group(up)
        rows, _ = made.ctl("up", "--offline")
        running = pids(rows)
        daemons = [line for name in "ab" for line in made.processes(name) if " -m depalma." in line]
        assert sorted(line.split()[-1] for line in daemons) == ["h1", "h2", "m1"]
        with made.client() as client:
            job = client.command(["sh", "-c", "setsid sleep 600 & sleep 600"], array=2)
            wait_until(lambda: len(job.tasks("running")) == 2, within_s=60, what="two tasks run")

        # One machine cannot be reached; while `down` waits for it, it is killed.
        made.network.cut("b", ["a", "hub"])
        down = made.begin("down")
        wait_until(lambda: not Path(f"/proc/{running['h1']}").exists(), within_s=60, what="the other agent has ended")
        kill_group(down)
        assert Path(f"/proc/{running['m1']}").exists()
        # There, the agent dies and its supervisor is frozen: nobody is left who would end the tasks.
        (supervisor,) = [int(pid) for pid in made.pids_of("b") if "monitor.py" in made.command(pid)]
        os.kill(supervisor, signal.SIGSTOP)
        os.kill(running["h2"], signal.SIGKILL)
        made.network.heal()
        wait_until(
            lambda: [line for line in made.processes("b") if "sleep" in line],
            lambda lines: len(lines) == 3,
            within_s=60,
            what="all of the task on b is there",
        )

        said = kill_cluster(made)

        assert f"{made.network.address('b')}: agent h2 ended" in said
        assert f"{made.network.address('a')}: master m1 ended" in said
        assert [made.processes(name) for name in "ab"] == [[], []]
        assert kill_cluster(made) == "nothing was left on 2 machines\n"
