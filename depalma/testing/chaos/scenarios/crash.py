"""F1, F2: processes die."""

from __future__ import annotations

import statistics
import time

from depalma.testing.chaos import checks
from depalma.testing.chaos.report import percentile
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
    rejoins, starts = [], []
    for _ in range(kills):
        leader = trial.cluster.leader()
        killed_s = time.monotonic()
        trial.cluster.kill(leader)
        trial.failover(killed_s, not_by=leader)
        starts.append(trial.next_started(killed_s, not_by=leader))
        trial.run_for(trial.random.uniform(0.0, 0.7))
        trial.cluster.start(leader)
        rejoins.append(rejoined(trial, leader))
        trial.run_for(trial.random.uniform(0.3, 1.0))
    trial.expect_failovers(median_s=KILL_MEDIAN_S, p99_s=KILL_P99_S)
    trial.expect("next task started, median", statistics.median(starts), KILL_MEDIAN_S)
    trial.expect("next task started, p99", percentile(starts, 99), KILL_P99_S)
    trial.expect("rejoined", max(rejoins), 5.0)


@scenario("F2", "SIGKILL all masters at once", short={"kills": 4, "writes": 400, "in_snapshots": 1},
          whole={"kills": 20, "writes": 10_000, "in_snapshots": 10}, agents=1,
          settings={"snapshot_every_entries": 60})  # fmt: skip
def kill_all(trial: Trial, kills: int, writes: int, in_snapshots: int) -> None:
    """All die at the same moment, every other time while one of them writes a snapshot; all come back."""
    trial.begin()
    elections = []
    hit = done = 0
    while done < kills or (hit < in_snapshots and done < 2 * kills):
        trial.run_for(trial.random.uniform(1.0, 2.0))
        _wait_for_writes(trial, writes * (done + 1) // kills)
        in_snapshot = done % 2 == 1 or done >= kills
        if in_snapshot:
            _wait_for_snapshot(trial)
        trial.cluster.kill(*trial.cluster.masters)
        hit += in_snapshot and _snapshot_is_written(trial)
        done += 1
        started_s = time.monotonic()
        trial.cluster.start(*trial.cluster.masters)
        trial.cluster.leader(within_s=20.0)
        elections.append(time.monotonic() - started_s)
        trial.failover(started_s, not_by="")
    trial.expect_many("kills", done, kills)
    trial.expect_many("of them while a snapshot was written", hit, in_snapshots)
    trial.expect_many("writes acknowledged", len(checks.acknowledged(trial.history.operations)), writes)
    trial.expect("leader after the start", max(elections), 5.0)
    trial.report.notes.append(f"first write after the start: {max(trial.report.failovers_s):.2f} s at worst")
    trial.report.failovers_s.clear()  # they include the start of three processes: no fail-over


def _wait_for_writes(trial: Trial, wanted: int) -> None:
    """Returns when so many writes are acknowledged."""
    wait_until(
        lambda: len(checks.acknowledged(trial.history.operations)),
        lambda seen: seen >= wanted,
        within_s=60.0,
        what=f"{wanted} acknowledged writes",
        every_s=0.1,
    )


def _wait_for_snapshot(trial: Trial) -> None:
    """Returns at a moment when a master writes a snapshot (or none did for a while: then anywhere)."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        if _snapshot_is_written(trial):
            return


def _snapshot_is_written(trial: Trial) -> bool:
    """Returns whether a snapshot of some master has not got its name yet (after a kill: will never)."""
    return any((trial.cluster.raft_folder(name) / "snapshot.tmp").exists() for name in trial.cluster.masters)
