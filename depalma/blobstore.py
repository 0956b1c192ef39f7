"""One master's blob files: `DIR/aa/rest` for the blob whose SHA-256 is `aarest`.

A file has its final name only when all its bytes are on disk and its digest is right, so what is there after a power
cut is whole. Disk work and hashing run on a small pool of threads, never on the loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

CHUNK_BYTES = 1024 * 1024
_DIGEST = re.compile(r"[0-9a-f]{64}")
_P = ParamSpec("_P")
_T = TypeVar("_T")


class BadBlob(ValueError):
    """The bytes are not what the digest says, or too many. `code` is the API's word for it."""

    def __init__(self, message: str, *, code: str = "bad_digest") -> None:
        super().__init__(message)
        self.code = code


def is_digest(text: str) -> bool:
    """Returns whether `text` is a SHA-256 in lower-case hexadecimal (and so safe as a file name)."""
    return _DIGEST.fullmatch(text) is not None


class BlobStore:
    """The files of one master. Errors of the disk come out as OSError; nothing half-written is ever visible."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._temporary = directory / "tmp"
        self._finishing: set[str] = set()  #: digests whose file has its name, but perhaps not yet durably
        self._number = 0
        self._prepare()
        self._executor = ThreadPoolExecutor(4, thread_name_prefix="blobs")

    def _prepare(self) -> None:
        """Makes all folders at once, and durable names that a killed process may have left unsynced."""
        self._temporary.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in self._temporary.iterdir():
            leftover.unlink()
        for number in range(256):
            folder = self._directory / f"{number:02x}"
            folder.mkdir(exist_ok=True, mode=0o700)
            if any(folder.iterdir()):
                _sync_directory(folder)
        _sync_directory(self._directory)
        _sync_directory(self._directory.parent)

    def path(self, digest: str) -> Path:
        """Returns where the blob is, or would be. Errors: ValueError for anything but a digest."""
        if not is_digest(digest):
            raise ValueError(f"{digest!r} is not a SHA-256")
        return self._directory / digest[:2] / digest[2:]

    def size(self, digest: str) -> int | None:
        """Returns the blob's length in bytes, or None if it is not here, whole and durable."""
        if digest in self._finishing:
            return None
        try:
            return self.path(digest).stat().st_size
        except (FileNotFoundError, ValueError):
            return None

    async def digests(self) -> list[str]:
        """Returns what is here, in no order."""
        return await self._run(self._list)

    def _list(self) -> list[str]:
        folders = (folder for folder in self._directory.iterdir() if len(folder.name) == 2)
        names = (folder.name + file.name for folder in folders for file in folder.iterdir())
        return [name for name in names if is_digest(name)]

    def close(self) -> None:
        """Waits for running disk work."""
        self._executor.shutdown()

    async def put(self, stream: AsyncIterable[bytes], digest: str, limit_bytes: int) -> None:
        """Stores the stream's bytes under `digest`, durably, or changes nothing. Errors: BadBlob, OSError."""
        target = self.path(digest)
        self._number += 1
        writer = _Writer(self._temporary / f"{digest}.{self._number}")
        chunks: list[bytes] = []
        waiting = total = 0
        try:
            async for chunk in stream:
                total += len(chunk)
                if total > limit_bytes:
                    raise BadBlob(f"more than {limit_bytes} bytes; that is the most a blob may have", code="too_large")
                chunks.append(chunk)
                waiting += len(chunk)
                if waiting >= CHUNK_BYTES:
                    await self._run(writer.write, chunks)
                    chunks, waiting = [], 0
            self._finishing.add(digest)
            await self._run(writer.finish, chunks, digest, target)
        except BaseException:
            await asyncio.shield(self._run(writer.abort))
            raise
        finally:
            self._finishing.discard(digest)

    async def read(self, digest: str) -> bytes:
        """Returns the bytes. Errors: FileNotFoundError; BadBlob if they were damaged (the file is moved aside)."""
        return await self._run(self._read, digest)

    async def check(self, digest: str) -> None:
        """Reads the whole file and compares. Errors: as `read`."""
        await self._run(self._check, digest)

    async def chunks(self, digest: str) -> AsyncIterator[bytes]:
        """Gives the bytes in pieces. Errors: FileNotFoundError."""
        with await self._run(self.path(digest).open, "rb") as file:
            while chunk := await self._run(file.read, CHUNK_BYTES):
                yield chunk

    async def digest_of(self, data: bytes) -> str:
        """Returns the SHA-256 of `data`."""
        if len(data) <= CHUNK_BYTES // 4:
            return hashlib.sha256(data).hexdigest()
        return await self._run(lambda: hashlib.sha256(data).hexdigest())

    async def _run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def _read(self, digest: str) -> bytes:
        data = self.path(digest).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            self._move_aside(digest)
        return data

    def _check(self, digest: str) -> None:
        with self.path(digest).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            self._move_aside(digest)

    def _move_aside(self, digest: str) -> None:
        path = self.path(digest)
        aside = path.with_name(path.name + ".damaged")
        path.rename(aside)
        raise BadBlob(f"blob {digest} is damaged on disk; moved to {aside}")


class _Writer:
    """A file being written, on the pool's threads. The lock: `abort` may come while a write is still under way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._hash = hashlib.sha256()
        self._file = path.open("xb", buffering=0)

    def write(self, chunks: list[bytes]) -> None:
        with self._lock:
            self._write(chunks)

    def finish(self, chunks: list[bytes], digest: str, target: Path) -> None:
        """Makes the file durable under its final name, or raises BadBlob."""
        with self._lock:
            self._write(chunks)
            if self._hash.hexdigest() != digest:
                raise BadBlob(f"the bytes have SHA-256 {self._hash.hexdigest()}, not {digest}")
            os.fsync(self._file.fileno())
            self._file.close()
            self._path.rename(target)
            _sync_directory(target.parent)

    def abort(self) -> None:
        with self._lock:
            self._file.close()
            self._path.unlink(missing_ok=True)

    def _write(self, chunks: list[bytes]) -> None:
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._hash.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
