"""F24: peers that are none."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random

from depalma.testing.chaos.cluster import PORT, RAFT_PORT
from depalma.testing.chaos.scenarios.crash import rejoined
from depalma.testing.chaos.scenarios.registry import scenario
from depalma.testing.chaos.trial import Trial

MIB = 1 << 20
#: how far a master's memory may grow
GROWTH_MIB = 64
#: open files of each master: fewer than the idle connections that come
OPEN_FILES = 256


@scenario("F24", "hostile peers on the Raft port, garbage on the HTTP port",
          short={"idle": 400, "garbage": 100, "seconds": 4.0}, whole={"idle": 1000, "garbage": 1000, "seconds": 30.0},
          needs=("prlimit",))  # fmt: skip
def hostile_peers(trial: Trial, idle: int, garbage: int, seconds: float) -> None:
    """Garbage, headers that announce 2 GiB, connections that say nothing, more of them than files may be open."""
    for name in trial.cluster.masters:
        trial.cluster.wrappers[name] = ["prlimit", f"--nofile={OPEN_FILES}", "--"]
    trial.begin()
    began_s, began = time.monotonic(), {name: memory_bytes(trial, name) for name in trial.cluster.masters}
    for name in trial.cluster.masters:
        for _ in range(garbage // len(trial.cluster.masters)):
            _throw(trial, name, *trial.random.choice(((RAFT_PORT, _raft_garbage), (PORT, _http_garbage))))
    crowd = [
        _connect(trial, name, RAFT_PORT)
        for name in trial.cluster.masters
        for _ in range(idle // len(trial.cluster.masters))
    ]
    trial.run_for(seconds)
    growth = {name: (memory_bytes(trial, name) - began[name]) / MIB for name in began}
    trial.expect("growth of memory", max(growth.values()), GROWTH_MIB, "MiB")
    trial.expect("longest time without an acknowledged write", _longest_gap(trial, began_s), 0.5)
    trial.expect("leader changes", trial.watch.changes(began_s), 0, "")
    _judge_accepting(trial)
    for one in crowd:
        if one is not None:
            one.close()


def _judge_accepting(trial: Trial) -> None:
    """A follower that comes back while the crowd is there must be let in."""
    follower = trial.random.choice(trial.cluster.followers())
    trial.cluster.kill(follower)
    trial.cluster.start(follower)
    trial.expect("a follower let in beside the crowd", rejoined(trial, follower), 5.0)


def _connect(trial: Trial, name: str, port: int) -> socket.socket | None:
    try:
        return socket.create_connection((trial.network.address(name), port), timeout=0.5)
    except OSError:
        return None


def _throw(trial: Trial, name: str, port: int, garbage: Callable[[Random], bytes]) -> None:
    """One connection that says something wrong and goes."""
    peer = _connect(trial, name, port)
    if peer is None:
        return
    with peer:
        try:
            peer.sendall(garbage(trial.random))
        except OSError:
            return


def _raft_garbage(random: Random) -> bytes:
    kinds = (
        random.randbytes(random.randrange(1, 5000)),
        struct.pack("<I", 2**31) + b"x" * 1000,
        struct.pack(">I", 2**31) + b"x" * 1000,
        b"\0" * 64,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80\x04\x95" + random.randbytes(40),
    )
    return random.choice(kinds)


def _http_garbage(random: Random) -> bytes:
    kinds = (
        random.randbytes(random.randrange(1, 5000)),
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 2147483648\r\n\r\n" + b"x" * 1000,
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n7fffffff\r\n" + b"x" * 1000,
        b"GET / HTTP/1.1\r\n" + b"X: " + b"x" * 1_000_000,
        b"GET " + b"/x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + random.randbytes(40),
    )
    return random.choice(kinds)


def _longest_gap(trial: Trial, since_s: float) -> float:
    times = sorted(
        one.returned_s
        for one in list(trial.history.operations)
        if one.kind in ("submit", "add") and one.known and one.returned_s >= since_s
    )
    return max((later - earlier for earlier, later in pairwise(times)), default=float("inf"))


def memory_bytes(trial: Trial, name: str) -> int:
    """Returns what a process holds in memory."""
    pages = int(Path(f"/proc/{trial.cluster.pid(name)}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
