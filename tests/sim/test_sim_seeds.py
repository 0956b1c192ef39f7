"""Many seeded runs: nothing acknowledged is lost, replicas never differ, they agree again after healing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIMULATE = ROOT / "bin" / "simulate"


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run(
        [sys.executable, str(SIMULATE), *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_known_seeds_keep_every_promise() -> None:
    done = simulate("--seeds", "120", "--start", "0")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 runs broke a promise" in done.stdout


def test_fresh_seeds_keep_every_promise() -> None:
    """Other seeds at each run; a failure names them."""
    start = random.SystemRandom().randrange(10**6, 10**9)
    print(f"fresh seeds from {start}: bin/simulate --start {start} --seeds 40")  # noqa: T201
    done = simulate("--seeds", "40", "--start", str(start))

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_same_seed_is_the_same_run_in_any_process() -> None:
    def digests(*arguments: str) -> dict[str, str]:
        done = simulate("--digests", *arguments)
        lines = [line.split() for line in done.stdout.splitlines()]
        return {line[0]: line[1] for line in lines if len(line) == 2 and line[0].isdigit()}

    together = digests("--start", "500", "--seeds", "8", "--jobs", "2")
    apart = {}
    for seed in (507, 503, 500):
        apart |= digests("--start", str(seed), "--seeds", "1", "--jobs", "1")

    assert len(together) == 8
    assert len(set(together.values())) == 8
    assert apart == {seed: together[seed] for seed in apart}


@pytest.mark.parametrize("bug", ["no-sync", "truncate-always", "vote-not-stored", "snapshot-clears-journal"])
def test_a_known_bug_is_found_within_200_seeds(bug: str) -> None:
    """A simulation that cannot fail proves nothing."""
    done = simulate("--seeds", "200", "--bug", bug, "--until-broken")

    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 runs broke a promise" in done.stdout
