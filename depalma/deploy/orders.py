"""What is said between `depalmactl cluster` and its other half on a machine (keeper.py): one order, one answer."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec
from msgspec import Struct

Role = Literal["master", "agent"]
Action = Literal["look", "start", "stop", "kill"]
#: The line of the answer begins with it: a login script may print something before.
ANSWER = "depalma-answer "


class DaemonOrder(Struct, frozen=True, kw_only=True):
    """One master or agent as it is to be."""

    role: Role
    id: str
    fingerprint: str  #: of what it reads only when it starts: another one means that it has to be restarted
    files: dict[str, bytes] = {}  #: in its own folder, mode 0600; only sent with `start`
    files_digest: str = ""
    url: str = ""  #: a master's, as it is reached on its own machine
    join: bool = False  #: a master that has no state yet, of a cluster that runs

    @property
    def name(self) -> str:
        """Returns what its folder, log and messages are called."""
        return f"{self.role}-{self.id}"


class Order(Struct, frozen=True, kw_only=True):
    """What is to be done. `stop` and `kill` are also about daemons that no order names any more."""

    action: Action
    cluster: str
    daemons: tuple[DaemonOrder, ...] = ()
    patience_s: float = 30.0
    only: Role | None = None  #: nothing is done to the others


class DaemonReport(Struct, frozen=True, kw_only=True):
    """How one daemon is, and what was done."""

    role: Role
    id: str
    running: bool
    pid: int = 0
    did: str = ""  #: started, restarted, updated (files only), stopped, killed; empty: nothing had to be done
    differs: str = ""  #: restart: it runs with what is out of date; files: only files are
    asked_for: bool = True  #: False: it runs, and the order does not name it
    problem: str = ""
    note: str = ""  #: worth knowing, and no failure


class Answer(Struct, frozen=True, kw_only=True):
    """What the keeper says."""

    version: str
    python: str
    reports: tuple[DaemonReport, ...] = ()


def encode(value: Order | Answer) -> bytes:
    """Returns one line of JSON."""
    return msgspec.json.encode(value)


def decode_order(data: bytes) -> Order:
    """Returns the order. Errors: msgspec.DecodeError."""
    return msgspec.json.decode(data, type=Order)


def decode_answer(output: bytes) -> Answer | None:
    """Returns the answer in what a machine printed; None if there is none."""
    for line in reversed(output.splitlines()):
        if line.startswith(ANSWER.encode()):
            return msgspec.json.decode(line.removeprefix(ANSWER.encode()), type=Answer)
    return None


def digest(files: dict[str, bytes]) -> str:
    """Returns the digest of names and contents."""
    parts = [f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n" for name in sorted(files)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()
