"""Tells the masters that an agent's processes are all dead. Standard library only: the monitor uses it at its end."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from typing import Any

#: A fail-over takes less than a second; whoever stops an agent gives it ten seconds before SIGKILL (LocalCluster does).
_FOR_S = 6.0
_ONE_TRY_S = 1.0


def tell_gone(identity: dict[str, Any], reason: str, *, for_s: float = _FOR_S) -> bool:
    """Asks each master in turn until one has taken it, for at most `for_s`. Returns whether one did.

    `identity` has `host`, `incarnation`, `masters` (base URLs, the leader first) and `token`.
    """
    names = {"host": identity["host"], "incarnation": identity["incarnation"], "reason": reason}
    body = json.dumps(names).encode()
    headers = {"Authorization": f"Bearer {identity['token']}", "Content-Type": "application/json"}
    end = time.monotonic() + for_s
    pause_s = 0.05
    while True:
        pending = list(dict.fromkeys(identity["masters"]))
        for url in pending:
            if time.monotonic() >= end:
                return False
            status, leader = _post(url, body, headers)
            if 200 <= status < 300:
                return True
            if status == 421 and leader and leader not in pending:
                pending.append(leader)
        if time.monotonic() + pause_s >= end:
            return False
        time.sleep(pause_s)
        pause_s = min(0.5, pause_s * 1.5)


def _post(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    """Returns the status (0 = no answer) and the leader that the answer names."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_ONE_TRY_S)
    try:
        connection.request("POST", "/v1/agent/gone", body=body, headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers.get("Depalma-Leader", "")
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()
