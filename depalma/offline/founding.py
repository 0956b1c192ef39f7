"""Makes the directories of masters from a saved snapshot, or from what one master has left."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct, structs

from depalma import __version__
from depalma.backup import CHUNK_BYTES, BlobWriter, StoredBlob, chunks_of
from depalma.blobstore import BlobStore
from depalma.config import ClusterConfig
from depalma.consensus import recovery
from depalma.consensus.disk import FileDisk
from depalma.consensus.identity import Identity
from depalma.consensus.snapshot_format import Header
from depalma.errors import DepalmaError
from depalma.offline.errors import Occupied, told
from depalma.offline.inspecting import Loaded, load
from depalma.state.machine import Machine
from depalma.state.restoring import blobs_of

#: The replica's folder, and that of the blobs, in a master's directory.
_RAFT, _BLOBS = "raft", "blobs"
_BLOB_LIMIT_BYTES = 1 << 62


class Prepared(Struct, frozen=True, kw_only=True):
    """A master's directory that was made."""

    id: str
    directory: str
    moved_aside: str  #: where what was there before is now; empty = nothing was
    blobs_missing: tuple[str, ...]  #: named by the state, and not there


class Restored(Struct, frozen=True, kw_only=True):
    """What `restore` did."""

    masters: tuple[Prepared, ...]
    index: int
    term: int
    requeued: int  #: attempts that ran when the snapshot was taken
    next_job: int


class Recovered(Struct, frozen=True, kw_only=True):
    """What `recover` did, or would do. Commands are numbered from 1 in the order of the log."""

    id: str
    directory: str
    committed_to: int  #: the last command that this master knew to be committed
    kept_to: int  #: the last one in its log; those in between are kept, whether they were acknowledged or not
    lost_from: int  #: commands from here on, if any were acknowledged, are lost
    last_entry: int  #: where the log ended
    term: int  #: the last one that this master knew
    saved: str = ""  #: the file that gives the other masters of the cluster file the same beginning
    founded: Restored | None = None


def restore(file: Path, config: ClusterConfig, ids: Sequence[str], *, force: bool) -> Restored:
    """Prepares the directories of these masters so that they begin with the state of a saved file.

    With `force` what is in a directory is moved aside; blobs stay where they are. Each directory is put in place as a
    whole. Errors: Damaged, Occupied (nothing was changed), DepalmaError, OSError.
    """
    loaded = load(file)
    for master_id in ids:
        _check_free(_raft_folder(config, master_id), force)
    return _found(config, ids, loaded.machine, loaded.saved.header, "before-restore", lambda: _copied(file, loaded))


def examine(config: ClusterConfig, master_id: str) -> Recovered:
    """Says what `recover` would do. Errors: as `recover`."""
    return _examine(config, master_id)[0]


def recover(config: ClusterConfig, master_id: str) -> Recovered:
    """Makes what one master has on its disk the beginning of the cluster of the cluster file.

    Everything in its log is kept; what was there is moved aside. Errors: Occupied, DepalmaError for damaged files or
    an empty directory, OSError.
    """
    found, machine, header = _examine(config, master_id)
    saved = ""
    if len(config.masters) > 1:
        saved = str(_save(Path(found.directory), machine, header))
    founded = _found(config, [master_id], machine, header, "before-recover", lambda: iter(()))
    return structs.replace(found, saved=saved, founded=founded)


