"""What the machine says of its owner: the last input, and the load that is not ours. All of it is cheap to ask.

Sources of input, each where it can be read: terminals (the kernel notes when each was last typed at, to some seconds),
logins, input devices (that something came, never what), and what desktops say of themselves (`desktop_idle`).
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
import time
from collections import deque
from typing import NamedTuple

import psutil

from depalma.agent import proctree
from depalma.agent.daemons import Daemons

#: Load of others is that of so long: shorter, and every cron job is a person.
_WINDOW_S = 5.0
_RESCAN_S = 10.0
#: Whose a terminal is must be found out when there is something new, and for so long after it: a task makes one first,
#: and only then begins to use it.
_SURE_S = 5.0
_PROGRAM_S = 3.0
_TERMINALS = ("/dev/tty[0-9]*", "/dev/pts/[0-9]*")
_DEVICES = "/dev/input/event*"
_CLASSES = "/sys/class/input"
_SESSIONS = "/run/systemd/sessions/*"
_DESKTOPS = ("x11", "wayland", "mir")
#: Numbers of terminals that the agent made for visits: also while no process has them.
made: set[int] = set()


class Input:
    """Finds the last input. The other names are for tests."""

    def __init__(
        self,
        terminals: tuple[str, ...] = _TERMINALS,
        devices: str = _DEVICES,
        *,
        logins: bool = True,
        classes: str = _CLASSES,
    ) -> None:
        self._terminals = terminals
        self._devices = devices
        self._classes = classes
        self._logins = logins
        self._open: dict[str, int] = {}
        self._rescan_s = 0.0
        self._found: list[tuple[float, str, int]] = []  #: terminals: last input, name, number; the last one first
        self._sure_s = 0.0
        self._latest: list[tuple[float, str, int]] = []
        self._device_at: tuple[float, str] = (0.0, "")

    def last(self, wall: float, now: float) -> tuple[float | None, str]:
        """Returns when (seconds since the epoch) and where the last input was; None if nothing can be known."""
        found = [self._of_terminals(now), self._of_devices(wall, now)]
        if self._logins:
            found += [(user.started, f"{user.terminal or 'login'} ({user.name} logged in)") for user in psutil.users()]
        at, where = max(found)
        return (at, where) if at else (None, "")

    def _of_terminals(self, now: float) -> tuple[float, str]:
        """Returns the last one that was typed at, of those that none of our tasks has."""
        found = []
        for pattern in self._terminals:
            for name in glob.glob(pattern):
                with contextlib.suppress(OSError):
                    seen = os.stat(name)
                    found.append((seen.st_atime, name.removeprefix("/dev/"), seen.st_rdev))
        found.sort(reverse=True)
        if found != self._found:
            self._found, self._sure_s = found, now + _SURE_S
        if now <= self._sure_s:
            own = _own_terminals() if found else set()
            self._latest = [terminal for terminal in found if terminal[2] not in own][:1]
        return self._latest[0][:2] if self._latest else (0.0, "")

    def _of_devices(self, wall: float, now: float) -> tuple[float, str]:
        if now >= self._rescan_s:
            self._rescan_s = now + _RESCAN_S
            self._reopen()
        for name, handle in list(self._open.items()):
            try:
                while os.read(handle, 4096):  # only that there is something: what it is nobody looks at
                    self._device_at = wall, name.removeprefix("/dev/")
            except BlockingIOError:
                continue
            except OSError:  # unplugged
                os.close(self._open.pop(name))
        return self._device_at

    def _reopen(self) -> None:
        for name in glob.glob(self._devices):
            if name not in self._open and self._has_keys(name):
                with contextlib.suppress(OSError):
                    self._open[name] = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def _has_keys(self, device: str) -> bool:
        """Returns whether a person can press something on it: a sensor that moves by itself is nobody."""
        path = f"{self._classes}/{os.path.basename(device)}/device/capabilities/key"
        return bool(proctree.read(path).strip(b"0 \n"))

    def close(self) -> None:
        """Closes the devices; a later look opens them again."""
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()
        self._rescan_s = 0.0


def _own_terminals() -> set[int]:
    """Returns the numbers of the terminals that processes of our tasks have."""
    found = set(made)
    for pid, _ in proctree.descendants(os.getpid()):
        data = proctree.read(f"/proc/{pid}/stat")
        number = int(data[data.rindex(b")") + 2 :].split()[4]) if data else 0
        if number > 0:
            found.add(os.makedev((number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)))
    return found


def desktop_idle(places: str = _SESSIONS) -> tuple[float, str] | None:
    """Returns the last input as logind has it from desktops, now (0) if they are in use; None without any (blocks)."""
    sessions = [os.path.basename(path) for path in glob.glob(places) if _is_desktop(path)]
    if not sessions or shutil.which("loginctl") is None:
        return None
    words = ["loginctl", "show-session", *sessions, "-p", "IdleHint", "-p", "IdleSinceHint"]
    last = 0.0
    for block in _output(words).split("\n\n"):
        said = _fields(block)
        if said.get("IdleHint") == "no":
            return 0.0, "the desktop"
        with contextlib.suppress(ValueError):
            last = max(last, int(said.get("IdleSinceHint", "0")) / 1e6)
    return (last, "the desktop") if last else None


def _fields(text: str) -> dict[str, str]:
    """Returns what `NAME=value` lines say."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _is_desktop(session: str) -> bool:
    said = dict(
        line.split("=", 1) for line in proctree.read(session).decode(errors="replace").splitlines() if "=" in line
    )
    return said.get("TYPE") in _DESKTOPS and said.get("CLASS") == "user" and said.get("STATE") != "closing"


