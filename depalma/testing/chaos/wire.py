"""A switch of our own instead of the bridge: packets take their time, and some are lost. (This kernel has no netem.)

It runs as a process in the hub and copies frames between the hosts' cables by packet sockets.
`python -m depalma.testing.chaos.wire DELAY_MS LOSS_PERCENT SEED CABLE…`
"""

from __future__ import annotations

import heapq
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from depalma.testing.chaos.network import HUB, Network
from depalma.testing.chaos.shell import run

_ETH_P_ALL = 0x0003
_BROADCAST = b"\xff" * 6
_SIOCETHTOOL = 0x8946
#: ethtool's SET commands for what a network card does later: our frames must be whole and complete when we read them
_OFFLOADS = {"tx checksum": 0x17, "scatter-gather": 0x19, "TSO": 0x1F, "GSO": 0x24, "GRO": 0x2C}
READY = "ready"


@contextmanager
def slow_wire(network: Network, *, delay_ms: float, loss_percent: float, seed: int) -> Iterator[None]:
    """Meanwhile each packet between any two machines (the hub included) is late by this, and lost with this chance."""
    hub_cable = "hub0"
    hub = network.namespace(HUB)
    cables = [*network.names, hub_cable]
    run("ip", "-n", hub, "link", "add", "name", hub_cable, "type", "veth", "peer", "name", "hub1")
    popen: subprocess.Popen[str] | None = None
    try:
        for name in network.names:
            _plain(network, name, "eth0")
            run("ip", "-n", hub, "link", "set", "dev", name, "nomaster")
        _plain(network, HUB, "br0")
        _plain(network, HUB, "hub1")
        run("ip", "-n", hub, "link", "set", "dev", "hub1", "master", "br0", "up")
        run("ip", "-n", hub, "link", "set", "dev", hub_cable, "up")
        argv = [sys.executable, "-m", __spec__.name, str(delay_ms), str(loss_percent), str(seed), *cables]
        popen = subprocess.Popen(network.inside(HUB, *argv), stdout=subprocess.PIPE, text=True)
        assert popen.stdout is not None
        line = popen.stdout.readline()
        if line.strip() != READY:
            raise OSError(f"the wire did not start: {line}")
        yield
    finally:
        if popen is not None:
            popen.kill()
            popen.communicate()
        for name in network.names:
            run("ip", "-n", hub, "link", "set", "dev", name, "master", "br0")
        run("ip", "-n", hub, "link", "del", "dev", hub_cable)


def _plain(network: Network, host: str, device: str) -> None:
    """Makes the host's end of the cable send frames that are complete: with checksums, none larger than a packet."""
    program = (
        "import fcntl, socket, struct, sys, array\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for command in map(int, sys.argv[2:]):\n"
        "    value = array.array('B', struct.pack('II', command, 0))\n"
        "    request = struct.pack('16sP', sys.argv[1].encode(), value.buffer_info()[0])\n"
        "    try:\n"
        f"        fcntl.ioctl(s, {_SIOCETHTOOL}, request)\n"
        "    except OSError as error:\n"
        "        if error.errno != 95: raise\n"
    )
    run(*network.inside(host, sys.executable, "-c", program, device, *map(str, _OFFLOADS.values())))


class Switch:
    """Learns which address is behind which cable, and delivers late."""

    def __init__(self, cables: list[str], delay_s: float, loss: float, random: Random) -> None:
        self._delay_s = delay_s
        self._loss = loss
        self._random = random
        self._sockets: list[socket.socket] = []
        for cable in cables:
            one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            one.bind((cable, 0))
            one.setblocking(False)
            self._sockets.append(one)
        self._by_fd = {one.fileno(): i for i, one in enumerate(self._sockets)}
        self._behind: dict[bytes, int] = {}
        self._due: list[tuple[float, int, int, bytes]] = []
        self._count = 0

    def run(self) -> None:
        """For ever."""
        poll = select.epoll()
        for fd in self._by_fd:
            poll.register(fd, select.EPOLLIN)
        while True:
            wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            for fd, _ in poll.poll(wait_s):
                self._receive(self._by_fd[fd])
            self._deliver()

    def _receive(self, cable: int) -> None:
        while True:
            try:
                frame, address = self._sockets[cable].recvfrom(65_536)
            except BlockingIOError:
                return
            if address[2] == socket.PACKET_OUTGOING:
                continue  # our own
            target, source = frame[:6], frame[6:12]
            self._behind[source] = cable
            if self._random.random() < self._loss:
                continue
            known = self._behind.get(target)
            towards = [known] if known is not None else [i for i in range(len(self._sockets)) if i != cable]
            for out in towards:
                self._count += 1
                heapq.heappush(self._due, (time.monotonic() + self._delay_s, self._count, out, frame))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, out, frame = heapq.heappop(self._due)
            try:
                self._sockets[out].send(frame)
            except OSError:
                continue  # a full queue or a pulled cable loses packets, as in life


def main() -> None:
    """Entry of the process."""
    delay_ms, loss_percent, seed, *cables = sys.argv[1:]
    switch = Switch(cables, float(delay_ms) / 1000, float(loss_percent) / 100, Random(int(seed)))
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    switch.run()


if __name__ == "__main__":
    main()
