"""Machines that are network namespaces on one bridge, and what can go wrong between them.

The bridge is in a namespace too (the hub, where clients live): nothing of it can be seen from outside. Every name
begins with a mark (marks.py), so that what a killed run left behind is found and removed by the next.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from depalma.testing.chaos.marks import PREFIX, is_left_over, is_own, mark
from depalma.testing.chaos.shell import run, run_all

SUBNET = "10.77.0"
HUB = "hub"
_NETNS = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(path: str | Path) -> None:
    """Moves this thread (and what it starts) into a network namespace."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(path))
    finally:
        os.close(descriptor)


class Network:
    """Namespaces for these hosts; use it as a context. Entering moves the calling thread into the hub.

    Addresses: masters and agents get 10.77.0.1, .2, … in the order given, the hub 10.77.0.254.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._mark = mark()
        self.names = list(names)
        self._address = {name: f"{SUBNET}.{i}" for i, name in enumerate(self.names, 1)}
        self._address[HUB] = f"{SUBNET}.254"
        self._home_fd = -1

    def __enter__(self) -> Network:
        self._home_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._make()
            _enter(_NETNS / self.namespace(HUB))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        _enter(f"/proc/self/fd/{self._home_fd}")
        os.close(self._home_fd)
        _remove([self.namespace(name) for name in (*self.names, HUB)])

    def _make(self) -> None:
        hub = self.namespace(HUB)
        commands = [f"netns add {hub}", f"-n {hub} link set lo up", f"-n {hub} link add br0 type bridge"]
        commands += [f"-n {hub} addr add {self.address(HUB)}/24 dev br0", f"-n {hub} link set br0 up"]
        for name in self.names:
            space = self.namespace(name)
            commands += [
                f"netns add {space}",
                f"-n {space} link set lo up",
                f"-n {hub} link add name {name} type veth peer name eth0 netns {space}",
                f"-n {hub} link set dev {name} master br0 up",
                f"-n {space} addr add {self.address(name)}/24 dev eth0",
                f"-n {space} link set eth0 up",
            ]
        run_all(commands)

    def namespace(self, name: str) -> str:
        """Returns the namespace's name as `ip netns` shows it."""
        return self._mark + name

    def address(self, name: str) -> str:
        """Returns a host's address."""
        return self._address[name]

    def inside(self, name: str, *argv: str) -> list[str]:
        """Returns the command that runs `argv` on that host; it becomes `argv`, with the same pid."""
        return ["nsenter", f"--net={_NETNS / self.namespace(name)}", "--", *argv]

    @contextmanager
    def visiting(self, name: str) -> Iterator[None]:
        """The calling thread is on that host meanwhile."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(_NETNS / self.namespace(name))
            yield
        finally:
            _enter(f"/proc/self/fd/{before}")
            os.close(before)

    # ------------------------------------------------------------ faults

    def block(self, sources: Iterable[str], *targets: str) -> None:
        """What the sources send does not reach the targets; the other way still works (packets, not conversations)."""
        addresses = ", ".join(self.address(source) for source in sources)
        for target in targets:
            self._rule(target, f"ip saddr {{ {addresses} }} drop")

    def cut(self, name: str, others: Iterable[str]) -> None:
        """No packet passes between one host and the others; these still reach each other."""
        apart = [other for other in others if other != name]
        self.block(apart, name)
        self.block([name], *apart)

    def deafen(self, name: str, others: Iterable[str]) -> None:
        """The host hears none of the others; only its own rules say so, so that `heal(name)` is enough."""
        self.block(others, name)

    def silence(self, name: str, others: Iterable[str]) -> None:
        """None of the others hears the host; only its own rules say so, so that `heal(name)` is enough."""
        addresses = ", ".join(self.address(other) for other in others)
        self._rule(name, f"ip daddr {{ {addresses} }} drop", hook="output")

    def lose(self, name: str, percent: int) -> None:
        """So many of the packets that arrive at the host (from others) are lost at random."""
        self._rule(name, f'iifname "eth0" numgen random mod 100 < {percent} drop')

    def heal(self, *names: str) -> None:
        """Takes all rules away, from these hosts or from all; links that were pulled come up again."""
        for name in names or (*self.names, HUB):
            run(*self.inside(name, "nft", "flush", "ruleset"))

    def link(self, name: str, up: bool) -> None:
        """Pulls the host's cable, or plugs it in."""
        run("ip", "-n", self.namespace(HUB), "link", "set", "dev", name, "up" if up else "down")

    def throttle(self, name: str, bits_per_s: int) -> None:
        """What is sent to the host goes at this rate, until `unthrottle`."""
        hub = self.namespace(HUB)
        bucket = f"rate {bits_per_s} burst 32kb latency 400ms"
        run("tc", "-n", hub, "qdisc", "replace", "dev", name, "root", "tbf", *bucket.split())

    def unthrottle(self, name: str) -> None:
        """Makes the host's line as fast as it was."""
        run("tc", "-n", self.namespace(HUB), "qdisc", "del", "dev", name, "root")

    def received_bytes(self, name: str) -> int:
        """Returns how many bytes have come to the host over its cable."""
        told = json.loads(run("ip", "-n", self.namespace(name), "-s", "-j", "link", "show", "eth0"))
        return int(told[0]["stats64"]["rx"]["bytes"])

    def _rule(self, name: str, rule: str, hook: str = "input") -> None:
        # Adding a table and a chain that are there already changes nothing.
        chain = f"table inet f {{ chain {hook} {{ type filter hook {hook} priority 0; policy accept; }}; }}"
        text = f"{chain}\nadd rule inet f {hook} {rule}\n"
        run(*self.inside(name, "nft", "-f", "-"), text=text)


def leftovers() -> list[str]:
    """Returns the namespaces of chaos runs whose process is gone, and those of this process."""
    return [name for name in _all() if is_own(name) or is_left_over(name)]


def sweep() -> None:
    """Removes what runs that were killed have left: processes in their namespaces, then these."""
    _remove(leftovers())


def _all() -> list[str]:
    return sorted(path.name for path in _NETNS.glob(f"{PREFIX}*")) if _NETNS.is_dir() else []


def _remove(namespaces: list[str]) -> None:
    here = [name for name in namespaces if (_NETNS / name).exists()]
    for name in here:
        for pid in run("ip", "netns", "pids", name, check=False).split():
            if int(pid) != os.getpid():
                _kill(int(pid))
    for name in here:
        run("ip", "netns", "del", name, check=False)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + 30.0
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass
        time.sleep(0.01)
