"""How long what attempts wrote stays on this host: by age, by size, by tag.

```
output/JOB/tags     the tags of a job, where there is a time for one of them
output/gone         jobs of which something is no longer kept, and why
```
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from depalma.agent.events import Attempt
from depalma.agent.limits import human
from depalma.agent.store import OutputFiles

log = logging.getLogger(__name__)

_DAY_S = 86_400.0
_SWEEP_S = 60.0
#: At most this part of the time is spent on it.
_SWEEP_SHARE = 0.01
#: A folder without output is removed when it has not changed for so long: somebody may be about to write there.
_IDLE_S = 3600.0
#: Files that are looked at before the agent's loop surely gets its turn.
_AT_ONCE, _PAUSE_S = 200, 0.002
#: Jobs that are remembered as no longer kept.
_REMEMBERED = 10_000
_gone = msgspec.json.Decoder(dict[int, str])
_tags = msgspec.json.Decoder(list[str])


class _Folder(NamedTuple):
    """The output of a job here."""

    until: float  #: when its newest file is too old
    path: Path
    size_bytes: int


class Sweeper:
    """Keeps the folder `output` within its limits. `days_of_tag`: a tag's time, instead of the usual one."""

    def __init__(
        self, output: OutputFiles, keep_days: float, keep_bytes: int, days_of_tag: Mapping[str, float]
    ) -> None:
        self._output = output
        self._keep_days = keep_days
        self._keep_bytes = keep_bytes
        self._days_of_tag = dict(days_of_tag)
        self._noted: dict[int, None] = {}
        self._file = output.root / "gone"
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            output.gone.update(_gone.decode(self._file.read_bytes()))

    async def watch(self) -> None:
        """Sweeps, for ever."""
        while True:
            begin_s = time.monotonic()
            try:
                await asyncio.to_thread(self.sweep)
            except OSError as error:
                log.warning("old output cannot be removed: %s", error)
            await asyncio.sleep(max(_SWEEP_S, (time.monotonic() - begin_s) / _SWEEP_SHARE))

    def noted(self, attempts: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
        """Writes down what of the jobs' tags matters later. Returns the attempts."""
        if self._days_of_tag:
            for attempt in attempts:
                if attempt.job.spec.tags and attempt.job.id not in self._noted:
                    self._note(attempt.job.id, attempt.job.spec.tags)
        return attempts

    def _note(self, job: int, tags: tuple[str, ...]) -> None:
        self._noted[job] = None
        while len(self._noted) > _REMEMBERED:
            del self._noted[next(iter(self._noted))]
        some = [tag for tag in tags if tag in self._days_of_tag]
        folder = self._output.root / str(job)
        try:
            if some:
                folder.mkdir(mode=0o700, exist_ok=True)
                (folder / "tags").write_bytes(msgspec.json.encode(some))
        except OSError as error:
            log.warning("the tags of job %d cannot be noted, its output is kept as any other: %s", job, error)

    def sweep(self) -> int:
        """Removes what is not to be kept any more; returns how many files (blocks)."""
        now = time.time()
        removed = 0
        folders: list[_Folder] = []
        gone: dict[int, str] = {}
        for path in self._output.root.iterdir():
            if not path.name.isdigit():
                continue
            days, why = self._keeps(path)
            newest, size_bytes, left, old = 0.0, 0, 0, []
            for entry, status in _files(path):
                if status.st_mtime < now - days * _DAY_S:
                    old.append(entry)
                else:
                    newest, size_bytes, left = max(newest, status.st_mtime), size_bytes + status.st_size, left + 1
            if old:
                removed += _remove(old)
                gone[int(path.name)] = why
            if left:
                folders.append(_Folder(newest + days * _DAY_S, path, size_bytes))
            elif not old:
                _drop_idle(path, now)
        removed += self._make_room(folders, gone)
        self._remember(gone)
        return removed

    def _keeps(self, path: Path) -> tuple[float, str]:
        """Returns for how many days the output of a job is kept, and the words for its being older."""
        tags: list[str] = []
        if self._days_of_tag:
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                tags = _tags.decode((path / "tags").read_bytes())
        days, tag = max(((self._days_of_tag[tag], tag) for tag in tags if tag in self._days_of_tag), default=(0.0, ""))
        if not tag:
            return self._keep_days, f"older than {self._keep_days:g} days"
        return days, f"older than {days:g} days (its job has the tag {tag})"

    def _make_room(self, folders: list[_Folder], gone: dict[int, str]) -> int:
        """Removes the oldest output of the jobs whose time would end first, until the rest is within the limit."""
        too_much = sum(folder.size_bytes for folder in folders) - self._keep_bytes
        removed = 0
        for folder in sorted(folders):
            if too_much <= 0:
                break
            gone[int(folder.path.name)] = f"the host keeps {human(self._keep_bytes)} of output"
            for entry, status in sorted(_files(folder.path), key=lambda each: each[1].st_mtime):
                too_much -= status.st_size
                removed += _remove([entry])
                if too_much <= 0:
                    break
        return removed

    def _remember(self, gone: dict[int, str]) -> None:
        if not gone:
            return
        known = self._output.gone
        for job, why in gone.items():
            known.pop(job, None)
            known[job] = why
        for job in list(known)[: max(0, len(known) - _REMEMBERED)]:
            del known[job]
        part = self._file.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(known))
        part.rename(self._file)


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yields the output files of a job, with pauses: the agent has better things to do."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for place, entry in enumerate(entries, 1):
            if place % _AT_ONCE == 0:
                time.sleep(_PAUSE_S)
            if entry.name.endswith((".out", ".err")):
                with contextlib.suppress(FileNotFoundError):
                    yield entry.path, entry.stat(follow_symlinks=False)


def _remove(paths: list[str]) -> int:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    return len(paths)


def _drop_idle(folder: Path, now: float) -> None:
    with contextlib.suppress(OSError):
        if folder.stat().st_mtime < now - _IDLE_S:
            (folder / "tags").unlink(missing_ok=True)
            folder.rmdir()
