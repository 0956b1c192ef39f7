"""F25: a majority of the disks is lost for good."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from typing import Any

from depalma.testing.chaos import checks
from depalma.testing.chaos.scenarios.registry import scenario
from depalma.testing.chaos.trial import Trial

#: the documented way (docs/operations.md) makes the cluster writable again within so long
WRITABLE_S = 60.0
READS = ("read", "task")


@scenario("F25", "two of three disks are lost for good", short={"behind_s": 1.0}, whole={"behind_s": 5.0})
def lose_majority(trial: Trial, behind_s: float) -> None:
    """The disk that is left lags a little; an operator recovers from it. What is lost is told, and is all that is."""
    trial.begin()
    trial.run_for(2.0)
    survivor, leader = trial.random.choice(trial.cluster.followers()), trial.cluster.leader()
    others = [name for name in trial.cluster.masters if name != survivor]
    trial.network.cut(survivor, others)
    trial.run_for(behind_s)
    trial.note(f"{survivor} is left, {behind_s:g} s behind; {leader} led")
    trial.cluster.kill(*trial.cluster.masters)
    lost_at_s = time.monotonic()
    for name in others:
        shutil.rmtree(trial.cluster.folder(name))
    trial.network.heal()
    refused = _ctl(trial, "master", "recover", "-f", str(trial.cluster.config), "--id", survivor, code=5)
    told = _ctl(trial, "master", "recover", "--force", "-f", str(trial.cluster.config), "--id", survivor)
    trial.require(refused["kept_to"] == told["kept_to"], f"told before: {refused}, done: {told}")
    for name in others:
        _ctl(trial, "snapshot", "restore", told["saved"], "-f", str(trial.cluster.config), "--id", name)
    missing = _excuse(trial, told["kept_to"], lost_at_s)
    trial.require(told["lost_from"] == told["kept_to"] + 1, f"the loss is not told as a range: {told}")
    trial.cluster.start(*trial.cluster.masters)
    trial.acknowledged_again(lost_at_s, WRITABLE_S)
    trial.note(f"kept to command {told['kept_to']}, lost from {told['lost_from']}: {missing} acknowledged writes")
    trial.require(missing > 0, "the disk that was left had everything: nothing was tried")
    trial.run_for(2.0)


def _ctl(trial: Trial, *words: str, code: int = 0) -> dict[str, Any]:
    """Runs depalmactl; returns what it printed. It must end with this exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "depalma.ctl", "-o", "json", *words], capture_output=True, text=True, check=False
    )
    trial.require(done.returncode == code, f"depalmactl {' '.join(words)} ended with {done.returncode}: {done.stderr}")
    found = json.loads(done.stdout) if done.stdout.strip() else {}
    assert isinstance(found, dict), found
    return found


def _excuse(trial: Trial, kept_to: int, before_s: float) -> int:
    """Takes back the answers that the operator was told are lost; returns how many writes these are.

    A write that is lost may take effect once more (its client is told nothing), so it stays open; a read says nothing
    any more.
    """
    history = trial.history.operations
    lost = [one for one in history if one.returned_s < before_s and one.index > kept_to]
    began_s = min((one.invoked_s for one in lost), default=math.inf)
    for one in lost:
        one.returned_s, one.index = math.inf, -1
    # A refusal names no index; from the first lost write on it may have been about one of these.
    history[:] = [
        one
        for one in history
        if not (one in lost and one.kind in READS)
        and not (checks.refused(one) and began_s <= one.returned_s < before_s)
    ]
    return sum(one.kind not in READS for one in lost)
