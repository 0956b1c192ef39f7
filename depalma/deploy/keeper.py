"""The half that runs on the machine: `python -m depalma.deploy.keeper`, an order on stdin, the answer on stdout.

Each daemon has a folder of its own, `~/.local/state/depalma/clusters/CLUSTER/ROLE-ID/`: its cluster file, the secrets
that it needs and no others, its log, and the record of its process. So machines that share a home folder do not get in
each other's way. A process is only ever signalled as what was recorded: pid, start time and boot.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from depalma import __version__
from depalma.certificates import AUTHORITY_FILE
from depalma.client.connections import FAILURES, HttpConnection
from depalma.deploy import launch
from depalma.deploy.orders import ANSWER, Answer, DaemonOrder, DaemonReport, Order, decode_order, digest, encode
from depalma.local.processes import Identity, alive, descendants, identify, send
from depalma.trust import Trust

#: In the environment of every daemon and of what it starts: its folder. Finds what outlived the process on record.
MARK = "DEPALMA_DEPLOYED"
#: Among these is what a daemon said last; the gravest of them is its reason.
_LAST_LINES = 10
RECORD, LOG, LOCK = "process.json", "log", "lock"
MASTER_START_S, AGENT_START_S = 30.0, 1.0
FORCED_S = 5.0
LOG_BYTES = 32 * 1024 * 1024
PROGRAMS = {"master": ("depalma.master", "--id"), "agent": ("depalma.remote", "--name")}


class Record(Struct, frozen=True):
    """What launch.py writes."""

    pid: int
    started: int
    boot: str
    fingerprint: str
    argv: list[str]


def clusters_folder() -> Path:
    """Returns where everything of this user's clusters is on this machine."""
    return Path.home() / ".local" / "state" / "depalma" / "clusters"


