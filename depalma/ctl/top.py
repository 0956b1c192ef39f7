"""`top`: the live view. A thread asks, the main thread draws and listens to keys."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

import click

from depalma.ctl.command import command
from depalma.ctl.live import Snapshot, render
from depalma.ctl.output import show_value
from depalma.ctl.session import Session
from depalma.errors import DepalmaError

#: Three pictures a second; a leader that does not answer within a second is not waited for.
PERIOD_S = 1 / 3
_PATIENCE_S = 1.0
#: An answer older than this means that nobody leads, or nobody is reached.
_OVERDUE_S = 0.8
_JOBS = 60


@command(
    "top",
    examples=(
        "depalmactl top",
        "depalmactl top | cat                      # one picture as plain text",
        "depalmactl top -o json | jq .rates        # what the view is drawn from, once",
    ),
)
@click.pass_obj
def top(session: Session) -> None:
    """Live view of the whole cluster: masters, hosts, queue, jobs, events. q leaves it.

    When the leader is lost the view says for how long, shows what the other masters know, and goes on by itself.
    """
    if session.structured or session.output == "name":
        overview = session.get("/v1/overview")
        show_value(session, overview, [], key="leader")
    elif sys.stdout.isatty():
        show(session)
    else:
        _print_once(session)


class Poller(threading.Thread):
    """Keeps the latest snapshot. Each problem is part of the picture, none ends it."""

    def __init__(self, session: Session, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(name="top-poller", daemon=True)
        connection = session.connection
        self._session = Session(timeout_s=_PATIENCE_S, quiet=True)
        self._session.connect_to(connection)
        self._clock = clock
        self._stop = threading.Event()
        self._last_good = clock()
        self._answered = False
        self._latest = Snapshot(None, (), clock())

    def run(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            self.poll()
            self._stop.wait(max(0.05, PERIOD_S - (time.monotonic() - started)))
        self._session.close()

    def stop(self) -> None:
        """Ends the thread after the call that is under way."""
        self._stop.set()

    def poll(self) -> None:
        """Asks once: the leader, or when there is none, any master for what it knows."""
        try:
            self._take(trouble="")
            self._last_good = self._clock()
            self._answered = True
        except DepalmaError as error:
            try:
                self._take(trouble=str(error), consistency="stale")
            except DepalmaError:
                self._latest = self._latest._replace(trouble=str(error))

    def _take(self, *, trouble: str, **params: str) -> None:
        overview = self._session.get("/v1/overview", **params)
        jobs = self._session.get("/v1/jobs", limit=_JOBS, **params)["jobs"]
        self._latest = Snapshot(overview, jobs, self._clock(), trouble=trouble)

    def snapshot(self) -> Snapshot:
        """Returns the latest picture, with how long no leader has answered."""
        now = self._clock()
        latest = self._latest
        age_s = now - self._last_good
        missing = latest.trouble or age_s > _OVERDUE_S
        return latest._replace(now=now, without_leader_s=age_s if missing else None)


def show(session: Session, *, until: Callable[[], bool] = lambda: False) -> None:
    """Draws on the whole terminal until a key ends it, or `until` says so."""
    from rich.console import Console
    from rich.live import Live

    from depalma.ctl.keys import Keys

    console = Console(no_color=not session.color, highlight=False)
    poller = Poller(session)
    poller.start()
    view = poller.snapshot()
    helping = paused = False
    try:
        with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
            while not until():
                view = (view if paused else poller.snapshot())._replace(paused=paused, help=helping)
                live.update(render(view, *console.size), refresh=True)
                key = keys.wait(PERIOD_S)
                if key in ("q", "Q", "ctrl-c"):
                    return
                helping ^= key in ("?", "h")
                paused ^= key in (" ", "p")
    except KeyboardInterrupt:
        return
    finally:
        poller.stop()


def _print_once(session: Session) -> None:
    from rich.console import Console

    overview = session.get("/v1/overview")
    jobs = session.get("/v1/jobs", limit=_JOBS)["jobs"]
    console = Console(no_color=True, highlight=False, width=100)
    rows = len(overview["masters"]) + len(overview["hosts"]) + len(jobs) + len(overview["events"])
    console.print(render(Snapshot(overview, jobs, time.time()), 100, min(200, rows + 12)))
