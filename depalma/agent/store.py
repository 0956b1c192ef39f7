"""The agent's folder: its lock, its reports that are not committed yet, and where output is.

```
lock           held by the agent and by its monitor; the next agent waits until both are gone
reports        append file of reports that no master is known to have committed
output/JOB/TASK.ATTEMPT.out|err     what attempts wrote
output/JOB/tags output/gone         what sweeping.py has to know later
spool/ scratch/ trash/              of the slots and of the workers (see spawning.py)
blobs/cache/ blobs/out/             fetched arguments and functions; results to be uploaded
code/                               see codesync.py
```
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from depalma.agent import mounts
from depalma.errors import DepalmaError
from depalma.model import AttemptRef, Report
from depalma.tails import INLINE_TAIL_BYTES, TAIL_BYTES, OutputTail, Tail, pack

log = logging.getLogger(__name__)

_HEAD = struct.Struct("<I")
_COMPACT_BYTES = 8 * 1024 * 1024


class FolderInUse(DepalmaError):
    """Another agent uses this folder, or its processes are not dead yet."""


def lock_folder(root: Path, wait_s: float) -> int:
    """Returns a descriptor that holds the folder's lock, for this process and the monitor. Errors: FolderInUse."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES) or time.monotonic() >= end:
                holder = os.pread(fd, 100, 0).decode(errors="replace").strip() or "unknown"
                os.close(fd)
                raise FolderInUse(f"{root}: in use by agent process {holder}, or by its monitor") from error
            time.sleep(0.05)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


class ReportJournal:
    """Reports on disk until they are committed. Not fsynced: what a power cut takes is run again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._encoder = msgspec.msgpack.Encoder()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size_bytes = os.fstat(self._fd).st_size

    def load(self) -> list[Report]:
        """Returns what is in it, up to the first damaged record."""
        data = os.pread(self._fd, self._size_bytes, 0)
        decoder = msgspec.msgpack.Decoder(tuple[Report, ...])
        reports: list[Report] = []
        at = 0
        with contextlib.suppress(struct.error, msgspec.DecodeError):
            while at < len(data):
                (size,) = _HEAD.unpack_from(data, at)
                reports.extend(decoder.decode(data[at + _HEAD.size : at + _HEAD.size + size]))
                at += _HEAD.size + size
        self._cut(at)
        return reports

    def keep(self, reports: tuple[Report, ...]) -> None:
        """Appends reports. Errors: OSError, and then none of them is in it."""
        body = self._encoder.encode(reports)
        record = _HEAD.pack(len(body)) + body
        try:
            _write_whole(self._fd, record)
        except OSError:
            self._cut(self._size_bytes)
            raise
        self._size_bytes += len(record)

    def _cut(self, size_bytes: int) -> None:
        """Takes away half a record: nobody would find those behind it."""
        os.ftruncate(self._fd, size_bytes)
        self._size_bytes = size_bytes

    def committed(self, left: Iterable[Report]) -> None:
        """Takes note that only `left` are still needed; the file is emptied or rewritten when that pays."""
        if not self._size_bytes:
            return
        if self._size_bytes > _COMPACT_BYTES:
            rest = tuple(left)
            if rest:
                self._rewrite(rest)
                return
        elif any(True for _ in left):
            return
        self._cut(0)

    def _rewrite(self, rest: tuple[Report, ...]) -> None:
        """Puts another file in its place: whoever reads it meanwhile, or after a crash, finds all that is needed."""
        new = self._path.with_name(f"{self._path.name}.new")
        body = self._encoder.encode(rest)
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write_whole(fd, _HEAD.pack(len(body)) + body)
            os.rename(new, self._path)
        except OSError:
            os.close(fd)  # no room: it stays long
            with contextlib.suppress(OSError):
                os.unlink(new)
            return
        os.close(self._fd)
        self._fd, self._size_bytes = fd, _HEAD.size + len(body)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


def _write_whole(fd: int, data: bytes) -> None:
    """Errors: OSError, also when there was room for a part only."""
    while data:
        data = data[os.write(fd, data) :]


class OutputFiles:
    """What attempts wrote, by attempt."""

    def __init__(self, root: Path) -> None:
        self.root = root / "output"
        self.spool = root / "spool"
        self.gone: dict[int, str] = {}  #: jobs of which something is no longer kept, and why (see sweeping.py)
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def final(self, job: int, task: int, attempt: int, stream: str) -> Path:
        """Returns where the output of an ended attempt is; no such file = it wrote nothing."""
        return self.root / str(job) / f"{task}.{attempt}.{'err' if stream == 'stderr' else 'out'}"

    def live(self, slot: str, stream: str) -> Path:
        """Returns where the output of what runs on a slot (`3`) or in a worker (`w7`) is now."""
        return self.spool / f"{slot}.{'err' if stream == 'stderr' else 'out'}"

    def tail(self, ref: AttemptRef) -> Tail:
        """Returns the end of what an ended attempt wrote. Errors: OSError."""
        (out, out_bytes), (err, err_bytes) = (
            read_slice(self.final(*ref, stream), -TAIL_BYTES, TAIL_BYTES) for stream in ("stdout", "stderr")
        )
        return Tail(out, out_bytes, err, err_bytes)

    def short_tail(self, ref: AttemptRef) -> OutputTail:
        """Returns what an ended attempt wrote if it is short enough for a report; otherwise one that is due."""
        sizes_bytes = [_size(self.final(*ref, stream)) for stream in ("stdout", "stderr")]
        if 0 < sum(sizes_bytes) <= INLINE_TAIL_BYTES:
            with contextlib.suppress(OSError):
                return OutputTail(pack(self.tail(ref)))
        return OutputTail()

    def last_words(self, slot: str) -> str:
        """Returns `: ` and the last line on standard error of what runs on a slot, or nothing."""
        with contextlib.suppress(OSError):
            tail = read_slice(self.live(slot, "stderr"), 0, TAIL_BYTES)[0].decode(errors="replace").strip()
            return ": " + tail.rsplit("\n", 1)[-1] if tail else ""
        return ""

    def cut(self, live: Iterable[tuple[AttemptRef, str]], limit_bytes: int) -> None:
        """Cuts what attempts, each on its slot, have written beyond the limit."""
        for ref, slot in live:
            for stream in ("stdout", "stderr"):
                if cut(self.live(slot, stream), limit_bytes):
                    log.info("task %d.%d: %s is cut at %d bytes", ref[0], ref[1], stream, limit_bytes)

    def salvage(self, slot: str, ref: AttemptRef | None, trash: Path) -> OutputTail | None:
        """Keeps what an attempt had written whose worker died, under its own name. Returns the end of it."""
        wrote = False
        for stream in ("stdout", "stderr"):
            source = self.live(slot, stream)
            try:
                if ref is not None and read_slice(source, 0, 1)[0]:
                    target = self.final(*ref, stream)
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    source.rename(target)
                    wrote = True
            except OSError as error:
                log.warning("output of a worker that died cannot be kept: %s", error)
            with contextlib.suppress(OSError):
                source.unlink(missing_ok=True)
        self.clear_scratch(slot, trash)
        return self.short_tail(ref) if ref is not None and wrote else None

    def clear_scratch(self, slot: str, trash: Path) -> None:
        """Moves away the scratch folder that a worker has left, if there is one."""
        scratch = self.root.parent / "scratch" / slot
        try:
            if not os.path.lexists(scratch):
                return
            with contextlib.suppress(OSError):
                scratch.chmod(0o700)  # what must not be written cannot be moved either
            scratch.rename(trash)
        except OSError as error:
            log.warning("the scratch folder of a worker that died cannot be moved: %s", error)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_slice(path: Path, offset: int, limit_bytes: int) -> tuple[bytes, int]:
    """Returns bytes from `offset` (negative: from the end) and the size of the file now; nothing and 0 if there is no
    such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a task may put a FIFO there: it must not wait
    except FileNotFoundError:
        return b"", 0
    try:
        size_bytes = os.fstat(fd).st_size
        return os.pread(fd, limit_bytes, offset if offset >= 0 else max(0, size_bytes + offset)), size_bytes
    finally:
        os.close(fd)


