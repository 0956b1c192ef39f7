"""Input and output files of tasks: archives like those of code (archive.py), of what a user names.

Whoever unpacks one trusts nothing in it: see `archive.unpack`. What is packed are plain files and folders only; a link
is refused by name, so that nothing from outside the folder travels by mistake.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from depalma import archive
from depalma.archive import ArchiveError, Limits

#: What the files of one task may be, unpacked. Data compresses better than code: only the size is limited.
LIMITS = Limits(size_bytes=4 * 1024**3, members=100_000, ratio=2000)
#: Packed inputs of a job: whoever submits holds them in memory.
INPUT_BYTES = 1024**3
_WILD = frozenset("*?[")

Member = tuple[str, Path]


class _Hashed:
    """A file that knows the SHA-256 of what was written."""

    def __init__(self, file: IO[bytes], limit_bytes: int) -> None:
        self._file = file
        self._limit_bytes = limit_bytes
        self.sha = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: Any) -> int:
        self.size_bytes += len(data)
        if self.size_bytes > self._limit_bytes:
            raise ArchiveError(f"packed, the files have more than {self._limit_bytes} bytes")
        self.sha.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def pack(members: Iterable[Member], target: IO[bytes], limit_bytes: int) -> tuple[str, int]:
    """Writes an archive of files and folders; returns its SHA-256 and size. Equal members give equal bytes.

    Errors: ArchiveError that names the file; OSError.
    """
    out = _Hashed(target, limit_bytes)
    total = 0
    with (
        gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1, mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for number, (name, path) in enumerate(sorted(members)):
            if number >= LIMITS.members:
                raise ArchiveError(f"more than {LIMITS.members} files")
            problem = archive.name_problem(name, LIMITS.depth)
            if problem:
                raise ArchiveError(f"{name[:200]!r}: {problem}")
            total += _add(tar, name, path)
            if total > LIMITS.size_bytes:
                raise ArchiveError(f"the files have more than {LIMITS.size_bytes} bytes")
    return out.sha.hexdigest(), out.size_bytes


def _add(tar: tarfile.TarFile, name: str, path: Path) -> int:
    info = tarfile.TarInfo(name)
    # Not blocking: a pipe that nobody writes must not hold up whoever packs.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb", closefd=True) if not stat.S_ISDIR(os.fstat(fd).st_mode) else _Folder(fd) as file:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
            return 0
        if not stat.S_ISREG(found.st_mode):
            raise ArchiveError(f"{name!r}: neither a file nor a folder")
        if found.st_size > LIMITS.size_bytes:
            raise ArchiveError(f"{name!r}: the files have more than {LIMITS.size_bytes} bytes")
        info.size = found.st_size
        info.mode = 0o755 if found.st_mode & 0o100 else 0o644
        try:
            tar.addfile(info, file)  # type: ignore[arg-type]
        except OSError as error:
            raise ArchiveError(f"{name!r}: {error} (did it change while it was read?)") from error
        return info.size


class _Folder:
    """An open folder, as a context."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


# ---------------------------------------------------------------- inputs


def input_members(entries: Sequence[str | os.PathLike[str]]) -> list[Member]:
    """Returns what the entries name: `PATH`, or `PATH=NAME` to call it otherwise; a folder brings what is below it.

    Errors: ArchiveError that names the entry: nothing there, a link below a folder, a name twice.
    """
    found: dict[str, Path] = {}
    for entry in entries:
        text = os.fspath(entry)
        path, name = Path(text).expanduser(), ""
        if not path.exists() and "=" in text:
            before, _, name = text.rpartition("=")
            path = Path(before).expanduser()
        if not path.exists():
            raise ArchiveError(f"{text}: no such file or folder")
        name = name.strip("/") or path.resolve().name
        for member, inside in _below(name, path.resolve()):
            if member in found:
                raise ArchiveError(f"{text}: {member!r} is given twice")
            found[member] = inside
    return sorted(found.items())


def _below(name: str, path: Path) -> Iterator[Member]:
    yield name, path
    if not path.is_dir():
        return
    for entry in sorted(os.scandir(path), key=lambda one: one.name):
        if entry.is_symlink():
            raise ArchiveError(f"{entry.path}: links are not taken along")
        yield from _below(f"{name}/{entry.name}", Path(entry.path))


# ---------------------------------------------------------------- outputs


def output_members(folder: Path, globs: Sequence[str]) -> list[Member]:
    """Returns what below the folder matches the globs: `*` and `?` stay within a name, `**` is any depth, a folder that
    matches brings what is below it.

    Errors: ArchiveError: a name without wildcards that is not there, a link or device that matches.
    """
    parts = [tuple(glob.split("/")) for glob in globs]
    found: dict[str, Path] = {}
    used: set[int] = set()
    _look(folder, (), parts, found, used)
    for number, glob in enumerate(globs):
        if number not in used and not _WILD & set(glob):
            raise ArchiveError(f"there is no {glob!r} in the scratch folder")
    return sorted(found.items())


def _look(
    folder: Path, above: tuple[str, ...], globs: list[tuple[str, ...]], found: dict[str, Path], used: set[int]
) -> None:
    with os.scandir(folder) as scanned:
        entries = list(scanned)
    for entry in entries:
        path = (*above, entry.name)
        hits = [number for number, glob in enumerate(globs) if _matches(path, glob)]
        if hits:
            used.update(hits)
            _take(entry, "/".join(path), found)
        elif entry.is_dir(follow_symlinks=False) and len(path) < LIMITS.depth:
            _look(Path(entry.path), path, globs, found, used)


def _take(entry: os.DirEntry[str], name: str, found: dict[str, Path]) -> None:
    if entry.is_symlink() or not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
        raise ArchiveError(f"{name!r}: neither a file nor a folder")
    if name.count("/") >= LIMITS.depth:
        raise ArchiveError(f"{name[:200]!r}: deeper than {LIMITS.depth} folders")
    if len(found) >= LIMITS.members:
        raise ArchiveError(f"more than {LIMITS.members} files")
    found[name] = Path(entry.path)
    if entry.is_dir(follow_symlinks=False):
        with os.scandir(entry.path) as entries:
            for inner in entries:
                _take(inner, f"{name}/{inner.name}", found)


def _matches(path: tuple[str, ...], glob: tuple[str, ...]) -> bool:
    ends = {0}  #: how much of the path what was looked at of the glob can match
    for part in glob:
        if part == "**":
            ends = set(range(min(ends), len(path) + 1)) if ends else ends
        else:
            ends = {end + 1 for end in ends if end < len(path) and fnmatch.fnmatchcase(path[end], part)}
    return len(path) in ends


# ---------------------------------------------------------------- unpacking


def unpack(source: bytes | Path, target: Path) -> None:
    """Makes the new folder `target` with the files, all at once; an empty one that is there is replaced.

    Errors: ArchiveError; FileExistsError if there is something in it.
    """
    if target.is_dir():
        try:
            target.rmdir()
        except OSError as error:
            raise FileExistsError(f"{target}: it is there, and not empty") from error
    archive.unpack(source, target, LIMITS)
