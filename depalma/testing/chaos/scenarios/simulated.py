"""F20: the simulated cluster, thousands of runs of it (no process, no root)."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import depalma
from depalma.testing.chaos.judge import Judge
from depalma.testing.chaos.scenarios.registry import scenario

#: of a checkout
SIMULATE = Path(depalma.__file__).parents[1] / "bin" / "simulate"
WITHIN_S = 600.0


@scenario("F20", "simulated clusters: crashes, disks that forget, networks that lose",
          short={"seeds": 40, "again": 2}, whole={"seeds": 1000, "again": 10}, cluster=False,
          needs=("bin/simulate",), quick=False)  # fmt: skip
def simulate(judge: Judge, seeds: int, again: int) -> None:
    """New seeds each time; one of them is run again, and must go the same way each time."""
    start = judge.report.seed
    began_s = time.monotonic()
    done = _simulate("--start", start, "--seeds", seeds)
    took_s = time.monotonic() - began_s
    judge.note(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr)
    judge.require(done.returncode == 0, f"bin/simulate ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    judge.expect_many("seeds of 30 simulated seconds", seeds, seeds)
    judge.expect("all seeds", took_s, WITHIN_S)
    lines = [_simulate("--start", start, "--seeds", 1, "--digests").stdout.splitlines()[:1] for _ in range(again)]
    same = sum(line == lines[0] and line != [] for line in lines)
    judge.require(same == again, f"seed {start} does not repeat: {lines}")
    judge.expect_many("repetitions of one seed that went the same way", same, again)


def _simulate(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SIMULATE), *map(str, words)], capture_output=True, text=True, check=False
    )
