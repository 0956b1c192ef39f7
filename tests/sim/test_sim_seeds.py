"""Many seeded runs: nothing acknowledged is lost, replicas never differ, they agree again after healing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from depalma.testing.agent_bugs import AGENT_BUGS
from depalma.testing.bugs import BUGS

#: several runs of a second each, on machines that do other things too
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
SIMULATE = ROOT / "bin" / "simulate"


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run(
        [sys.executable, str(SIMULATE), *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_known_seeds_keep_every_promise() -> None:
    done = simulate("--seeds", "16", "--start", "0")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 runs broke a promise" in done.stdout
    for said in ("3 replicas, JobLoad", "5 replicas, JobLoad", "3 replicas, LedgerLoad", "5 replicas, LedgerLoad"):
        assert said in done.stdout
    for fault in ("power lost", "EIO from", "ENOSPC", "bit flipped, noticed", "partition", "suspended", "clock jumped"):
        assert fault in done.stdout


def test_fresh_seeds_keep_every_promise() -> None:
    """Other seeds at each run (.ci/run does many more of them); a failure names them."""
    done = simulate("--seeds", "4", "--fresh")

    assert "again: bin/simulate --start" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_same_seed_is_the_same_run_in_any_process() -> None:
    def digests(*arguments: str) -> dict[str, str]:
        done = simulate("--digests", *arguments)
        lines = [line.split() for line in done.stdout.splitlines()]
        return {line[0]: line[1] for line in lines if len(line) == 2 and line[0].isdigit()}

    together = digests("--start", "500", "--seeds", "4", "--jobs", "2")
    apart = {}
    for seed in (503, 500):
        apart |= digests("--start", str(seed), "--seeds", "1", "--jobs", "1")

    assert len(together) == 4
    assert len(set(together.values())) == 4
    assert apart == {seed: together[seed] for seed in apart}


def test_a_seed_that_fails_fails_the_same_way_ten_times_out_of_ten() -> None:
    """In fresh processes: the same violation after the same events."""
    first = simulate("--seeds", "50", "--bug", "truncate-always", "--until-broken", "--jobs", "1")
    found = re.search(r"again: bin/simulate --start (\d+) --seeds 1", first.stdout)
    assert found, first.stdout + first.stderr
    arguments = ("--start", found[1], "--seeds", "1", "--jobs", "1", "--bug", "truncate-always", "--digests")
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: simulate(*arguments), range(10)))

    told = {tuple(run.stdout.splitlines()[:2]) for run in runs}
    assert len(told) == 1
    digest, violation = told.pop()
    assert re.fullmatch(rf"{found[1]} [0-9a-f]{{32}}", digest)
    assert violation.startswith(f"seed {found[1]}: Violation: ")
    assert violation in first.stdout


#: Where the search for a bug begins, so that it is short: when the simulation changes, it only takes longer again.
NEAR = {"any-twin-taken": 3, "joined-ignored": 61, "lease-read": 15, "vote-not-stored": 11, "moved-at-lease": 146}


@pytest.mark.long
@pytest.mark.parametrize("bug", [*sorted(BUGS), *sorted(AGENT_BUGS)])
def test_a_known_bug_is_found_within_200_seeds(bug: str) -> None:
    """A simulation that cannot fail proves nothing."""
    done = simulate("--seeds", "200", "--start", str(NEAR.get(bug, 0)), "--bug", bug, "--until-broken")

    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 runs broke a promise" in done.stdout
    assert ": Violation: " in done.stdout
