"""F21: bytes that are no commands, in the log, over HTTP, and from a member of the cluster."""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from depalma.certificates import CertificateFiles
from depalma.consensus import messages, tls
from depalma.consensus.messages import Append, PreVote, Vote
from depalma.model import JobSpec
from depalma.testing.chaos.cluster import PORT, RAFT_PORT
from depalma.testing.chaos.poison import damaged, fuzz, logged_commands
from depalma.testing.chaos.scenarios.crash import rejoined
from depalma.testing.chaos.scenarios.registry import scenario
from depalma.testing.chaos.trial import Trial
from depalma.testing.chaos.variants import POISON
from depalma.testing.chaos.waiting import wait_until

#: a write that begins after the poison is acknowledged so soon
NEXT_WRITE_S = 1.0
#: answers to bodies that say nothing: refused, or nobody leads right now
FINE = frozenset({400, 404, 409, 413, 415, 421, 503})


@scenario("F21", "poison and hostile commands", short={"fuzzed": 5_000, "logged": 50, "bodies": 200, "frames": 50},
          whole={"fuzzed": 100_000, "logged": 1_000, "bodies": 2_000, "frames": 500})  # fmt: skip
def poison_all(trial: Trial, fuzzed: int, logged: int, bodies: int, frames: int) -> None:
    """Poison in the log, bodies and frames that are none, and state machines that are given all kinds of bytes."""
    for name in trial.cluster.masters:
        trial.cluster.environ[name] = {POISON: str(trial.directory / f"poison-{name}")}
    trial.begin()
    began_s = time.monotonic()
    poisoned = wait_until(
        lambda: _poisoned(trial), lambda seen: seen >= logged, within_s=180, what="poison in the log", every_s=0.2
    )
    trial.expect_many("poisonous commands in the log, refused alike by all", poisoned, logged)
    _hostile_bodies(trial, bodies)
    trial.acknowledged_again(time.monotonic(), NEXT_WRITE_S)
    victim = trial.random.choice(trial.cluster.followers())
    trial.cluster.kill(victim)
    _hostile_member(trial, victim, frames)
    trial.acknowledged_again(time.monotonic(), NEXT_WRITE_S)
    real = logged_commands(trial.cluster.raft_folder(victim))
    trial.cluster.start(victim)
    rejoined(trial, victim)
    trial.expect("leader changes", trial.watch.changes(began_s), 2, "")
    _fuzz(trial, real, fuzzed)


def _poisoned(trial: Trial) -> int:
    files = [trial.directory / f"poison-{name}" for name in trial.cluster.masters]
    return sum(len(file.read_text().splitlines()) for file in files if file.exists())


def _fuzz(trial: Trial, real: list[bytes], count: int) -> None:
    """The commands that this very run logged, damaged, and given to two state machines."""
    trial.require(real, "no command was found in the journal")
    found = fuzz(real, count, trial.random)
    trial.note(f"{count} fuzzed commands: {found.applied} applied, {found.refused} refused, {found.unknown} unknown")
    trial.expect_many("fuzzed commands", found.applied + found.refused + found.unknown, count)
    trial.none_of("exceptions and differences", len(found.broken), f"fuzzed commands: {found.broken[:5]}")


# ---------------------------------------------------------------- over HTTP


def _hostile_bodies(trial: Trial, count: int) -> None:
    """Bodies that this process cannot read as what the path takes: a master must refuse them too."""
    kinds = (
        ("/v1/jobs", JobSpec(kind="command", name="hostile", argv=("/bin/true",), hold=True), JobSpec),
        ("/v1/jobs/cancel", {"jobs": [1, 2, 3]}, dict[str, list[int]]),
    )
    token = trial.cluster.token_file.read_text().strip()
    accepted: list[str] = []
    sent = 0
    while sent < count:
        path, value, kind = trial.random.choice(kinds)
        form, codec = trial.random.choice((("json", msgspec.json), ("msgpack", msgspec.msgpack)))
        body = damaged(codec.encode(value), trial.random)
        if not _is_unreadable(codec, body, kind):
            continue
        sent += 1
        name = trial.random.choice(trial.cluster.masters)
        status = _post(trial.network.address(name), path, body, f"application/{form}", token)
        if status not in FINE:
            accepted.append(f"{status} for {body[:60]!r} at {path} of {name}")
    trial.expect_many("hostile bodies", sent, count)
    trial.none_of("hostile bodies not refused", len(accepted), f"not refused: {accepted[:5]}")


def _is_unreadable(codec: object, body: bytes, kind: object) -> bool:
    try:
        codec.decode(body, type=kind)  # type: ignore[attr-defined]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return True
    return False


def _post(address: str, path: str, body: bytes, form: str, token: str) -> int:
    """Returns the status; 0 if the connection ended without one."""
    connection = http.client.HTTPConnection(address, PORT, timeout=10.0)
    try:
        connection.request("POST", path, body, {"Content-Type": form, "Authorization": f"Bearer {token}"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


# ---------------------------------------------------------------- from a member


def _hostile_member(trial: Trial, name: str, count: int) -> None:
    """Somebody has the certificate of a master that is down, and sends what is no message."""
    context = tls.load(CertificateFiles.of(trial.cluster.directory / "secrets", "chaos", name), name).dialing
    real = [
        messages.encode(one)
        for one in (PreVote(1, 1, 1, 1, True), Vote(1, 1, 1, True), Append(1, 1, 1, 1, 1, [(1, b"x" * 20)]))
    ]
    others = [other for other in trial.cluster.masters if other != name]
    sent = 0
    while sent < count:
        with _connected(trial, trial.random.choice(others), context) as peer:
            for _ in range(20):
                frame = damaged(trial.random.choice(real), trial.random)
                if _is_message(frame) or not frame:
                    continue
                sent += 1
                try:
                    peer.sendall(struct.pack("<I", len(frame)) + frame)
                except OSError:
                    break  # it has hung up, as it may
    trial.expect_many("frames of a member that are no messages", sent, count)


@contextmanager
def _connected(trial: Trial, name: str, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    address = (trial.network.address(name), RAFT_PORT)
    plain = socket.create_connection(address, timeout=5.0)
    with context.wrap_socket(plain) as peer:
        peer.recv(4)  # the acceptor's first frame: we are let in
        yield peer


def _is_message(frame: bytes) -> bool:
    try:
        messages.decode(frame)
    except messages.BadMessage:
        return False
    return True