def cut(path: Path, limit_bytes: int) -> bool:
    """Cuts a file that grew beyond the limit. Returns whether it had. It is opened for appending by its writer,
    who goes on writing behind the cut, to be cut again."""
    try:
        if path.stat().st_size <= limit_bytes:
            return False
        os.truncate(path, limit_bytes)
    except OSError:
        return False
    return True


def empty_folder(folder: Path) -> None:
    """Removes what is in a folder (blocks); what cannot be removed stays."""
    try:
        entries = list(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            with contextlib.suppress(OSError):
                entry.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Removes a folder, also one that is locked or however deep, with all below it (blocks); else it stays.

    What is further below is moved up first: neither the stack nor the descriptors nor the length of a path may limit
    what a task can leave behind.
    """
    top = str(folder)
    pending, moved = [top], 0
    while pending:
        here = pending.pop()
        with contextlib.suppress(OSError):
            os.chmod(here, 0o700)
            with os.scandir(here) as entries:
                found = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
            for path, is_folder in found:
                if is_folder and mounts.begins_at(path):
                    continue  # what a task has mounted there is not its own, and may hang
                with contextlib.suppress(OSError):
                    if not is_folder:
                        os.unlink(path)
                    elif here == top:
                        pending.append(path)
                    else:
                        moved += 1
                        os.chmod(path, 0o700)
                        os.rename(path, higher := f"{top}/.{os.getpid()}.{moved}")
                        pending.append(higher)
            if here != top:
                os.rmdir(here)
    with contextlib.suppress(OSError):
        os.rmdir(top)
