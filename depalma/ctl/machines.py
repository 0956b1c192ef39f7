"""`cluster up`, `down`, `status`: a cluster of several machines over ssh."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from depalma.certificates import AUTHORITY_FILE
from depalma.ctl.command import command
from depalma.ctl.failures import FAILED
from depalma.ctl.output import Column, Row, show_rows
from depalma.ctl.session import Session
from depalma.ctl.values import Number

if TYPE_CHECKING:
    from depalma.deploy.cluster import Deployment, Outcome

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_FILE = click.option(
    "-f",
    "--file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The cluster file.",
)
_SSH_CONFIG = click.option(
    "-F",
    "--ssh-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A configuration file for ssh, instead of your own.",
)
_COLUMNS = (
    Column("MACHINE", lambda row: row["machine"]),
    Column("STATE", lambda row: row["state"]),
    Column("DAEMONS", lambda row: _daemons(row)),
    Column("RELEASE", lambda row: row["version"], wide=True),
    Column("REASON", lambda row: row["reason"], cut=True),
)


@command(
    "up",
    examples=(
        "depalmactl cluster up -f lab.yaml",
        "depalmactl cluster up -f lab.yaml --dry-run             # says what would be done",
        "depalmactl cluster up -f lab.yaml --wheelhouse wheels/  # dependencies from here, not from an index",
    ),
)
@_FILE
@_SSH_CONFIG
@click.option("--dry-run", is_flag=True, help="Look at every machine and say what would be done; do nothing.")
@click.option(
    "--wheelhouse",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Wheels of all dependencies, for machines that reach no package index.",
)
@click.option("--offline", is_flag=True, help="Send all dependencies from here; let no machine ask a package index.")
@click.option("--python", default="", metavar="PATH", help="The Python to try first on the machines (3.11 or newer).")
@click.option(
    "--wait", "wait_s", type=Number(min=0), default=60.0, metavar="S", show_default=True,
    help="How many seconds the cluster may take to see what was started.",
)  # fmt: skip
@click.pass_obj
def up(
    session: Session,
    file: Path,
    ssh_config: Path | None,
    dry_run: bool,
    wheelhouse: Path | None,
    offline: bool,
    python: str,
    wait_s: float,
) -> None:
    """Install this release on all machines of the cluster file and start its masters and agents.

    It works where `ssh MACHINE` works. What is as the file says is left alone, what has changed is restarted, masters
    one after the other. A machine that fails is named, and the others go on; the exit code is then 1.
    """
    settings = {"wheelhouse": wheelhouse, "offline": offline, "python": python, "wait_s": wait_s}
    with _deployment(session, file, ssh_config, **settings) as deployment:
        outcomes = deployment.plan() if dry_run else deployment.up()
        _show(session, outcomes, install="install" if dry_run else "installed")
        for name in deployment.without_address():
            session.narrate(f"host {name} has no address in {file}: its agent has to be started there")
        if dry_run:
            changes = any(outcome.changed for outcome in outcomes)
            _sum_up(session, outcomes, "this would be done" if changes else "nothing would be changed")
        else:
            if problem := deployment.cluster_problem:
                session.warn(problem)
            changed = any(outcome.changed for outcome in outcomes)
            _sum_up(session, outcomes, "changed" if changed else "nothing had to be changed")
            if any(r.role == "master" and r.did == "started" for o in outcomes for r in o.reports) and not problem:
                config, secrets = deployment.config, deployment.secrets
                urls = ",".join(map(config.url, config.masters))
                ca = f" --ca {secrets / AUTHORITY_FILE}" if config.scheme == "https" else ""
                words = f"{config.cluster} {urls} --token-file {secrets / 'token'}{ca}"
                session.narrate(f"to use it: depalmactl context add {words}")
        _end(outcomes, bool(deployment.cluster_problem))


@command(
    "down",
    examples=(
        "depalmactl cluster down -f lab.yaml",
        "depalmactl cluster down -f lab.yaml --patience 5        # SIGKILL for what has not ended after 5 s",
    ),
)
@_FILE
@_SSH_CONFIG
@click.option(
    "--patience", "patience_s", type=Number(min=0), default=30.0, metavar="S", show_default=True,
    help="Seconds that each daemon has for an orderly end.",
)  # fmt: skip
@click.pass_obj
def down(session: Session, file: Path, ssh_config: Path | None, patience_s: float) -> None:
    """Stop all agents, then all masters, on all machines of the cluster file. Tasks that run are ended.

    What the masters have stored stays: `cluster up` goes on with it.
    """
    with _deployment(session, file, ssh_config, patience_s=patience_s) as deployment:
        outcomes = deployment.down()
        _show(session, outcomes)
        _sum_up(session, outcomes, "stopped" if any(o.changed for o in outcomes) else "nothing ran")
        _end(outcomes)


@command("status", examples=("depalmactl cluster status -f lab.yaml", "depalmactl cluster status -f lab.yaml -o json"))
@_FILE
@_SSH_CONFIG
@click.pass_obj
def status(session: Session, file: Path, ssh_config: Path | None) -> None:
    """Show what runs on the machines of the cluster file. The exit code is 1 unless everything does.

    This asks the machines, over ssh; `master ls` and `host ls` ask the cluster.
    """
    with _deployment(session, file, ssh_config) as deployment:
        outcomes = deployment.status()
        _show(session, outcomes)
        _sum_up(session, outcomes, "")
        _end(outcomes)


@contextmanager
def _deployment(session: Session, file: Path, ssh_config: Path | None, **settings: Any) -> Iterator[Deployment]:
    from depalma.deploy.cluster import Deployment, Options

    words = ("-F", str(ssh_config.absolute())) if ssh_config else ()
    with Deployment(file, Options(ssh=words, **settings), session.narrate) as deployment:
        yield deployment


def _show(session: Session, outcomes: list[Outcome], *, install: str = "installed") -> None:
    show_rows(session, [_row(outcome, install) for outcome in outcomes], _COLUMNS, key="machine")


def _row(outcome: Outcome, install: str) -> dict[str, Any]:
    daemons = [
        {
            "role": report.role,
            "id": report.id,
            "running": report.running,
            "pid": report.pid or None,
            "action": report.did or None,
            "out_of_date": report.differs or None,
            "in_file": report.asked_for,
            "problem": report.problem or None,
        }
        for report in outcome.reports
    ]
    reasons = [outcome.problem, *(f"{r.id}: {r.problem or r.note}" for r in outcome.reports if r.problem or r.note)]
    return {
        "machine": outcome.machine,
        "state": "failed" if outcome.failed else "ok",
        "release": install if outcome.installed else None,
        "version": outcome.version,
        "daemons": daemons,
        "reason": "; ".join(filter(None, reasons)),
    }


def _daemons(row: Row) -> str:
    parts = [row["release"]] if row["release"] else []
    for daemon in row["daemons"]:
        word = daemon["action"] or ("running" if daemon["running"] else "stopped")
        note = "" if daemon["in_file"] else " (not in the file)"
        parts.append(f"{daemon['id']} {word}{note}")
    return ", ".join(parts)


def _sum_up(session: Session, outcomes: list[Outcome], what: str) -> None:
    failed = [outcome.machine for outcome in outcomes if outcome.failed]
    count = f"{len(outcomes)} machine{'' if len(outcomes) == 1 else 's'}"
    parts = [count, f"{len(failed)} failed: {', '.join(failed)}" if failed else "none failed", what]
    session.narrate("; ".join(filter(None, parts)))


def _end(outcomes: list[Outcome], problem: bool = False) -> None:
    if problem or any(outcome.failed for outcome in outcomes):
        raise click.exceptions.Exit(FAILED)