def foreign_gpu_percent() -> float | None:
    """Returns what others use of the busiest NVIDIA GPU; None where this cannot be known (blocks for a second)."""
    if shutil.which("nvidia-smi") is None:
        return None
    own = {os.getpid(), *(pid for pid, _ in proctree.descendants(os.getpid()))}
    by_gpu: dict[str, float] = {}
    for line in _output(["nvidia-smi", "pmon", "-c", "1", "-s", "u"]).splitlines():
        words = line.split()  # gpu, process, type, its share in percent, …
        if len(words) > 3 and words[1].isdigit() and words[3].isdigit() and int(words[1]) not in own:
            by_gpu[words[0]] = by_gpu.get(words[0], 0.0) + int(words[3])
    return max(by_gpu.values(), default=0.0)


def _output(words: list[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PROGRAM_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


class _Sample(NamedTuple):
    at_s: float
    before: tuple[int, int]  #: ticks of all processors, and the busy ones, before `own` was looked at
    own: int
    after: tuple[int, int]


class ForeignCpu:
    """Measures what everything but us uses of all processors, over the last seconds.

    We are this agent with its tasks, and the masters and the other agents of the machine with theirs.
    """

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._daemons = Daemons()
        self._others_ticks = 0

    def percent(self) -> float | None:
        """Takes a sample; returns the share since the oldest one of the window, None at first."""
        now = time.monotonic()
        before = machine_ticks()
        samples = self._samples
        self._others_ticks += sum(self._daemons.used(without=os.getpid()))
        samples.append(_Sample(now, before, own_ticks() + self._others_ticks, machine_ticks()))
        while len(samples) > 2 and now - samples[1].at_s >= _WINDOW_S:
            samples.popleft()
        first, last = samples[0], samples[-1]
        # All of it within the time of `own`: what we used while this process stood still in a sample is no owner's.
        total, busy = last.before[0] - first.after[0], last.before[1] - first.after[1]
        if total <= 0 or last.at_s - first.at_s > 4 * _WINDOW_S:
            self._samples = deque([last])  # nothing yet, or nobody has looked for a long time
            return None
        # A task that does not wait for its children takes their time along: ours may seem to shrink, never to be less.
        return max(0.0, 100.0 * (busy - max(0, last.own - first.own)) / total)


def machine_ticks() -> tuple[int, int]:
    """Returns the ticks of all processors, and those in which they did something."""
    words = [int(word) for word in proctree.read("/proc/stat").split(b"\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, soft, _ = words
    return sum(words), user + nice + system + irq + soft


def own_ticks() -> int:
    """Returns the ticks that this process and everything below it has used, what has ended included."""
    own = os.getpid()
    total = 0
    for pid in (own, *(pid for pid, _ in proctree.descendants(own))):
        data = proctree.read(f"/proc/{pid}/stat")
        if data:
            total += sum(map(int, data[data.rindex(b")") + 2 :].split()[11:15]))
    return total
