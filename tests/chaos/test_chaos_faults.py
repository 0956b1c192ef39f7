"""Each fault in its short form on a real cluster under load. `bin/chaos` runs the whole forms."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom

import pytest

from depalma.testing.chaos.scenarios import SCENARIOS

#: Times are stretched: this machine may run other things. What is broken stays broken on any machine.
SLACK = 3.0
TRIES = 2


@pytest.mark.chaos_short
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [one.id for one in SCENARIOS.values() if one.quick])
def test_fault(name: str, needs: Callable[..., None], tmp_path: Path) -> None:
    """No promise is broken; a run that was too slow, or had too little load, is repeated once."""
    scenario = SCENARIOS[name]
    needs(*scenario.needs)
    lines: list[str] = []
    for _ in range(TRIES):
        report = scenario.execute(tmp_path, seed=SystemRandom().randrange(1_000_000), whole=False, slack=SLACK)
        lines += report.lines()
        if report.verdict in ("pass", "BROKEN"):
            break

    sys.stdout.write("\n".join(lines) + "\n")  # `pytest -rP` shows what was measured
    assert report.verdict == "pass", "\n".join(lines)
