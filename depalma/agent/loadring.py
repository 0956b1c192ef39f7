"""The load of the last hour in bounded memory: steps of five seconds for five minutes, of a minute for an hour. [pure]

Time is that since boot, sleep included, so that no change of the wall clock moves what was measured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from depalma.model import Load, LoadFigures, LoadHistory, LoadPoint

#: (seconds a step, steps kept); a question for longer than the first covers is answered by the second.
_RINGS = ((5.0, 60), (60.0, 60))
HISTORY_S = 3600.0
_NAMES = tuple(field.name for field in msgspec.structs.fields(LoadFigures))
_OF_GPUS = ("gpu_busy_percent", "gpu_memory_used_bytes")
_SAME_NAME = tuple(name for name in _NAMES if name not in _OF_GPUS)


def figures(load: Load) -> tuple[float, ...]:
    """Returns what is kept of a sample, in the order of the fields of LoadFigures."""
    busy = sum(gpu.busy_percent for gpu in load.gpus) / len(load.gpus) if load.gpus else 0.0
    used = sum(gpu.memory_used_bytes for gpu in load.gpus)
    return (*(getattr(load, name) for name in _SAME_NAME), busy, used)


class _Step:
    """What is known of one step: the sum and the highest of its samples."""

    __slots__ = ("highest", "number", "samples", "sums")

    def __init__(self, number: int, sample: Sequence[float]) -> None:
        self.number = number
        self.samples = 1
        self.sums = list(sample)
        self.highest = list(sample)

    def add(self, sample: Sequence[float]) -> None:
        self.samples += 1
        for place, value in enumerate(sample):
            self.sums[place] += value
            if value > self.highest[place]:
                self.highest[place] = value


class _Ring:
    """The newest steps of one length. One in which nothing was measured takes no place."""

    def __init__(self, step_s: float, kept: int) -> None:
        self.step_s = step_s
        self.kept = kept
        self._steps: deque[_Step] = deque()

    def add(self, at_s: float, sample: Sequence[float]) -> None:
        number = int(at_s // self.step_s)
        if self._steps and self._steps[-1].number >= number:
            self._steps[-1].add(sample)
            return
        self._steps.append(_Step(number, sample))
        while self._steps[0].number < number - self.kept:  # one more, as the newest is not whole
            self._steps.popleft()

    def since(self, begin_s: float, epoch_s: float) -> Iterator[LoadPoint]:
        for step in self._steps:
            if (step.number + 1) * self.step_s > begin_s:
                mean = (_rounded(total / step.samples) for total in step.sums)
                at = round(epoch_s + step.number * self.step_s, 3)
                yield LoadPoint(at, step.samples, LoadFigures(*mean), LoadFigures(*step.highest))


def _rounded(value: float) -> float:
    return round(value, 2 if value < 1000 else 0)


class LoadRing:
    """Keeps samples, and tells what was when."""

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._rings = [_Ring(step_s, kept) for step_s, kept in _RINGS]

    def add(self, at_s: float, load: Load) -> None:
        """Takes a sample; times do not go back."""
        sample = figures(load)
        for ring in self._rings:
            ring.add(at_s, sample)

    def history(self, last_s: float, now_s: float, epoch_s: float) -> LoadHistory:
        """Returns the last seconds, an hour at most. `epoch_s`: when, since the epoch, the machine booted."""
        last_s = min(max(last_s, 0.0), HISTORY_S)
        ring = next(ring for ring in self._rings if last_s <= ring.step_s * ring.kept)
        points = tuple(ring.since(now_s - last_s, epoch_s))
        return LoadHistory(round(epoch_s + self._began_s, 3), ring.step_s, points)
