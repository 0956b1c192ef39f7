"""F22: files of an older release, and masters of two releases at the same time."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import depalma
from depalma.client.transport import Request
from depalma.model import FINAL_STATES
from depalma.testing.chaos.scenarios.crash import rejoined
from depalma.testing.chaos.scenarios.registry import scenario
from depalma.testing.chaos.trial import Trial
from depalma.testing.chaos.variants import NEWER
from depalma.testing.chaos.waiting import wait_until

#: journal and snapshot as earlier releases wrote them, of a checkout
KEPT = Path(depalma.__file__).parents[1] / "tests" / "data"
OLDER = "m3"


@scenario("F22", "files of an older release; two masters of a newer one", short={"seconds": 2.0},
          whole={"seconds": 20.0}, needs=("tests/data",), agents=0,
          settings={"snapshot_every_entries": 2000})  # fmt: skip
def upgrade(trial: Trial, seconds: float) -> None:
    """The masters start on files of the oldest format. Then two know a kind of command that the third does not.

    They work together, whoever leads, until the new kind is used: then the older one stops and says why, and is not
    led astray; upgraded, it catches up. (No agents: the code that the old files name is not there.)
    """
    expected = _begin_on_old_files(trial)
    _all_is_there(trial, expected)
    trial.run_for(seconds)
    _let_it_lead(trial, OLDER)
    trial.run_for(seconds)
    _use_the_new_kind(trial)
    trial.cluster.environ[OLDER] = _newer(trial, OLDER)
    trial.cluster.start(OLDER)
    rejoined(trial, OLDER)
    trial.run_for(seconds)


def _newer(trial: Trial, name: str) -> dict[str, str]:
    return {NEWER: str(trial.directory / f"wish-{name}")}


def _begin_on_old_files(trial: Trial) -> dict[str, dict[str, str]]:
    """Returns the states of all tasks in these files, by job."""
    oldest = min(KEPT.glob("consensus-*"))
    for name in trial.cluster.masters:
        shutil.copytree(oldest / "m1", trial.cluster.raft_folder(name))
        if name != OLDER:
            trial.cluster.environ[name] = _newer(trial, name)
    trial.note(f"files of {oldest.name}")
    tasks: dict[str, dict[str, str]] = json.loads((oldest / "expected.json").read_text())["tasks"]
    trial.foreign.update(map(int, tasks))
    trial.begin()
    return tasks


def _all_is_there(trial: Trial, expected: dict[str, dict[str, str]]) -> None:
    """What had ended has ended so; what had not is there. Then it is cancelled: its hosts do not exist."""
    with trial.cluster.client() as client:
        for number, tasks in expected.items():
            answer = client.request(Request("GET", f"/v1/jobs/{number}/tasks"), deadline_s=10.0)
            now = {str(task["index"]): task["state"] for task in answer.json()["tasks"]}
            lost = [index for index in tasks if index not in now]
            other = [index for index, state in tasks.items() if state in FINAL_STATES and now.get(index) != state]
            trial.none_of("tasks of the old files that are missing", len(lost), f"job {number} lost tasks {lost}")
            trial.none_of("ends that changed", len(other), f"job {number}: {other} ended otherwise than before")
            client.cancel(int(number))


def _let_it_lead(trial: Trial, name: str) -> None:
    """The older one leads too, for a while."""
    for _ in range(20):
        leader = trial.cluster.leader()
        if leader == name:
            trial.note(f"{name}, of the older release, led")
            return
        killed_s = time.monotonic()
        trial.cluster.kill(leader)
        trial.failover(killed_s, not_by=leader)
        trial.cluster.start(leader)
        rejoined(trial, leader)
    trial.require(False, f"{name} was never elected")


def _use_the_new_kind(trial: Trial) -> None:
    """A newer leader proposes it, against the rule that all must know it first."""
    if trial.cluster.leader() == OLDER:
        trial.cluster.kill(OLDER)
        trial.cluster.leader(among=[name for name in trial.cluster.masters if name != OLDER])
        trial.cluster.start(OLDER)
        rejoined(trial, OLDER)
    (trial.directory / f"wish-{trial.cluster.leader()}").touch()
    used_s = time.monotonic()
    wait_until(lambda: not trial.cluster.running(OLDER), within_s=10, what=f"{OLDER} stops at the new kind")
    code, words = trial.cluster.daemons[OLDER].exit_code, trial.cluster.daemons[OLDER].last_lines(5)
    trial.require(code == 1, f"{OLDER} ended with {code} at the new kind, not with 1")
    named = "chaos.later" in words and "upgrade" in words
    trial.require(named, f"{OLDER} does not say which kind it does not know, and to upgrade:\n{words}")
    trial.acknowledged_again(used_s, 1.0)
