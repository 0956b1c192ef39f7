"""Tells the masters that an agent's processes are all dead. Standard library only: the monitor uses it at its end."""

from __future__ import annotations

import base64
import http.client
import json
import struct
import time
import urllib.parse
from typing import Any

from depalma.trust import BadAuthority, Trust

#: A fail-over takes less than a second; whoever stops an agent gives it ten seconds before SIGKILL (LocalCluster does).
TELL_S = 6.0
_ONE_TRY_S = 1.0
#: Of the reports that are told along: the newest, as a command of the log has its limit (4 MiB).
_REPORTS_BYTES = 2 * 1024 * 1024
_HEAD = struct.Struct("<I")


def tell_gone(identity: dict[str, Any], reason: str) -> bool:
    """Asks each master in turn until one has taken it. Returns whether one did, or none needs to.

    `identity` has `host`, `incarnation`, `masters` (base URLs, the leader first) and `token`, and `reports`, the file
    of those that may not be committed: what had ended is not to be run again. `patience_s` is how long to try; with 0
    no master knows of this incarnation.
    """
    patience_s = identity.get("patience_s", TELL_S)
    if not patience_s:
        return True
    told: dict[str, Any] = {"host": identity["host"], "incarnation": identity["incarnation"], "reason": reason}
    records = _records(identity.get("reports", ""))
    if records:
        told["reports"] = [base64.b64encode(record).decode() for record in records]
    body = json.dumps(told).encode()
    headers = {"Authorization": f"Bearer {identity['token']}", "Content-Type": "application/json"}
    headers["Depalma-Host"] = identity["host"]  # protocol.HOST_HEADER
    end = time.monotonic() + patience_s
    pause_s = 0.05
    while True:
        pending = list(dict.fromkeys(identity["masters"]))
        for url in pending:
            if time.monotonic() >= end:
                return False
            status, leader = _post(url, identity.get("authority", ""), body, headers)
            if 200 <= status < 300:
                return True
            if status == 421 and leader and leader not in pending:
                pending.append(leader)
        if time.monotonic() + pause_s >= end:
            return False
        time.sleep(pause_s)
        pause_s = min(0.5, pause_s * 1.5)


def _records(path: str) -> list[bytes]:
    """Returns the records of a file of reports (see store.py), up to the first damaged one; the newest if many."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return []
    records: list[bytes] = []
    at = 0
    while at + _HEAD.size <= len(data):
        (size,) = _HEAD.unpack_from(data, at)
        at += _HEAD.size + size
        if at > len(data):
            break
        records.append(data[at - size : at])
    left = _REPORTS_BYTES
    first = len(records)
    while first and left >= len(records[first - 1]):
        first -= 1
        left -= len(records[first])
    return records[first:]


class _Connection(http.client.HTTPConnection):
    """By TLS, to masters of the cluster only, if there is an authority."""

    authority = ""

    def connect(self) -> None:
        super().connect()
        if self.authority:
            self.sock = Trust(self.authority).context.wrap_socket(self.sock)


def _post(url: str, authority: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    """Returns the status (0 = no answer) and the leader that the answer names."""
    parts = urllib.parse.urlsplit(url)
    connection = _Connection(parts.hostname or "", parts.port or 80, timeout=_ONE_TRY_S)
    if parts.scheme == "https":
        connection.authority = authority or "/no/authority"  # a token is never said in plain text instead
    try:
        connection.request("POST", "/v1/agent/gone", body=body, headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers.get("Depalma-Leader", "")
    except (OSError, http.client.HTTPException, BadAuthority):
        return 0, ""
    finally:
        connection.close()