def _save(directory: Path, machine: Machine, header: Header) -> Path:
    """Saves the state, and what blobs there are of it, for the other masters."""
    saved = directory / f"recovered-{_stamp()}.snap"
    recovery.write_file(saved, header, machine.snapshot())
    store = BlobStore(directory / _BLOBS)
    try:
        with saved.open("ab") as file:
            writer = BlobWriter(file)
            for digest in sorted(blobs_of(machine.state)):
                if (size_bytes := store.size(digest)) is not None:
                    writer.add(digest, size_bytes, _read(store.path(digest)))
            writer.finish()
            file.flush()
            os.fsync(file.fileno())
    finally:
        store.close()
    return saved


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _examine(config: ClusterConfig, master_id: str) -> tuple[Recovered, Machine, Header]:
    folder = _raft_folder(config, master_id)
    if not recovery.has_state(folder):
        raise DepalmaError(f"{folder} holds no state of a master, so there is nothing to recover; check --id and `dir`")
    machine = Machine()
    with _held(folder) as disk, told():
        contents = recovery.read_directory(disk, machine)
    header = Header(contents.last_index, contents.term, contents.sequence, config.cluster, __version__)
    found = Recovered(
        id=master_id,
        directory=str(folder.parent),
        committed_to=contents.committed,
        kept_to=contents.sequence,
        lost_from=contents.sequence + 1,
        last_entry=contents.last_index,
        term=contents.term,
    )
    return found, machine, header


def _found(
    config: ClusterConfig,
    ids: Sequence[str],
    machine: Machine,
    header: Header,
    suffix: str,
    blobs: Callable[[], Iterator[tuple[StoredBlob, Iterator[bytes]]]],
) -> Restored:
    """Equal for all masters that are prepared from the same state, wherever that is done."""
    requeued = machine.begin_anew("the cluster began anew with a saved state")
    founding = recovery.founding(header, cluster=config.cluster, sequence=machine.state.version)
    return Restored(
        masters=tuple(_prepare(config, master_id, founding, machine, suffix, blobs()) for master_id in ids),
        index=founding.index,
        term=founding.term,
        requeued=requeued,
        next_job=machine.state.next_job,
    )


# ---------------------------------------------------------------- one directory


def _raft_folder(config: ClusterConfig, master_id: str) -> Path:
    return config.master(master_id).directory / _RAFT


def _check_free(folder: Path, force: bool) -> None:
    if not folder.exists():
        return
    with _held(folder):
        pass
    if recovery.has_state(folder) and not force:
        raise Occupied(
            f"{folder} holds the state of a master already; --force moves it aside and goes on. Nothing was changed"
        )


@contextmanager
def _held(folder: Path) -> Iterator[FileDisk]:
    with told(), recovery.locked(folder) as disk:
        yield disk


def _prepare(
    config: ClusterConfig,
    master_id: str,
    founding: Header,
    machine: Machine,
    suffix: str,
    blobs: Iterable[tuple[StoredBlob, Iterator[bytes]]],
) -> Prepared:
    """Blobs first: a state in place must not name what is not there yet."""
    directory = config.master(master_id).directory
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    missing = asyncio.run(_store(directory / _BLOBS, blobs, blobs_of(machine.state)))
    with _held(directory / _RAFT), told():
        aside = recovery.found(
            directory / _RAFT,
            Identity(master_id, config.cluster),
            founding,
            machine.snapshot(),
            aside=f"{suffix}-{_stamp()}",
        )
    return Prepared(
        id=master_id, directory=str(directory), moved_aside=str(aside or ""), blobs_missing=tuple(sorted(missing))
    )


async def _store(folder: Path, blobs: Iterable[tuple[StoredBlob, Iterator[bytes]]], named: set[str]) -> set[str]:
    """Copies blobs into a master's folder; returns those that are named and not there then."""
    store = BlobStore(folder)
    try:
        for blob, chunks in blobs:
            if store.size(blob.digest) is None:
                await store.put(_stream(chunks), blob.digest, _BLOB_LIMIT_BYTES)
        return {digest for digest in named if store.size(digest) is None}
    finally:
        store.close()


async def _stream(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def _copied(file: Path, loaded: Loaded) -> Iterator[tuple[StoredBlob, Iterator[bytes]]]:
    with file.open("rb") as opened:
        for blob in loaded.blobs:
            yield blob, chunks_of(opened, blob)


def _stamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S")
