"""`LocalCluster`: masters and agents as real processes on loopback."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import shutil
import signal
import tempfile
import time
import warnings
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from depalma.certificates import AUTHORITY_FILE
from depalma.client.client import Client
from depalma.client.connections import FAILURES, HttpConnection
from depalma.config import ClusterConfig, MasterConfig, load
from depalma.errors import ConfigError, DepalmaError, NoLeader, Rejected
from depalma.local import folder
from depalma.local.folder import ClusterState, ProcessEntry
from depalma.local.processes import (
    MARK,
    Daemon,
    Guard,
    Identity,
    descendants,
    describe,
    find,
    identify,
    marked,
    send,
    stop_all,
)
from depalma.model import HostView
from depalma.trust import Trust

START_S = 30.0
STOP_S = 10.0
#: How long processes of tasks may outlive a killed agent: its supervisor sees the end of its pipe, or of the lease.
_REST_S = 8.0
_TRIES = 3


def _check_numbers(masters: int, agents: int, slots: int | None) -> None:
    for field, number, allowed, fits in (
        ("masters", masters, "1, 3 or 5", (1, 3, 5).__contains__),
        ("agents", agents, "0 to 1000", range(1001).__contains__),
        ("slots", slots, "1 to 100000, or None", lambda number: number is None or number in range(1, 100_001)),
    ):
        if not (fits(number) and type(number) in (int, type(None))):
            raise ConfigError(f"{field}: {number!r} given; allowed: {allowed}")


class LocalCluster:
    """A cluster of `masters` (1, 3 or 5) and `agents` on loopback, ready when the constructor returns.

    Its files are in `directory`; without one it makes a temporary folder and removes it at the end. `slots` of each
    agent default to the CPUs divided by the agents. The environment of this process is handed on. Leaving the
    context, `stop`, or the end of the program stops everything.
    Errors: ConfigError, DepalmaError if it is not ready within `start_s` seconds (with the end of the log).
    """

    def __init__(
        self,
        masters: int = 3,
        agents: int = 2,
        *,
        slots: int | None = None,
        directory: str | os.PathLike[str] | None = None,
        settings: dict[str, Any] | None = None,
        start_s: float = START_S,
    ) -> None:
        _check_numbers(masters, agents, slots)
        self._temporary = directory is None
        self.directory = Path(directory or tempfile.mkdtemp(prefix="depalma-")).resolve()
        self.leftovers: list[str] = []  #: processes that had to be killed at the end, as none should
        self._daemons: dict[str, Daemon] = {}
        self._began: dict[str, float] = {}
        self._detached = False
        self._stopped = False
        if not self._temporary:
            _refuse_running(self.directory)
        self._guard: Guard | None = Guard(remove=str(self.directory) if self._temporary else "")
        per_agent = slots or max(1, (os.cpu_count() or 1) // max(1, agents))
        try:
            self._launch(masters, agents, per_agent, settings, start_s)
        except BaseException:
            self.stop(timeout_s=2.0)
            raise
        _running.add(self)

    # ------------------------------------------------------------ starting

    def _launch(self, masters: int, agents: int, slots: int, settings: dict[str, Any] | None, start_s: float) -> None:
        for attempt in range(_TRIES):
            config = folder.make(self.directory, masters=masters, agents=agents, slots=slots, settings=settings)
            self._state = ClusterState(
                processes=folder.entries(config, self.directory),
                masters=[config.url(master) for master in config.masters],
                token_file=str(self.directory / "secrets" / "token"),
                ca=str(self.directory / "secrets" / AUTHORITY_FILE),
            )
            for entry in self._state.processes:
                self._start(entry)
            self._save()
            try:
                self.wait_ready(start_s)
                return
            except PortTaken:
                stop_all(self._daemons.values(), 2.0)
                if attempt == _TRIES - 1:
                    raise

    def _start(self, entry: ProcessEntry) -> None:
        daemon = self._daemons.get(entry.id) or Daemon(entry.id, self.directory / "log" / f"{entry.id}.log")
        self._daemons[entry.id] = daemon
        daemon.start(entry.argv, Path(entry.dir), {**os.environ, MARK: str(self.directory)})
        self._began[entry.id] = time.monotonic()
        entry.pid = daemon.pid
        entry.started = daemon.identity.started if daemon.identity else 0
        if self._guard is not None and daemon.identity is not None:
            self._guard.watch(entry.role, daemon.identity)

    def _save(self) -> None:
        folder.save_state(self.directory, self._state)

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Returns when every running master is ready and every running agent is up. Errors: DepalmaError."""
        deadline = time.monotonic() + timeout_s
        with self.client(deadline_s=0.5) as client:
            while True:
                missing = self._not_ready(client)
                if not missing:
                    return
                self._check_alive()
                if time.monotonic() > deadline:
                    worst = self._daemons[missing[0]]
                    raise DepalmaError(
                        f"the local cluster is not ready after {timeout_s:g} s; missing: {', '.join(missing)}. "
                        f"End of {worst.log.name}:\n{worst.last_lines()}"
                    )
                time.sleep(0.02)

    def _not_ready(self, client: Client) -> list[str]:
        """Returns the ids of the daemons that run and are not ready."""
        wanted = [entry for entry in self._state.processes if self._wanted(entry)]
        missing = [entry.id for entry in wanted if entry.role == "master" and not self._answers(entry.url)]
        if missing:
            return missing
        try:
            # One that lags is there: what it lacks may be a command that fails.
            there = ("up", "lagging", "kicked", "draining", "drained", "owner")
            up = {host.name for host in client.hosts() if host.state in there and self._is_heard(host)}
        except (NoLeader, Rejected):
            return [entry.id for entry in wanted]
        return [entry.id for entry in wanted if entry.role == "agent" and entry.id not in up]

    def _is_heard(self, host: HostView) -> bool:
        """Returns whether the leader heard it since it was started: what it says may be of a life that is over."""
        life_s = time.monotonic() - self._began.get(host.name, -math.inf)
        return host.last_seen_s is not None and host.last_seen_s <= life_s

    def _answers(self, url: str) -> bool:
        trust = Trust(self._state.ca) if url.startswith("https:") else None
        connection = HttpConnection.to(url, trust, timeout_s=1.0)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except FAILURES:
            return False
        finally:
            connection.close()

    def _wanted(self, entry: ProcessEntry) -> bool:
        return entry.pid is not None

    def _check_alive(self) -> None:
        for entry in self._state.processes:
            daemon = self._daemons[entry.id]
            if self._wanted(entry) and not daemon.running():
                lines = daemon.last_lines()
                kind = PortTaken if "address already in use" in lines.lower() else DepalmaError
                what = f"{entry.role} {entry.id} ended with exit code {daemon.exit_code}"
                raise kind(f"{what}; end of {daemon.log.name}:\n{lines}")

    # ------------------------------------------------------------ using

    def client(self, **options: Any) -> Client:
        """Returns a new client of this cluster; see Client for the options."""
        return Client(self._state.masters, token_file=self._state.token_file, ca=self._state.ca, **options)

    @property
    def masters(self) -> list[str]:
        """The masters' base URLs."""
        return list(self._state.masters)

    @property
    def token_file(self) -> str:
        """Where the token of users is."""
        return self._state.token_file

    @property
    def ca(self) -> str:
        """Where the certificate of the cluster's authority is, which clients by https need."""
        return self._state.ca

    @property
    def processes(self) -> list[ProcessEntry]:
        """The daemons; `pid` is None for one that was killed."""
        return list(self._state.processes)

    def leader(self, timeout_s: float = 10.0) -> str:
        """Returns the id of the master that leads. Errors: NoLeader."""
        deadline = time.monotonic() + timeout_s
        with self.client(deadline_s=timeout_s) as client:
            while True:
                leaders = [master for master in client.masters() if master.role == "leader"]
                if leaders:
                    return max(leaders, key=lambda master: master.term).id
                if time.monotonic() > deadline:
                    raise NoLeader(f"no master leads after {timeout_s:g} s")
                time.sleep(0.02)

    def kill(self, name: str, number: int = signal.SIGKILL, *, timeout_s: float = STOP_S) -> None:
        """Sends a deadly signal to a master or an agent and returns when it is gone. Errors: DepalmaError."""
        daemon = self._daemon(name)
        daemon.signal(number)
        if number != signal.SIGKILL:
            daemon.signal(signal.SIGCONT)
        if not daemon.wait(timeout_s):
            raise DepalmaError(f"{name} still runs {timeout_s:g} s after signal {number}")
        self._entry(name).pid = None
        self._save()

    def restart(self, name: str, *, wait_s: float = START_S) -> None:
        """Starts a master or an agent again where it was (ending it first if it runs); waits until it is ready."""
        daemon = self._daemon(name)
        if daemon.running():
            self.kill(name, signal.SIGTERM)
        self._start(self._entry(name))
        self._save()
        if wait_s:
            self.wait_ready(wait_s)

    def resize(self, masters: int) -> list[str]:
        """Lets masters join, or leave, until there are so many (1, 3 or 5); returns the ids of all.

        The cluster works all the time. Errors: ConfigError, Rejected, DepalmaError.
        """
        config = load(self.directory / folder.CLUSTER_FILE)
        kept = list(config.masters[:masters])
        new: list[MasterConfig] = []
        while len(kept) + len(new) < masters:
            new.append(folder.new_master(self.directory, [*self._daemons, *(master.id for master in new)]))
        self._become(replace(config, masters=(*kept, *new)), config.masters[masters:])
        return [master.id for master in (*kept, *new)]

    def replace_master(self, name: str) -> str:
        """Lets a new master take the place of one that is lost for good; returns the new one's id.

        Errors: ConfigError, Rejected, DepalmaError.
        """
        config = load(self.directory / folder.CLUSTER_FILE)
        old, new = config.master(name), folder.new_master(self.directory, self._daemons)
        if self._daemon(name).running():
            raise DepalmaError(f"{name} runs; kill it first")
        self._become(replace(config, masters=tuple(new if one == old else one for one in config.masters)), (old,))
        return new.id

    def _become(self, config: ClusterConfig, leaving: Iterable[MasterConfig]) -> None:
        """Who leaves and is dead goes first, so that a majority is left; then who joins comes, one at a time."""
        folder.save(self.directory, config)
        with self.client() as client:
            for old in leaving:
                client.remove_master(old.id)
                self._forget(old, config.url(old))
            for new in config.masters:
                if new.id in self._daemons:
                    continue
                url = config.url(new)
                entry = folder.master_entry(new, url, self.directory)
                entry.argv.append("--join")
                self._state.processes.append(entry)
                self._start(entry)
                client.add_master(new.id, new.host, port=new.port, raft_port=new.raft_port)
                self._state.masters.append(url)
                self._save()
        self.wait_ready()

    def _forget(self, master: MasterConfig, url: str) -> None:
        daemon = self._daemons.pop(master.id)
        if daemon.running() and not daemon.wait(STOP_S):  # it has been told that it has left
            self.leftovers += [f"{name} did not end when it was removed" for name in stop_all([daemon], STOP_S)]
        self._state.processes = [entry for entry in self._state.processes if entry.id != master.id]
        self._state.masters.remove(url)
        self._save()

    def pause(self, name: str) -> None:
        """Freezes a process (SIGSTOP)."""
        self._daemon(name).signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Lets a frozen process go on."""
        self._daemon(name).signal(signal.SIGCONT)

    def log(self, name: str) -> str:
        """Returns what a process has logged."""
        return self._daemon(name).log.read_text(errors="replace")

    def _daemon(self, name: str) -> Daemon:
        if name not in self._daemons:
            raise ConfigError(f"no process {name!r} in this cluster; there are: {', '.join(self._daemons)}")
        return self._daemons[name]

    def _entry(self, name: str) -> ProcessEntry:
        return next(entry for entry in self._state.processes if entry.id == name)

    # ------------------------------------------------------------ ending

    def stop(self, *, timeout_s: float = STOP_S) -> list[str]:
        """Stops agents, then masters, in order, by force after the time; nothing of the cluster is left.

        Returns the processes that had to be killed although they should have ended by themselves.
        """
        if self._stopped or self._detached:
            return self.leftovers
        self._stopped = True
        _running.discard(self)
        try:
            self._stop_in_order(timeout_s)
        finally:  # also when a second Ctrl-C interrupts the above
            for daemon in self._daemons.values():
                daemon.signal(signal.SIGKILL)
                daemon.wait(2.0)
            self._dismiss_guard()
            if self._temporary:
                shutil.rmtree(self.directory, ignore_errors=True)
            else:
                (self.directory / folder.STATE_FILE).unlink(missing_ok=True)
        return self.leftovers

    def _stop_in_order(self, timeout_s: float) -> None:
        for entry in self._entries():  # somebody may have run its argv again
            daemon = self._daemons.get(entry.id)
            found = None if daemon is None or daemon.running() else find(entry.argv)
            if daemon is not None and found is not None:
                daemon.adopt(found)
        known = descendants(daemon.identity for daemon in self._daemons.values() if daemon.identity)
        for role in ("agent", "master"):
            wanted = [self._daemons[e.id] for e in self._entries() if e.role == role and e.id in self._daemons]
            forced = stop_all(wanted, timeout_s)
            self.leftovers += [f"{name} did not stop within {timeout_s:g} s" for name in forced]
        rest = self._wait_for_rest(known)
        self.leftovers += [describe(identity) for identity in rest]
        for identity in rest:
            send(identity, signal.SIGKILL)
        if self.leftovers:
            warnings.warn("local cluster: had to kill: " + "; ".join(self.leftovers), ResourceWarning, stacklevel=4)

    def _entries(self) -> list[ProcessEntry]:
        state = getattr(self, "_state", None)  # stop() also cleans up after a start that failed early
        return state.processes if state is not None else []

    def _wait_for_rest(self, known: set[Identity]) -> set[Identity]:
        """Returns processes of the cluster that outlive it for longer than they may."""
        deadline = time.monotonic() + _REST_S
        while True:
            rest = descendants(known) | marked(str(self.directory), self.directory)
            if not rest or time.monotonic() > deadline:
                return rest
            time.sleep(0.02)

    def _dismiss_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.dismiss()

    def detach(self) -> None:
        """Leaves the cluster running when this program ends; `attach` finds it again."""
        self._detached = True
        _running.discard(self)
        self._dismiss_guard()
        for daemon in self._daemons.values():
            daemon.let_go()

    @classmethod
    def attach(cls, directory: str | os.PathLike[str]) -> LocalCluster:
        """Returns the running cluster of a folder; leaving its context does stop it. Errors: ConfigError."""
        self = cls.__new__(cls)
        self.directory = Path(directory).resolve()
        self._state = folder.load_state(self.directory)
        self._temporary = self._detached = self._stopped = False
        self.leftovers = []
        self._guard = None
        self._daemons = {}
        self._began = {}
        for entry in self._state.processes:
            daemon = Daemon(entry.id, self.directory / "log" / f"{entry.id}.log")
            if entry.pid is not None:
                daemon.adopt(Identity(entry.pid, entry.started))
            self._daemons[entry.id] = daemon
        return self

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<LocalCluster {self.directory}>"


class PortTaken(DepalmaError):
    """Another process took a port between its choice and its use."""


def _refuse_running(directory: Path) -> None:
    with contextlib.suppress(ConfigError):
        for entry in folder.load_state(directory).processes:
            now = identify(entry.pid) if entry.pid else None
            if now is not None and now.started == entry.started:
                raise DepalmaError(
                    f"{directory}: a local cluster runs there already (process {entry.pid}); "
                    f"stop it with: depalmactl dev --stop --dir {directory}"
                )


_running: weakref.WeakSet[LocalCluster] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for cluster in list(_running):
        cluster.stop()
