"""Code archives: packed so that equal code gives equal bytes, unpacked as if an enemy had packed them.

An archive is a gzipped tar of plain files and folders. A folder's members are relative to it; a module is one member
called `module`; a wheel's are what it would install, relative to where. Whoever unpacks one gets new plain files below
the target and nothing else, or an ArchiveError and no target.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from msgspec import Struct

from depalma.errors import DepalmaError
from depalma.ignoring import Ignore

MODULE_MEMBER = "module"
IGNORE_FILE = ".depalmaignore"
_CHUNK_BYTES = 64 * 1024
_HEADER_BYTES = 1024 * 1024
_PATH_BYTES = 2048


class ArchiveError(DepalmaError):
    """The archive is not one that Depalma makes; nothing was unpacked."""


class Limits(Struct, frozen=True):
    """What an archive may cost whoever unpacks it."""

    size_bytes: int = 1024 * 1024 * 1024  #: of all files together
    members: int = 50_000
    ratio: int = 200  #: unpacked to packed, once `ratio_free_bytes` are unpacked
    ratio_free_bytes: int = 16 * 1024 * 1024
    depth: int = 40


DEFAULT_LIMITS = Limits()


# ---------------------------------------------------------------- packing


def pack(path: Path, name: str | None = None) -> tuple[str, str, bytes]:
    """Returns (name, kind, bytes) of a module file, a folder or a wheel: the same bytes for the same contents.

    Left out of a folder: hidden files, `__pycache__`, compiled files, and what its `.depalmaignore` lists (see
    `depalma.ignoring`). A wheel must be for any Python 3 and any machine; its scripts are left out. Errors:
    ArchiveError that names the file: nothing there, a link that leads out, neither file nor folder, no such wheel.
    """
    if not path.exists():
        raise ArchiveError(f"{path}: no such file or folder")
    is_folder = path.is_dir()
    if not is_folder and path.suffix == ".whl":
        return _pack_wheel(path, name)
    if not is_folder and path.suffix != ".py":
        raise ArchiveError(f"{path}: a module is a file that ends in .py, a wheel one that ends in .whl")
    resolved = name or path.resolve().name
    if not is_folder and not resolved.endswith(".py"):
        resolved += ".py"
    if is_folder and resolved.endswith(".py"):
        raise ArchiveError(f"{resolved}: the name of a folder does not end in .py")
    problem = name_problem(resolved, 1)
    if problem:
        raise ArchiveError(f"{resolved}: {problem}")
    members = list(_folder_members(path)) if is_folder else [(MODULE_MEMBER, path)]
    return resolved, "folder" if is_folder else "module", _pack_members(members)


def _folder_members(root: Path) -> Iterator[tuple[str, Path]]:
    ignore = Ignore(_ignored(root))
    inside = root.resolve()
    for folder, folders, files in os.walk(root):
        below = Path(folder).relative_to(root).as_posix()
        prefix = "" if below == "." else below + "/"
        folders[:] = sorted(name for name in folders if not ignore.leaves_out(prefix + name, is_folder=True))
        for name in folders:
            path = Path(folder) / name
            if path.is_symlink():
                raise ArchiveError(f"{path}: links to folders are not packed")
            yield prefix + name, path
        for name in sorted(files):
            path = Path(folder) / name
            if ignore.leaves_out(prefix + name, is_folder=False):
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise ArchiveError(f"{path}: the link leads out of the folder")
            if not path.is_file():
                raise ArchiveError(f"{path}: neither a file nor a folder")
            yield prefix + name, path


def _ignored(root: Path) -> list[str]:
    try:
        return (root / IGNORE_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def _pack_wheel(path: Path, name: str | None) -> tuple[str, str, bytes]:
    parts = path.stem.split("-")
    if len(parts) not in (5, 6) or not parts[0]:
        raise ArchiveError(f"{path}: not the name of a wheel: NAME-VERSION-PYTHON-ABI-PLATFORM.whl")
    if "py3" not in parts[-3].split(".") or parts[-2:] != ["none", "any"]:
        raise ArchiveError(f"{path}: made for {'-'.join(parts[-3:])}; allowed: py3-none-any; others as --requirements")
    resolved = name or parts[0]
    problem = name_problem(resolved, 1)
    if problem or resolved.endswith(".py"):
        raise ArchiveError(f"{resolved}: {problem or 'the name of a wheel does not end in .py'}")
    try:
        with tempfile.TemporaryDirectory(prefix="depalma-wheel-") as folder, zipfile.ZipFile(path) as wheel:
            members = list(_wheel_members(wheel, Path(folder)))
            return resolved, "wheel", _pack_members(members)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ArchiveError(f"{path}: not a sound wheel: {error}") from error


def _wheel_members(wheel: zipfile.ZipFile, folder: Path) -> Iterator[tuple[str, Path]]:
    """Unpacks the files that are imported, under numbers; the rest of an installation makes no sense in a code tree."""
    left = DEFAULT_LIMITS.size_bytes
    seen: set[str] = set()
    for number, info in enumerate(wheel.infolist()):
        name = info.filename
        top, _, rest = name.partition("/")
        if top.endswith(".data"):
            part, _, name = rest.partition("/")
            if part not in ("purelib", "platlib"):
                continue
        if info.is_dir() or not name:
            continue
        problem = name_problem(name, DEFAULT_LIMITS.depth) or ("the same path twice" if name in seen else "")
        left -= info.file_size
        if problem or left < 0:
            raise ArchiveError(
                f"{name[:200]!r}: {problem or f'unpacks to more than {DEFAULT_LIMITS.size_bytes} bytes'}"
            )
        seen.add(name)
        target = folder / str(number)
        with wheel.open(info) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
        yield name, target


def _pack_members(members: list[tuple[str, Path]]) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, path in sorted(members):
            info = tarfile.TarInfo(name)
            if path.is_dir():
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
                continue
            data = path.read_bytes()
            info.size = len(data)
            info.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(plain.getvalue(), compresslevel=6, mtime=0)


# ---------------------------------------------------------------- unpacking


def unpack(source: bytes | Path, target: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Makes the new folder `target` with the archive's files, all at once. Errors: ArchiveError; FileExistsError."""
    if target.exists():
        raise FileExistsError(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".unpack-", dir=target.parent))
    try:
        packed = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115
        with packed:
            _unpack_into(_Inflater(packed, limits), building, limits)
        building.chmod(0o755)
        building.rename(target)
    except (tarfile.TarError, zlib.error, ValueError, OverflowError, RecursionError, LookupError) as error:
        raise ArchiveError(f"not a sound archive: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _unpack_into(reader: _Inflater, target: Path, limits: Limits) -> None:
    seen: dict[str, bool] = {}  #: folded path → is a folder
    count = size_bytes = 0
    with tarfile.TarFile(fileobj=reader, mode="r") as tar:  # type: ignore[arg-type]
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]
            count += 1
            size_bytes += member.size
            if count > limits.members:
                raise ArchiveError(f"more than {limits.members} members")
            if size_bytes > limits.size_bytes:
                raise ArchiveError(f"unpacks to more than {limits.size_bytes} bytes")
            problem = _member_problem(member, limits) or _clash(member, seen)
            if problem:
                raise ArchiveError(f"{member.name[:200]!r}: {problem}")
            _write(tar, member, target / member.name)
    reader.finish()


