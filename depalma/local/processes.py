"""Processes of a local cluster by the kernel's own account (`/proc`), so that a reused pid is never signalled."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

#: In the environment of everything that a local cluster starts: finds what left the process tree.
MARK = "DEPALMA_LOCAL_CLUSTER"


class Identity(Struct, frozen=True):
    """A process for good: a pid alone may be used again."""

    pid: int
    started: int


class Stat(Struct, frozen=True):
    """What `/proc/PID/stat` says."""

    parent: int
    started: int
    state: str


def stat(pid: int) -> Stat | None:
    """Returns what the kernel knows of a process; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, ValueError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name may hold anything, brackets too
    return Stat(parent=int(fields[1]), started=int(fields[19]), state=fields[0])


def identify(pid: int) -> Identity | None:
    """Returns the process that has this pid now."""
    found = stat(pid)
    return Identity(pid, found.started) if found else None


def alive(identity: Identity) -> bool:
    """Returns whether that very process runs (a zombie does not)."""
    found = stat(identity.pid)
    return found is not None and found.started == identity.started and found.state not in "ZX"


def send(identity: Identity, number: int) -> bool:
    """Signals that very process; False if it is gone."""
    if not alive(identity):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(identity.pid, number)
        return True
    return False


def describe(identity: Identity) -> str:
    """Returns pid and command line."""
    try:
        words = Path(f"/proc/{identity.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        words = "(ended)"
    return f"{identity.pid} {words.strip()[:200]}"


def _pids() -> Iterable[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def descendants(roots: Iterable[Identity]) -> set[Identity]:
    """Returns the living processes below `roots`, those included."""
    children: dict[int, list[Identity]] = {}
    for pid in _pids():
        found = stat(pid)
        if found is not None and found.state not in "ZX":
            children.setdefault(found.parent, []).append(Identity(pid, found.started))
    below = {root for root in roots if alive(root)}
    todo = list(below)
    while todo:
        for child in children.get(todo.pop().pid, ()):
            if child not in below:
                below.add(child)
                todo.append(child)
    return below


def marked(mark: str, directory: Path) -> set[Identity]:
    """Returns the living processes that carry the cluster's mark or work in its folder, this one excepted."""
    needle = f"{MARK}={mark}".encode()
    found = set()
    for pid in _pids():
        if pid == os.getpid():
            continue
        try:
            belongs = needle in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            belongs = belongs or Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(directory)
        except OSError:  # it ended, or it is another user's
            continue
        identity = identify(pid)
        if belongs and identity is not None and alive(identity):
            found.add(identity)
    return found


def find(argv: list[str]) -> Identity | None:
    """Returns a living process that was started with these arguments."""
    wanted = [word.encode() for word in argv[1:]]
    for pid in _pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:-1]
        except OSError:
            continue
        identity = identify(pid) if words == wanted else None
        if identity is not None and alive(identity):
            return identity
    return None


class Daemon:
    """One daemon of the cluster: started here, or found by its record."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.identity: Identity | None = None
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self, argv: list[str], directory: Path, environ: Mapping[str, str]) -> None:
        """Starts it in a session of its own (Ctrl-C in our terminal is not meant for it)."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env=dict(environ),
                start_new_session=True,
            )
        self.identity = identify(self._popen.pid)

    def adopt(self, identity: Identity) -> None:
        """Takes over one that somebody else started."""
        self.identity, self._popen = identity, None

    @property
    def pid(self) -> int | None:
        """The process id of its last start."""
        return self.identity.pid if self.identity else None

    def running(self) -> bool:
        """Returns whether it runs; reaps it if it was our child."""
        if self._popen is not None:
            # Not by /proc: while a killed process's other threads die it looks like a zombie, and still holds files.
            return self._popen.poll() is None
        return self.identity is not None and alive(self.identity)

    @property
    def exit_code(self) -> int | None:
        """How it ended, if it was our child and has."""
        return self._popen.poll() if self._popen is not None else None

    def signal(self, number: int) -> bool:
        """Sends a signal; False if it is gone."""
        return self.running() and self.identity is not None and send(self.identity, number)

    def wait(self, timeout_s: float) -> bool:
        """Returns whether it ended in time."""
        deadline = time.monotonic() + timeout_s
        while self.running():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True

    def let_go(self) -> None:
        """Leaves it running when this process ends."""
        if self._popen is not None:
            self._popen.returncode = 0  # it is no longer ours to wait for
            self._popen = None

    def last_lines(self, count: int = 15) -> str:
        """Returns the end of its log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(lines[-count:]) or "(the log is empty)"


def stop_all(daemons: Iterable[Daemon], timeout_s: float) -> list[str]:
    """Ends daemons in order, by force after the time; returns the names of those that needed force."""
    stopping = [daemon for daemon in daemons if daemon.running()]
    for daemon in stopping:
        daemon.signal(signal.SIGTERM)
        daemon.signal(signal.SIGCONT)  # one that is paused could not hear it
    deadline = time.monotonic() + timeout_s
    forced = []
    for daemon in stopping:
        if not daemon.wait(max(0.0, deadline - time.monotonic())):
            daemon.signal(signal.SIGKILL)
            daemon.wait(5.0)
            forced.append(daemon.name)
    return forced


class Guard:
    """A small process that ends the daemons if this program dies without doing so (see guard.py)."""

    def __init__(self, remove: str) -> None:
        script = Path(__file__).with_name("guard.py")
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            text=True,
        )
        if remove:
            self._say(f"remove {remove}")

    def watch(self, role: str, identity: Identity) -> None:
        """Puts an agent or a master under its care."""
        self._say(f"{role} {identity.pid} {identity.started}")

    def dismiss(self) -> None:
        """Ends it; nothing else happens."""
        self._say("done")
        if self._popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.close()
        self._popen.wait()

    def _say(self, line: str) -> None:
        if self._popen.stdin is None or self._popen.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):  # somebody killed it: the cluster works without
            self._popen.stdin.write(line + "\n")
            self._popen.stdin.flush()
