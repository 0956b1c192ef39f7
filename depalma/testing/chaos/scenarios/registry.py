"""A scenario: a fault, how much of it in a short and in a whole run, and what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from depalma.testing.chaos.judge import Judge
from depalma.testing.chaos.marks import mark
from depalma.testing.chaos.report import Report
from depalma.testing.chaos.trial import Trial

Run = Callable[..., None]
SCENARIOS: dict[str, Scenario] = {}


@dataclass(frozen=True, slots=True)
class Scenario:
    """`run(trial, **size)` makes the fault on a trial that is prepared and not yet begun.

    Without a `cluster` it gets a Judge, which has a folder and a report only.
    """

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
    cluster: bool = True

    def execute(
        self,
        directory: Path,
        *,
        seed: int,
        whole: bool,
        slack: float = 1.0,
        size: Mapping[str, Any] = MappingProxyType({}),
    ) -> Report:
        """Runs it once in a folder below `directory`, which is removed unless there is something to look at.

        `size` replaces some of its sizes.
        """
        folder = directory / f"{mark()}{self.id}-{seed}"
        make = Trial if self.cluster else Judge
        judge = make(self.id, self.title, folder, seed=seed, slack=slack, **self.options)
        with judge:
            self.run(judge, **{**(self.whole if whole else self.short), **size})
        return judge.report


def scenario(
    id_: str,
    title: str,
    *,
    short: Mapping[str, Any] | None = None,
    whole: Mapping[str, Any] | None = None,
    needs: tuple[str, ...] = (),
    quick: bool = True,
    cluster: bool = True,
    **options: Any,
) -> Callable[[Run], Run]:
    """Registers a scenario."""

    def register(run: Run) -> Run:
        if id_ in SCENARIOS:
            raise ValueError(f"two scenarios are called {id_}")
        SCENARIOS[id_] = Scenario(id_, title, run, short or {}, whole or short or {}, needs, options, quick, cluster)
        return run

    return register
