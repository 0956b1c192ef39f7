"""Blobs between this host and the masters: arguments, functions and code archives come, large results go."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp

from depalma.agent.lives import boot_id
from depalma.errors import DepalmaError
from depalma.trust import Trust, verifying

log = logging.getLogger(__name__)

_CHUNK_BYTES = 256 * 1024
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_STALL_S = 10.0
_OFFER_S = 5.0
_REMEMBERED = 10_000


class BlobUnavailable(DepalmaError):
    """No master has the blob, or none could be reached in time."""


class Blobs:
    """Fetches blobs into a bounded folder and uploads files. `masters` gives the base URLs, the leader first."""

    def __init__(
        self,
        root: Path,
        session: aiohttp.ClientSession,
        masters: Callable[[], list[str]],
        limit_bytes: int,
        trust: Trust | None = None,
    ) -> None:
        self._cache = root / "blobs" / "cache"
        self._out = root / "blobs" / "out"
        self._session = session
        self._trust = trust
        self._masters = masters
        self._limit_bytes = limit_bytes
        self._fetching: dict[Path, asyncio.Future[str | None]] = {}  #: what was in the way; empty = it came
        self._uploading: dict[str, asyncio.Lock] = {}
        self._uploaded: dict[str, None] = {}
        self._doubted: dict[tuple[str, str], None] = {}  #: (master, digest) that came with another SHA-256
        self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        _drop_doubtful(self._cache, root / "blobs" / "boot")

    async def have(self, digest: str, for_s: float) -> Path:
        """Returns the file of a blob, fetched if need be and verified. Errors: BlobUnavailable after `for_s`."""
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise BlobUnavailable(f"{digest[:80]!r} is not a SHA-256")
        path = self._cache / digest
        if path.exists():
            os.utime(path)
            return path
        await self.fetch(digest, path, for_s)
        return path

    async def fetch(self, digest: str, target: Path, for_s: float) -> None:
        """Brings a blob to `target`, verified. Errors: BlobUnavailable after `for_s` seconds."""
        while (under_way := self._fetching.get(target)) is not None:
            # Two that write into one file would mix it, and each would find right what it has heard.
            await asyncio.wait([under_way])
            if under_way.result() is not None:
                return self._brought(under_way.result())
        mine = self._fetching[target] = asyncio.get_running_loop().create_future()
        problem: str | None = None  # and stays so if this is cancelled: then the next one tries
        try:
            problem = await self._fetch(digest, target, for_s)
        finally:
            del self._fetching[target]
            mine.set_result(problem)
        return self._brought(problem)

    @staticmethod
    def _brought(problem: str | None) -> None:
        if problem:
            raise BlobUnavailable(problem)

    async def _fetch(self, digest: str, target: Path, for_s: float) -> str:
        """Returns what was in the way for so long; empty when it came."""
        end = asyncio.get_running_loop().time() + for_s
        pause_s, problem = _FIRST_PAUSE_S, "no master is known"
        while True:
            for url in self._masters():
                try:
                    await self._fetch_from(url, digest, target)
                    return ""
                except (aiohttp.ClientError, OSError, TimeoutError, BlobUnavailable) as error:
                    problem = f"{url}: {error or type(error).__name__}"
            if asyncio.get_running_loop().time() + pause_s > end:
                return f"blob {digest[:12]} cannot be fetched: {problem}"
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5)

    async def _fetch_from(self, url: str, digest: str, target: Path) -> None:
        part = target.with_name(target.name + ".part")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=2, sock_read=_STALL_S)
        seen, have_bytes = await asyncio.to_thread(_begun, part)
        headers = {"Range": f"bytes={have_bytes}-"} if have_bytes else {}
        # Whoever gave wrong bytes is asked to look at its own copy first.
        doubt = "?check=1" if (url, digest) in self._doubted else ""
        async with self._session.get(
            f"{url}/v1/blobs/{digest}{doubt}", timeout=timeout, headers=headers, ssl=verifying(self._trust)
        ) as answer:
            if answer.status == 416:
                part.unlink(missing_ok=True)
            if answer.status not in (200, 206):
                raise BlobUnavailable(f"HTTP {answer.status}")
            if answer.status == 200:
                seen, have_bytes = hashlib.sha256(), 0
            with open(part, "ab" if have_bytes else "wb") as file:  # noqa: ASYNC230 - page cache, in small pieces
                async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                    seen.update(chunk)
                    file.write(chunk)
        if seen.hexdigest() != digest:
            part.unlink()
            self._doubted[url, digest] = None
            raise BlobUnavailable("what came has another SHA-256")
        os.rename(part, target)
        self._doubted.pop((url, digest), None)
        while len(self._doubted) > _REMEMBERED:
            del self._doubted[next(iter(self._doubted))]

    def evict(self, in_use: Callable[[str], bool]) -> list[str]:
        """Removes the longest unused blobs until the folder is within its limit. Returns their digests."""
        entries = []
        for path in self._cache.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        evicted = []
        for _, size, path in sorted(entries):
            if total <= self._limit_bytes:
                break
            if path.suffix != ".part" and not in_use(path.name):
                path.unlink(missing_ok=True)
                evicted.append(path.name)
                total -= size
        return evicted

    async def upload(self, digest: str) -> None:
        """Brings the file `blobs/out/DIGEST` to a majority of masters, however long it takes, then removes it.

        Errors: BlobUnavailable if the file is gone.
        """
        path = self._out / digest
        pause_s = _FIRST_PAUSE_S
        async with self._uploading.setdefault(digest, asyncio.Lock()):
            # Equal results of several tasks are one file: whoever comes first brings it for all.
            while path.exists() and not await self._upload_once(path, digest):
                await asyncio.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5)
            if path.exists():
                path.unlink()
                self._uploaded[digest] = None
        if digest not in self._uploaded:
            raise BlobUnavailable(f"result {digest[:12]} is not on this disk any more")
        self._uploading.pop(digest, None)
        while len(self._uploaded) > _REMEMBERED:
            del self._uploaded[next(iter(self._uploaded))]

    async def offer(self, data: bytes, digest: str, for_s: float) -> str:
        """Brings bytes to a majority of masters. Returns what was in the way for so long; empty when they have them.

        However short the time, every master is asked once.
        """
        end = asyncio.get_running_loop().time() + for_s
        timeout = aiohttp.ClientTimeout(total=_OFFER_S, sock_connect=1)
        pause_s = _FIRST_PAUSE_S
        while problem := await self._put(digest, len(data), lambda: data, timeout):
            if asyncio.get_running_loop().time() + pause_s >= end:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5)
        return problem

    async def _upload_once(self, path: Path, digest: str) -> bool:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=2, sock_read=30)
        try:
            size_bytes = path.stat().st_size
        except FileNotFoundError:
            return True  # somebody else has just brought the same
        return not await self._put(digest, size_bytes, lambda: _chunks(path), timeout)

    async def _put(
        self,
        digest: str,
        size_bytes: int,
        body: Callable[[], bytes | AsyncIterator[bytes]],
        timeout: aiohttp.ClientTimeout,
    ) -> str:
        """Offers a blob to one master after the other. Returns what was in the way at the last; empty: it is there."""
        urls = self._masters()
        problem = "no master is known"
        headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
        for url in urls:
            try:
                put = self._session.put(
                    f"{url}/v1/blobs/{digest}",
                    data=body(),
                    timeout=timeout,
                    headers=headers,
                    ssl=verifying(self._trust),
                )
                async with put as answer:
                    if 200 <= answer.status < 300:
                        return ""
                    leader = answer.headers.get("Depalma-Leader", "").rstrip("/")
                    problem = f"{url} answers HTTP {answer.status}"
                    if answer.status == 421 and leader and leader not in urls:
                        urls.append(leader)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                problem = f"{url}: {error or type(error).__name__}"
            log.info("blob %s: %s", digest[:12], problem)
        return problem


def _drop_doubtful(cache: Path, marker: Path) -> None:
    """Removes what is not whole, and what came before the machine last started: that is not synced, and may be zeros.

    `marker`: the file that says in which boot they came.
    """
    boot = boot_id()
    known = marker.exists() and marker.read_text().strip() == boot
    for left in cache.glob("*.part" if known else "*"):
        left.unlink()
    if not known:
        marker.write_text(boot)


def _begun(part: Path) -> tuple[hashlib._Hash, int]:
    """Returns the hash and the length of what an earlier try has brought."""
    seen = hashlib.sha256()
    length_bytes = 0
    with contextlib.suppress(FileNotFoundError), part.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            seen.update(chunk)
            length_bytes += len(chunk)
    return seen, length_bytes


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with open(path, "rb") as file:  # noqa: ASYNC230
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
