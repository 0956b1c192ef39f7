"""A scenario: a fault, how much of it in a short and in a whole run, and what it needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depalma.testing.chaos.report import Report
from depalma.testing.chaos.trial import Trial

Run = Callable[..., None]
SCENARIOS: dict[str, Scenario] = {}


@dataclass(frozen=True, slots=True)
class Scenario:
    """`run(trial, **size)` makes the fault on a trial that is prepared and not yet begun."""

    id: str
    title: str
    run: Run
    #: sizes of a short run (every change) and of a whole one
    short: Mapping[str, Any]
    whole: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    #: what the trial is made with
    options: Mapping[str, Any] = field(default_factory=dict)
    #: whether the short run is part of every test run
    quick: bool = True

    def execute(self, directory: Path, *, seed: int, whole: bool, slack: float = 1.0) -> Report:
        """Runs it once in a folder below `directory`, which is removed unless there is something to look at."""
        folder = directory / f"dpc-{os.getpid()}-{self.id}-{seed}"
        trial = Trial(self.id, self.title, folder, seed=seed, slack=slack, **self.options)
        with trial:
            self.run(trial, **(self.whole if whole else self.short))
        return trial.report


def scenario(
    id_: str,
    title: str,
    *,
    short: Mapping[str, Any] | None = None,
    whole: Mapping[str, Any] | None = None,
    needs: tuple[str, ...] = (),
    quick: bool = True,
    **options: Any,
) -> Callable[[Run], Run]:
    """Registers a scenario."""

    def register(run: Run) -> Run:
        if id_ in SCENARIOS:
            raise ValueError(f"two scenarios are called {id_}")
        SCENARIOS[id_] = Scenario(id_, title, run, short or {}, whole or short or {}, needs, options, quick)
        return run

    return register
