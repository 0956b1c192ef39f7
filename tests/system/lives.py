"""A task that writes down each of its lives, and what its tests read there."""

from __future__ import annotations

from pathlib import Path

#: Writes down each life: when it began, whether it was warned, and when it ended; ends once it may.
LIVES = """
say() { echo "$1 $DEPALMA_TASK_INDEX $DEPALMA_ATTEMPT $DEPALMA_HOST $(date +%s.%N)" >>lives; }
trap 'say warned; say ended; exit 0' TERM
say began
while ! test -e release; do sleep 0.05; done
say ended
"""


class Lives:
    """What the tasks of LIVES have written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, what: str) -> list[tuple[int, int, str]]:
        """Returns task, attempt and host of each line of a kind."""
        return [(int(task), int(number), host) for kind, task, number, host, _ in self._lines() if kind == what]

    def first(self, what: str) -> float:
        """Returns when the first line of a kind was written, in seconds since the epoch."""
        return min(float(at) for kind, _, _, _, at in self._lines() if kind == what)

    def _lines(self) -> list[list[str]]:
        file = self.folder / "lives"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def overlaps(self) -> list[str]:
        """Returns the attempts that began before the one before had ended."""
        alive: dict[str, str] = {}
        found = []
        for kind, task, number, _, _ in sorted(self._lines(), key=lambda line: float(line[4])):
            if kind == "began":
                found += [f"{task}.{number} beside {alive[task]}"] if task in alive else []
                alive[task] = number
            elif kind == "ended":
                alive.pop(task, None)
        return found
