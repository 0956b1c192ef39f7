"""`doctor`: is everything in order, and if not, what to do."""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from depalma import __version__
from depalma.ctl import failures
from depalma.ctl.command import command
from depalma.ctl.output import Column, show_rows
from depalma.ctl.session import Session
from depalma.ctl.wording import count, listed
from depalma.errors import DepalmaError

if TYPE_CHECKING:
    from depalma.trust import Trust

_PROBE_S = 2.0
#: Dates in answers have a resolution of one second.
_SKEW_S = 3.0


class Finding(NamedTuple):
    """One line: `status` is ok, warn or fail."""

    status: str
    check: str
    detail: str


@command("doctor", examples=("depalmactl doctor", "depalmactl doctor -o json", "depalmactl --context lab doctor"))
@click.pass_obj
def doctor(session: Session) -> None:
    """Check the context, every master, the token, the leader, versions, clocks, hosts and code.

    Each line is ok, warn or fail, and says what to do. Exit code 1 when one is fail.
    """
    found = list(_findings(session))
    rows = [finding._asdict() for finding in found]
    columns = (
        Column("STATE", lambda row: row["status"]),
        Column("CHECK", lambda row: row["check"]),
        Column("DETAIL", lambda row: row["detail"]),
    )
    show_rows(session, rows, columns, key="check")
    if any(finding.status == "fail" for finding in found):
        sys.exit(failures.FAILED)


def _findings(session: Session) -> Iterator[Finding]:
    try:
        connection = session.connection
    except DepalmaError as error:
        yield Finding("fail", "context", f"{error}. To try things out: depalmactl dev --detach")
        return
    yield Finding("ok", "context", f"{connection.origin}: {listed(connection.masters)}")
    if not connection.token:
        yield Finding("warn", "token", "none is set; give --token-file, or set DEPALMA_TOKEN")
    alive = 0
    for url in connection.masters:
        finding = _master(url, connection.trust)
        alive += finding.status != "fail"
        yield finding
    if not alive:
        yield Finding("fail", "leader", "no master answers: are they running, and is the network between up?")
        return
    for check, probe in (("leader", _leader), ("hosts", _hosts), ("code", _code)):
        yield from _guarded(check, probe, session)


def _guarded(check: str, probe: Callable[[Session], Iterator[Finding]], session: Session) -> Iterator[Finding]:
    try:
        yield from probe(session)
    except DepalmaError as error:
        yield Finding("fail", check, str(error))


def _master(url: str, trust: Trust | None) -> Finding:
    """Asks one master alone whether it turns, and whether it is ready."""
    from depalma.client.connections import HttpConnection

    connection = HttpConnection.to(url, trust, timeout_s=_PROBE_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return Finding("fail", f"master {url}", f"{error or type(error).__name__}: start it, or remove it here")
    finally:
        connection.close()
    skew = _skew(answer.getheader("Date"))
    if answer.status != 200:
        return Finding("warn", f"master {url}", f"not ready: {_detail(body)}")
    if skew is not None and abs(skew) > _SKEW_S:
        return Finding("warn", f"master {url}", f"its clock is {skew:+.0f} s from the one here; use NTP")
    return Finding("ok", f"master {url}", f"ready ({answer.getheader('Depalma-Master') or 'no id'})")


def _skew(date: str | None) -> float | None:
    if not date:
        return None
    return parsedate_to_datetime(date).timestamp() - time.time()


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body).get("detail", ""))
    except (ValueError, AttributeError):
        return body[:100].decode("utf-8", "replace")


def _leader(session: Session) -> Iterator[Finding]:
    masters: list[dict[str, Any]] = session.get("/v1/masters")["masters"]
    leaders = [master["id"] for master in masters if master["role"] == "leader"]
    yield Finding(
        "ok" if leaders else "fail", "leader", f"{listed(leaders) or 'none'} of {count(len(masters), 'master')}"
    )
    down = [master["id"] for master in masters if master["role"] == "unreachable"]
    if down:
        left = (len(masters) - 1) // 2 - len(down)
        yield Finding("warn", "masters", f"out of reach: {listed(down)}; {max(0, left)} more may fail")
    versions = sorted({master["version"] for master in masters if master["version"]} | {__version__})
    if len(versions) > 1:
        yield Finding("warn", "versions", f"masters and this program differ: {listed(versions)}")


def _hosts(session: Session) -> Iterator[Finding]:
    hosts: list[dict[str, Any]] = session.get("/v1/hosts")["hosts"]
    up = [host for host in hosts if host["state"] == "up"]
    if not hosts:
        yield Finding("warn", "hosts", "none has joined yet: jobs wait until one does")
        return
    other = [f"{host['name']} ({host['state']})" for host in hosts if host["state"] != "up"]
    slots = sum(host["slots"] for host in up)
    status = "ok" if not other else "warn" if up else "fail"
    detail = f"{len(up)} of {len(hosts)} up with {count(slots, 'slot')}"
    yield Finding(status, "hosts", detail + (f"; not up: {listed(other, limit=10)}" if other else ""))


def _code(session: Session) -> Iterator[Finding]:
    status = session.get("/v1/code/status")
    lagging = [row["host"] for row in status["hosts"] if row["lag"]]
    detail = f"the log is at {status['index']}"
    yield Finding(
        "warn" if lagging else "ok", "code", detail + (f"; behind: {listed(lagging, limit=10)}" if lagging else "")
    )
