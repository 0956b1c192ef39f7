"""What can be asked about the masters: who they are, and changing that. Verbs, as in verbs.py."""

from __future__ import annotations

import time

import msgspec
from msgspec import Struct

from depalma.client.transport import Request, segment
from depalma.client.verbs import Verb, send
from depalma.errors import Rejected
from depalma.model import MasterView

#: One request lets a joining master catch up for so long; then it is asked again: its leader may be dead.
WAIT_S = 5.0
#: What passes by itself.
_NOT_YET = frozenset({"not_ready", "busy"})


def masters() -> Verb[list[MasterView]]:
    """Returns the masters, those that cannot be reached included."""

    class _Page(Struct):
        masters: list[MasterView]

    answer = yield Request("GET", "/v1/masters")
    return msgspec.json.decode(answer.body, type=_Page).masters


def add_master(master_id: str, host: str, port: int, raft_port: int, timeout_s: float) -> Verb[None]:
    """Returns when the master counts. Errors: Rejected(not_ready) if it did not catch up in time: nothing changed."""
    deadline = time.monotonic() + timeout_s
    while True:
        wait_s = max(0.0, min(WAIT_S, deadline - time.monotonic()))
        body = {"id": master_id, "host": host, "port": port, "raft_port": raft_port, "wait_s": wait_s}
        try:
            yield from send("POST", "/v1/masters", body, wait_s=wait_s)
            return
        except Rejected as error:
            if error.code not in _NOT_YET or time.monotonic() >= deadline:
                raise


def move_master(master_id: str, host: str | None, port: int | None, raft_port: int | None) -> Verb[None]:
    """Says where a master is from now on; what is None stays."""
    places = {"host": host, "port": port, "raft_port": raft_port}
    changed = {name: value for name, value in places.items() if value is not None}
    yield from send("PATCH", f"/v1/masters/{segment(master_id)}", changed, wait_s=2 * WAIT_S)


def remove_master(master_id: str) -> Verb[None]:
    """Removes a master; if it leads, another one leads first."""
    yield from send("DELETE", f"/v1/masters/{segment(master_id)}", None, wait_s=2 * WAIT_S)


def transfer(master_id: str) -> Verb[None]:
    """Lets this master lead."""
    yield from send("POST", f"/v1/masters/{segment(master_id)}/transfer", None, wait_s=WAIT_S)
