"""F1, F2: processes die."""

from __future__ import annotations

import time

from depalma.testing.chaos.scenarios.registry import scenario
from depalma.testing.chaos.trial import Trial
from depalma.testing.chaos.waiting import wait_until

#: design section 9
KILL_MEDIAN_S, KILL_P99_S = 0.35, 0.8


def rejoined(trial: Trial, name: str, *, within_s: float = 30.0) -> float:
    """Returns after how many seconds a master that was started has all that the leader had committed by then."""
    began_s = time.monotonic()
    leader = trial.cluster.leader(within_s=within_s)
    view = trial.cluster.status(leader)
    wanted = view.commit_index if view is not None else 0
    wait_until(
        lambda: trial.cluster.status(name),
        lambda seen: seen is not None and seen.role != "candidate" and seen.applied_index >= wanted,
        within_s=within_s,
        what=f"{name} with the first {wanted} commands",
    )
    return time.monotonic() - began_s


@scenario("F1", "SIGKILL the leader", short={"kills": 4}, whole={"kills": 50})
def kill_leader(trial: Trial, kills: int) -> None:
    """The leader dies under load, again and again; each comes back before the next dies."""
    trial.begin()
    rejoins = []
    for _ in range(kills):
        leader = trial.cluster.leader()
        killed_s = time.monotonic()
        trial.cluster.kill(leader)
        trial.failover(killed_s, not_by=leader)
        trial.run_for(trial.random.uniform(0.1, 0.8))
        trial.cluster.start(leader)
        rejoins.append(rejoined(trial, leader))
        trial.run_for(trial.random.uniform(0.3, 1.0))
    trial.expect_failovers(median_s=KILL_MEDIAN_S, p99_s=KILL_P99_S)
    trial.expect("rejoined, worst", max(rejoins), 5.0)


@scenario("F2", "SIGKILL all masters at once", short={"kills": 4}, whole={"kills": 20}, agents=1,
          settings={"snapshot_every_entries": 60})  # fmt: skip
def kill_all(trial: Trial, kills: int) -> None:
    """All die at the same moment, every other time while one of them writes a snapshot; all come back."""
    trial.begin()
    elections = []
    for i in range(kills):
        trial.run_for(trial.random.uniform(1.0, 2.0))
        if i % 2:
            _wait_for_snapshot(trial)
        trial.cluster.kill(*trial.cluster.masters)
        started_s = time.monotonic()
        trial.cluster.start(*trial.cluster.masters)
        trial.cluster.leader(within_s=20.0)
        elections.append(time.monotonic() - started_s)
        trial.failover(started_s, not_by="")
    trial.expect("leader after the start, worst", max(elections), 5.0)
    trial.report.notes.append(f"first write after the start: {max(trial.report.failovers_s):.2f} s at worst")
    trial.report.failovers_s.clear()  # they include the start of three processes: no fail-over


def _wait_for_snapshot(trial: Trial) -> None:
    """Returns at a moment when a master writes a snapshot (or none did for a while: then anywhere)."""
    deadline = time.monotonic() + 5.0
    folders = [trial.cluster.raft_folder(name) for name in trial.cluster.masters]
    while time.monotonic() < deadline:
        if any((folder / "snapshot.tmp").exists() for folder in folders):
            return
    trial.note("no snapshot was under way at a kill")
