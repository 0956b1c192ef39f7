"""What a saved snapshot holds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from depalma.backup import BackupDamaged, StoredBlob, check, read_blobs
from depalma.consensus import SnapshotDamaged, SnapshotTooNew
from depalma.consensus.recovery import SavedSnapshot, read_file
from depalma.errors import DepalmaError
from depalma.offline.errors import Damaged
from depalma.state.machine import Machine
from depalma.state.restoring import blobs_of

_TASK_FIELDS = ("queued", "running", "succeeded", "failed", "cancelled", "lost")


class Inspection(Struct, frozen=True, kw_only=True):
    """What a saved snapshot holds; all checksums were right."""

    file: str
    size_bytes: int
    format: int
    cluster: str
    release: str
    index: int  #: the last log entry that is in it
    term: int  #: that entry's
    commands: int  #: number of the last command that is in it
    version: int
    state_hash: str
    jobs: dict[str, int]  #: by state
    tasks: dict[str, int]  #: by state
    hosts: dict[str, int]  #: by state
    code_index: int
    blobs_named: int  #: by jobs, results and code entries
    blobs_included: int
    blob_bytes: int  #: of those included
    blobs_missing: tuple[str, ...]  #: named, not included


class Loaded(Struct):
    """A saved snapshot that was read to its end."""

    saved: SavedSnapshot
    machine: Machine
    blobs: tuple[StoredBlob, ...]


def load(path: Path) -> Loaded:
    """Returns the state and the blobs of a saved file; all of it is read and checked. Errors: Damaged, OSError."""
    machine = Machine()
    with _damage_of(path):
        saved = read_file(path, machine)
        with path.open("rb") as file:
            return Loaded(saved, machine, tuple(_checked(file, saved.end)))


def inspect(path: Path) -> Inspection:
    """Returns what a saved snapshot holds. Errors: Damaged, OSError."""
    loaded = load(path)
    saved, state = loaded.saved, loaded.machine.state
    tasks: Counter[str] = Counter()
    for job in state.jobs.values():
        counts = job.counts()
        tasks.update({field: getattr(counts, field) for field in _TASK_FIELDS})
    named, included = blobs_of(state), {blob.digest for blob in loaded.blobs}
    return Inspection(
        file=str(path),
        size_bytes=os.stat(path).st_size,
        format=saved.format,
        cluster=saved.header.cluster,
        release=saved.header.release,
        index=saved.header.index,
        term=saved.header.term,
        commands=saved.header.sequence,
        version=state.version,
        state_hash=loaded.machine.state_hash,
        jobs=_sorted(Counter(job.state() for job in state.jobs.values())),
        tasks=_sorted(tasks),
        hosts=_sorted(Counter(host.shown_state for host in state.hosts.values())),
        code_index=state.code_index,
        blobs_named=len(named),
        blobs_included=len(included),
        blob_bytes=sum(blob.size_bytes for blob in loaded.blobs),
        blobs_missing=tuple(sorted(named - included)),
    )


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return {word: counts[word] for word in sorted(counts) if counts[word]}


def _checked(file: BinaryIO, offset: int) -> Iterator[StoredBlob]:
    for blob in read_blobs(file, offset):
        check(file, blob)
        yield blob


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    try:
        yield
    except SnapshotTooNew as error:
        raise DepalmaError(
            f"{path} has format {error.found}; this release reads formats up to {error.known}: "
            "use the release that wrote it, or a newer one"
        ) from error
    except SnapshotDamaged as error:
        raise Damaged(f"{path} is damaged: {error.what}. Take another copy of it; nothing was changed") from error
    except BackupDamaged as error:
        raise Damaged(f"{path} is damaged: {error}. Take another copy of it; nothing was changed") from error