def _member_problem(member: tarfile.TarInfo, limits: Limits) -> str:
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.issparse():
        return "neither a plain file nor a folder"
    if member.mode & 0o7000:
        return "has a set-id or sticky bit"
    if member.size < 0:
        return "has a negative size"
    return name_problem(member.name, limits.depth)


def name_problem(name: str, depth: int) -> str:
    """Returns why a path cannot be that of a member, or nothing."""
    parts = name.split("/")
    if name.startswith("/") or PurePosixPath(name).is_absolute():
        return "an absolute path"
    if any(part in ("", ".", "..") for part in parts):
        return "a path with an empty part, '.' or '..'"
    if len(parts) > depth:
        return f"deeper than {depth} folders"
    if any(len(part.encode(errors="surrogateescape")) > 255 for part in parts):
        return "a name longer than 255 bytes"
    if len(name.encode(errors="surrogateescape")) > _PATH_BYTES:
        return f"a path longer than {_PATH_BYTES} bytes"
    if any(ord(sign) < 32 or ord(sign) == 127 or sign == "\\" or "\ud800" <= sign <= "\udfff" for sign in name):
        return "a name with a control sign, a backslash or bytes that are not UTF-8"
    return ""


def _clash(member: tarfile.TarInfo, seen: dict[str, bool]) -> str:
    """Returns why the path cannot be beside those before it; on any file system, so that hosts agree."""
    folded = unicodedata.normalize("NFC", member.name).casefold()
    if folded in seen:
        return "the same path twice, or two that differ in case only"
    parts = folded.split("/")
    for length in range(1, len(parts)):
        if seen.setdefault("/".join(parts[:length]), True) is False:
            return "lies below a file"
    seen[folded] = member.isdir()
    return ""


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    if member.isdir():
        path.mkdir(mode=0o755, parents=True)
        return
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    content = tar.extractfile(member)
    mode = 0o755 if member.mode & 0o100 else 0o644
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        left = member.size
        while left and content is not None:
            chunk = content.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise ArchiveError(f"{member.name!r}: cut short")
            left -= len(chunk)
            file.write(chunk)


