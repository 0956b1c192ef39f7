"""Progress bars on stderr: for a job, or for code, that a person waits for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_OVER = ("succeeded", "failed", "cancelled", "lost")


def _bar(*, color: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True, no_color=not color),
        transient=True,
    )


class JobProgress:
    """Call it with each view of the job; the last one (the finished job) takes the bar away."""

    def __init__(self, *, color: bool = True) -> None:
        self._progress = _bar(color=color)
        self._bar = self._progress.add_task("", total=None)
        self._progress.start()

    def __call__(self, view: Mapping[str, Any]) -> None:
        tasks = view["tasks"]
        failed = f", {tasks['failed']} failed" if tasks["failed"] else ""
        description = f"job {view['id']} {view['state']}{failed}"
        done = sum(tasks[state] for state in _OVER)
        self._progress.update(self._bar, description=description, completed=done, total=tasks["total"])
        if view["finished_at"] is not None:
            self._progress.stop()


class CodeProgress:
    """Call it with each view of the entry; `stop` takes the bar away."""

    def __init__(self, *, color: bool = True) -> None:
        self._progress = _bar(color=color)
        self._bar = self._progress.add_task("", total=None)
        self._progress.start()

    def __call__(self, view: Mapping[str, Any]) -> None:
        there, missing = view["acknowledged"], view["missing"]
        waits = f", waiting for {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}" if missing else ""
        description = f"code {view['index']}{waits}"
        self._progress.update(self._bar, description=description, completed=len(there), total=len(there) + len(missing))

    def stop(self) -> None:
        """Takes the bar away."""
        self._progress.stop()
