"""A cluster of real processes, each on a machine (namespace) of its own, that can be killed, frozen and cut off."""

from __future__ import annotations

import http.client
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from depalma.api.shapes import MasterStatus
from depalma.blobs import master_token
from depalma.client.client import Client
from depalma.local.processes import Daemon, stop_all
from depalma.model import MasterView
from depalma.testing.certificates import throwaway_secrets
from depalma.testing.chaos.network import Network
from depalma.testing.chaos.small_master import FIELDS
from depalma.testing.chaos.waiting import wait_until

PORT, RAFT_PORT = 7070, 7071
#: faults.md's test scale
SETTINGS: dict[str, Any] = {"lease_s": 3.0, "heartbeat_s": 0.5, "snapshot_every_entries": 200}
#: files of a master, small enough that a short run rolls them over
SIZES = {"segment_bytes": 256 * 1024, "keep_entries": 50}
START_S = 30.0


class ChaosCluster:
    """Masters m1, m2, … and agents h1, h2, …; their folders are below `directory`."""

    def __init__(
        self,
        network: Network,
        directory: Path,
        *,
        masters: int = 3,
        agents: int = 2,
        settings: dict[str, Any] | None = None,
        sizes: dict[str, int] | None = None,
    ) -> None:
        self.network = network
        self.directory = directory
        self.masters = [f"m{i}" for i in range(1, masters + 1)]
        self.agents = [f"h{i}" for i in range(1, agents + 1)]
        self.config = directory / "cluster.yaml"
        #: processes that were started, by name
        self.daemons: dict[str, Daemon] = {}
        self.environ: dict[str, dict[str, str]] = {}
        #: the cluster file of a daemon that does not have the common one, by name
        self.configs: dict[str, Path] = {}
        #: what is put before a daemon's command, by name
        self.wrappers: dict[str, list[str]] = {}
        self._sizes = {FIELDS[name]: str(value) for name, value in {**SIZES, **(sizes or {})}.items()}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (directory / "log").mkdir(exist_ok=True)
        throwaway_secrets(directory / "secrets", self.masters, cluster="chaos")
        self._settings = {**SETTINGS, **(settings or {})}
        self.config.write_bytes(msgspec.yaml.encode(self._describe(self._settings)))
        secret = (directory / "secrets" / "raft.secret").read_text().strip()
        self._master_token = master_token(secret.encode())

    def _describe(self, settings: dict[str, Any]) -> dict[str, Any]:
        address = self.network.address
        return {
            "cluster": "chaos",
            "masters": [
                {
                    "id": name,
                    "host": address(name),
                    "port": PORT,
                    "raft_port": RAFT_PORT,
                    "dir": str(self.folder(name)),
                }
                for name in self.masters
            ],
            "hosts": [
                {"name": name, "host": address(name), "slots": 4, "dir": str(self.folder(name))} for name in self.agents
            ],
            "secrets": str(self.directory / "secrets"),
            "settings": settings,
        }

    def differ(self, name: str, **settings: Any) -> None:
        """Gives a daemon a cluster file of its own, in which these settings are others."""
        self.configs[name] = self.directory / f"cluster-{name}.yaml"
        self.configs[name].write_bytes(msgspec.yaml.encode(self._describe({**self._settings, **settings})))

    # ------------------------------------------------------------ processes

    def folder(self, name: str) -> Path:
        """Where a process keeps its files."""
        return self.directory / name

    def raft_folder(self, name: str) -> Path:
        """Where a master keeps journal, vote and snapshots."""
        return self.folder(name) / "raft"

    def start(self, *names: str) -> None:
        """Starts these processes, or all; returns at once."""
        for name in names or (*self.masters, *self.agents):
            daemon = self.daemons.setdefault(name, Daemon(name, self.directory / "log" / f"{name}.log"))
            environ = {**os.environ, **self._sizes, **self.environ.get(name, {})}
            daemon.start(self.network.inside(name, *self.command(name)), self.folder(name), environ)

    def command(self, name: str) -> list[str]:
        """Returns what is run for a process."""
        if name in self.masters:
            argv = [sys.executable, "-m", "depalma.testing.chaos.small_master", "--id", name]
        else:
            argv = [sys.executable, "-m", "depalma.remote", "--name", name]
        return [*self.wrappers.get(name, ()), *argv, "--config", str(self.configs.get(name, self.config))]

    def signal(self, number: int, *names: str) -> None:
        """Signals processes, all as close together as can be."""
        for name in names:
            self.daemons[name].signal(number)

    def kill(self, *names: str) -> None:
        """SIGKILL; returns when they are gone."""
        self.signal(signal.SIGKILL, *names)
        for name in names:
            wait_until(lambda at=name: not self.running(at), within_s=30, what=f"{name} gone after SIGKILL")  # type: ignore[misc]

    def pid(self, name: str) -> int:
        """Returns the pid of a process that was started."""
        pid = self.daemons[name].pid
        assert pid is not None
        return pid

    def running(self, name: str) -> bool:
        """Returns whether it runs (or is frozen)."""
        return name in self.daemons and self.daemons[name].running()

    def log(self, name: str) -> str:
        """Returns what it has logged since its first start."""
        return self.daemons[name].log.read_text(errors="replace")

    def stop(self) -> list[str]:
        """Ends everything, frozen ones too; returns the names of those that had to be killed."""
        forced: list[str] = []
        for names in (self.agents, self.masters):
            forced += stop_all([self.daemons[name] for name in names if name in self.daemons], 5.0)
        return forced

    # ------------------------------------------------------------ looking

    @property
    def urls(self) -> list[str]:
        """The masters' base URLs."""
        return [f"http://{self.network.address(name)}:{PORT}" for name in self.masters]

    @property
    def token_file(self) -> Path:
        """Where the users' token is."""
        return self.directory / "secrets" / "token"

    def client(self, **options: Any) -> Client:
        """Returns a client that knows all masters."""
        return Client(self.urls, token_file=self.token_file, **options)

    def get(self, name: str, path: str, *, token: str = "", timeout_s: float = 0.5) -> tuple[int, bytes]:
        """Asks one master; returns status and body, status 0 if there was no answer in time."""
        connection = http.client.HTTPConnection(self.network.address(name), PORT, timeout=timeout_s)
        headers = {"Authorization": f"Bearer {token or self.token_file.read_text().strip()}"}
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def status(self, name: str) -> MasterView | None:
        """Returns how a master sees itself, None if it does not answer in half a second."""
        if not self.running(name):
            return None
        status, body = self.get(name, "/internal/status", token=self._master_token)
        return msgspec.json.decode(body, type=MasterStatus).view if status == 200 else None

    def statuses(self) -> list[MasterView]:
        """Returns the views of the masters that answer."""
        return [view for view in map(self.status, self.masters) if view is not None]

    def leader(self, *, within_s: float = 10.0, among: list[str] | None = None) -> str:
        """Returns the newest leader. Errors: TooLate."""

        def look() -> str:
            leaders = [view for view in self.statuses() if view.role == "leader" and view.id in (among or self.masters)]
            return max(leaders, key=lambda view: view.term).id if leaders else ""

        return wait_until(look, within_s=within_s, what="a leader")

    def followers(self) -> list[str]:
        """Returns the masters that do not lead."""
        leader = self.leader()
        return [name for name in self.masters if name != leader]

    def wait_ready(self, within_s: float = START_S) -> None:
        """Returns when all masters agree on a leader and all agents that run are up. Errors: TooLate."""
        wait_until(self._not_ready, lambda missing: not missing, within_s=within_s, what="ready", every_s=0.05)

    def _not_ready(self) -> list[str]:
        for name, daemon in self.daemons.items():
            assert daemon.running(), f"{name} ended with {daemon.exit_code}: {daemon.last_lines()}"
        views = self.statuses()
        missing = sorted(set(self.masters) - {view.id for view in views if view.role in ("leader", "follower")})
        if missing or not [view for view in views if view.role == "leader"]:
            return missing or ["a leader"]
        with self.client(deadline_s=1.0) as client:
            up = {host.name for host in client.hosts() if host.state == "up"}
        return [name for name in self.agents if self.running(name) and name not in up]

    def no_one_missing(self) -> bool:
        """Returns whether every master answers and follows or leads."""
        return sum(view.role in ("leader", "follower") for view in self.statuses()) == len(self.masters)

    def wait_same(self, within_s: float) -> None:
        """Returns when all masters have the same state (nothing may be submitted meanwhile). Errors: TooLate."""
        wait_until(
            lambda: [(view.id, view.applied_index, view.state_hash) for view in self.statuses()],
            lambda seen: len(seen) == len(self.masters) and len({one[1:] for one in seen}) == 1,
            within_s=within_s,
            what="all masters the same",
            every_s=0.05,
        )