class _Inflater:
    """A forward-only file of what the gzip holds, which refuses to become a bomb."""

    def __init__(self, packed: io.BufferedIOBase | io.BufferedReader, limits: Limits) -> None:
        self._packed = packed
        self._limits = limits
        self._inflate = zlib.decompressobj(wbits=31)
        self._buffer = b""
        self._position = 0  # of the next byte to be read
        self._in = 0
        self._out = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = 0) -> int:
        if whence != 0 or position < self._position:
            raise ArchiveError("the archive asks for reading backwards")
        while self._position < position:
            if not self.read(min(_CHUNK_BYTES, position - self._position)):
                raise ArchiveError("cut short")
        return self._position

    def read(self, size: int) -> bytes:
        # The tar reader asks for a whole extended header at once: none of ours is large.
        if not 0 <= size <= _HEADER_BYTES:
            raise ArchiveError("an extended header is too large")
        while len(self._buffer) < size and not self._inflate.eof:
            if not self._more():
                raise ArchiveError("cut short")
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        self._position += len(data)
        return data

    def finish(self) -> None:
        """Reads to the end: only zeros may follow the last member, and nothing the gzip."""
        while data := self.read(_CHUNK_BYTES):
            if data.strip(b"\0"):
                raise ArchiveError("something follows the end of the archive")
        if self._inflate.unused_data or self._packed.read(1):
            raise ArchiveError("something follows the end of the archive")

    def _more(self) -> bool:
        source = self._inflate.unconsumed_tail
        if not source:
            source = self._packed.read(_CHUNK_BYTES)
            self._in += len(source)
            if not source:
                return False
        data = self._inflate.decompress(source, _CHUNK_BYTES)
        self._out += len(data)
        self._buffer += data
        if self._out > self._limits.size_bytes + self._limits.members * 1024:
            raise ArchiveError(f"unpacks to more than {self._limits.size_bytes} bytes")
        if self._out > self._limits.ratio_free_bytes and self._out > self._limits.ratio * max(1, self._in):
            raise ArchiveError(f"unpacks to more than {self._limits.ratio} times its size")
        return True