class Daemon:
    """One daemon's folder."""

    def __init__(self, cluster: str, name: str) -> None:
        self.folder = clusters_folder() / cluster / name
        self.role, _, self.id = name.partition("-")
        self.record = self._read()

    def _read(self) -> Record | None:
        try:
            record = msgspec.json.decode((self.folder / RECORD).read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError):
            return None
        return record if record.boot == launch.boot_id() else None

    @property
    def identity(self) -> Identity | None:
        """The process on record, if it lives."""
        found = Identity(self.record.pid, self.record.started) if self.record else None
        return found if found and alive(found) else None

    def report(self, **fields: object) -> DaemonReport:
        """Returns how it is."""
        who = self.identity
        about = {"role": self.role, "id": self.id, "running": who is not None, "pid": who.pid if who else 0}
        return msgspec.convert({**about, **fields}, DaemonReport)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else starts or stops it meanwhile."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.record = self._read()
            yield

    # ------------------------------------------------------------ files

    def files_digest(self) -> str:
        """Returns the digest of what start would write."""
        paths = [self.folder / "cluster.yaml", *(self.folder / "secrets").glob("*")]
        return digest({str(path.relative_to(self.folder)): path.read_bytes() for path in paths if path.is_file()})

    def write(self, files: dict[str, bytes]) -> None:
        """Makes the files what they are to be; a secret that is no longer needed goes."""
        (self.folder / "secrets").mkdir(mode=0o700, exist_ok=True)
        for path in (self.folder / "secrets").glob("*"):
            if str(path.relative_to(self.folder)) not in files:
                path.unlink()
        for name, data in files.items():
            path = self.folder / name
            if path.exists() and path.read_bytes() == data and path.stat().st_mode & 0o777 == 0o600:
                continue
            temporary = path.with_name(f".{path.name}.new")
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)

    # ------------------------------------------------------------ its process

    def look(self, order: DaemonOrder) -> DaemonReport:
        """Returns how it is and what `start` would do."""
        differs = ""
        if self.identity and self.record and self.record.fingerprint != order.fingerprint:
            differs = "restart"
        elif self.files_digest() != order.files_digest:
            differs = "files"
        return self.report(differs=differs, problem="" if self.identity else self._last_words())

    def start(self, order: DaemonOrder, patience_s: float) -> DaemonReport:
        """Makes it run as ordered; one that does already is left alone."""
        with self.locked():
            differs = self.look(order).differs
            self.write(order.files)
            if self.identity and differs != "restart":
                return self.report(did="updated" if differs else "")
            restarted = self.identity is not None
            forced = self._end(signal.SIGTERM, patience_s) if restarted else False
            process = self._launch(order)
            problem = self._settled(order, process, "readyz" if restarted else "healthz")
            process.returncode = 0  # not ours to wait for: it goes on when this program has ended
            did = "" if problem else "restarted" if restarted else "started"
            note = f"the one before had to be killed after {patience_s:g} s" if forced else ""
            return self.report(did=did, problem=problem, note=note)

    def _launch(self, order: DaemonOrder) -> subprocess.Popen[bytes]:
        log = self.folder / LOG
        if log.exists() and log.stat().st_size > LOG_BYTES:
            os.replace(log, self.folder / f"{LOG}.1")
        (self.folder / RECORD).unlink(missing_ok=True)
        module, option = PROGRAMS[order.role]
        config = str(self.folder / "cluster.yaml")
        # -P: a folder in the home folder that is called depalma is not this program.
        argv = [sys.executable, "-P", "-m", module, "--config", config, option, order.id]
        argv += ["--join"] if order.join else []
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SSH_")}
        wrapper = [sys.executable, "-I", "-S", launch.__file__, str(self.folder / RECORD), order.fingerprint]
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as stream:
            return subprocess.Popen(
                [*wrapper, *argv],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=Path.home(),
                env={**environment, MARK: str(self.folder)},
                start_new_session=True,  # no terminal, no SIGHUP: the connection may go
            )

    def _settled(self, order: DaemonOrder, process: subprocess.Popen[bytes], page: str) -> str:
        """Returns why it does not run; waits until a master answers, and for an agent's first moments.

        A master that was restarted has to serve again: the next one is restarted only then.
        """
        limit_s = MASTER_START_S if order.role == "master" else AGENT_START_S
        deadline = time.monotonic() + limit_s
        while process.poll() is None:
            self.record = self._read()
            if order.role == "master" and self.record and self._answers(order.url, page):
                return ""
            if time.monotonic() > deadline:
                return "" if order.role == "agent" else f"does not serve at {order.url}/{page} after {limit_s:g} s"
            time.sleep(0.05)
        return f"ended with exit code {process.returncode}: {self._last_line()}"

    def _answers(self, url: str, page: str) -> bool:
        trust = Trust(self.folder / "secrets" / AUTHORITY_FILE) if url.startswith("https:") else None
        connection = HttpConnection.to(url, trust, timeout_s=2.0)
        try:
            connection.request("GET", f"/{page}")
            return connection.getresponse().status == 200
        except FAILURES:
            return False
        finally:
            connection.close()

    def _last_line(self) -> str:
        try:
            lines = (self.folder / LOG).read_text(errors="replace").split("\n")
        except OSError:
            return "(no log)"
        lines = [line.strip() for line in lines if line.strip()][-_LAST_LINES:] or ["(the log is empty)"]
        grave = [line for line in lines if " ERROR " in line or " CRITICAL " in line]
        return (grave or lines)[-1][:300]

    def _last_words(self) -> str:
        """Returns what one that should run and does not said last."""
        return f"not running any more: {self._last_line()}" if self.record else ""

    def stop(self, patience_s: float, *, did: str = "stopped") -> DaemonReport | None:
        """Ends it in order, by force after the time, with everything that it has started; None: there was nothing."""
        with self.locked():
            if not self._lives():
                self._forget()
                return None
            forced = self._end(signal.SIGTERM, patience_s)
            if self._lives():
                return self.report(problem="cannot be stopped")
            self._forget()
            return self.report(did=did, note=f"had to be killed after {patience_s:g} s" if forced else "")

    def _lives(self) -> bool:
        return self.identity is not None or bool(self._strays())

    def _forget(self) -> None:
        """Removes the record; another machine's, in a shared home folder, stays."""
        if self.record is not None:
            (self.folder / RECORD).unlink(missing_ok=True)
            self.record = None

    def _end(self, number: int, patience_s: float) -> bool:
        """Returns whether force was needed. What the daemon started ends with it, or is killed after it."""
        who = self.identity
        family = descendants([who]) if who else set()
        if who:
            send(who, number)
            send(who, signal.SIGCONT)  # one that is paused could not hear it
            _wait_for({who}, patience_s)
        forced = False
        # An agent's supervisor ends the tasks by itself when the agent is gone, and tells the masters.
        _wait_for(family | self._strays(), FORCED_S if who is None or not alive(who) else 0)
        deadline = time.monotonic() + FORCED_S
        while (left := {one for one in family | self._strays() if alive(one)}) and time.monotonic() < deadline:
            forced = True
            for one in left:
                send(one, signal.SIGKILL)
            _wait_for(left, 0.2)
        return forced

    def _strays(self) -> set[Identity]:
        """Returns what carries the mark of this folder and is alive."""
        mark = f"{MARK}={self.folder}".encode()
        found = set()
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:  # it ended, or it is another user's
                continue
            if pid != os.getpid() and mark in environ:
                identity = identify(pid)
                if identity and alive(identity):
                    found.add(identity)
        return found


def _wait_for(gone: set[Identity], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while any(map(alive, gone)) and time.monotonic() < deadline:
        time.sleep(0.02)


def obey(order: Order) -> Answer:
    """Does what is ordered. Returns one report for each daemon that is named, or that was found."""
    named = {daemon.name: daemon for daemon in order.daemons}
    folder = clusters_folder() / order.cluster
    here = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    reports: list[DaemonReport] = []
    names = list(dict.fromkeys((*named, *here)))
    if order.action in ("stop", "kill"):
        names.sort(key=lambda name: not name.startswith("agent-"))  # an agent tells a master how its tasks ended
    for name in names:
        daemon = Daemon(order.cluster, name)
        if order.only not in (None, daemon.role):
            continue
        if order.action in ("stop", "kill"):
            report = daemon.stop(order.patience_s, did="stopped" if order.action == "stop" else "killed")
            if report or name in named:
                reports.append(report or daemon.report())
        elif name not in named:
            if daemon.identity and order.action == "look":
                reports.append(daemon.report(asked_for=False))
        elif order.action == "look":
            reports.append(daemon.look(named[name]))
        else:
            reports.append(daemon.start(named[name], order.patience_s))
    return Answer(version=__version__, python=platform.python_version(), reports=tuple(reports))


def main() -> None:
    """Reads the order, obeys, prints the answer."""
    os.umask(0o077)
    answer = obey(decode_order(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(b"\n" + ANSWER.encode() + encode(answer) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
