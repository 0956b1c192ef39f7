"""Large values beside the log: files named by the SHA-256 of their bytes, on a majority of masters.

A command that names a digest is proposed only after `Blobs.put` or `Blobs.ensure_majority` returned, so any majority
of masters that survives has the bytes of everything in the log. Blobs are never changed. What nothing names is
collected after a grace (blobkeeping.py); whoever is about to name a blob renews that grace wherever it counts on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import mmap
import time
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp

from depalma import items
from depalma.blobstore import BadBlob, BlobStore, is_digest
from depalma.config import ClusterConfig, Secrets
from depalma.trust import Trust, verifying

__all__ = ["BadBlob", "BlobStore", "Blobs", "NoMajority", "UnknownBlob", "is_digest", "master_token"]

log = logging.getLogger(__name__)

CHUNK_BYTES = 1024 * 1024
#: What `read` keeps in memory: all together, and the largest single one.
CACHE_BYTES = 64 * 1024 * 1024
CACHE_ENTRY_BYTES = 8 * 1024 * 1024
#: Files that `item` keeps mapped.
MAPPED_FILES = 64
#: Digests whose holders are remembered, so that using a blob again asks nobody.
KNOWN_DIGESTS = 50_000
#: For so long a master is believed to have what it had: a small part of the shortest grace of what nothing names.
TRUST_S = 20.0
_TIMEOUT = aiohttp.ClientTimeout(total=600, sock_connect=1.0, sock_read=15.0)
_HEAD_TIMEOUT = aiohttp.ClientTimeout(total=2.0, sock_connect=1.0)


def master_token(raft_secret: bytes) -> str:
    """Returns the bearer token that masters show each other; derived, so that the Raft secret itself never travels."""
    return hashlib.sha256(b"depalma-master\0" + raft_secret).hexdigest()


class UnknownBlob(Exception):
    """No master that could be asked has the blob."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"no reachable master has blob {digest}; upload it first: PUT /v1/blobs/{digest}")
        self.digest = digest


class NoMajority(Exception):
    """Too few masters could store the blob; the ones that did keep it, so trying again is cheap."""


class Blobs:
    """This master's blobs and those of its peers.

    `peers`: id to base URL of the other masters. `token`: what masters know each other by. All methods are to be
    called on the loop's thread.
    """

    def __init__(
        self,
        store: BlobStore,
        peers: Mapping[str, str],
        token: str,
        *,
        limit_bytes: int = 2**31,
        trust: Trust | None = None,
    ) -> None:
        self.store = store
        self._trust = trust
        self.limit_bytes = limit_bytes
        self._holders: OrderedDict[str, dict[str, float]] = OrderedDict()  #: when peers were known to hold a digest
        self.set_peers(peers)
        self._headers = {"Authorization": f"Bearer {token}"}
        self._session: aiohttp.ClientSession | None = None
        self.used_s: dict[str, float] = {}  #: when somebody last stored, asked for or counted on a blob here
        self.held_until_s = 0.0  #: nothing is collected before: somebody is saving everything
        self._fetching: dict[str, asyncio.Task[Path]] = {}
        self._background: set[asyncio.Task[bool]] = set()
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cache_bytes = 0
        self._mapped: OrderedDict[str, memoryview] = OrderedDict()

    @classmethod
    def for_master(
        cls, config: ClusterConfig, secrets: Secrets, master_id: str, store: BlobStore, trust: Trust | None = None
    ) -> Blobs:
        """Returns the blobs of one master of a cluster."""
        peers = {master.id: config.url(master) for master in config.masters if master.id != master_id}
        limit_bytes = config.settings.max_blob_bytes
        return cls(store, peers, master_token(secrets.raft_secret), limit_bytes=limit_bytes, trust=trust)

    def set_peers(self, peers: Mapping[str, str]) -> None:
        """From now on these are the other masters: id to base URL."""
        self._peers = dict(peers)
        self._majority = (len(peers) + 1) // 2 + 1
        for digest, holders in self._holders.items():
            self._holders[digest] = {peer: at for peer, at in holders.items() if peer in peers}

    def path(self, digest: str) -> Path:
        """Returns where the file is, or would be."""
        return self.store.path(digest)

    def has(self, digest: str) -> bool:
        """Returns whether this master has it on disk."""
        return self.store.size(digest) is not None

    def use(self, digest: str) -> bool:
        """Returns whether this master has it on disk, and goes on to have it for a while, named or not."""
        self.used_s[digest] = time.monotonic()
        return self.has(digest)

    def drop(self, digest: str) -> None:
        """Removes a blob that nothing names and nobody has used for long."""
        self._forget(digest)
        self._holders.pop(digest, None)
        self.path(digest).unlink(missing_ok=True)

    def hold(self, for_s: float) -> None:
        """Makes sure that nothing is collected here for so long."""
        self.held_until_s = max(self.held_until_s, time.monotonic() + for_s)

    async def close(self) -> None:
        """Ends copies that still run and closes the connections to the peers."""
        tasks: list[asyncio.Task[bool] | asyncio.Task[Path]] = [*self._background, *self._fetching.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._mapped.clear()
        if self._session is not None:
            await self._session.close()
        self.store.close()

    # ------------------------------------------------------------ writing

    async def put(self, stream: AsyncIterable[bytes], digest: str) -> bool:
        """Stores the bytes on a majority of masters; returns whether they were new here.

        Errors: BadBlob (wrong digest, too large), NoMajority, OSError (this disk).
        """
        new = await self.put_here(stream, digest)
        await self._ensure(digest, ask_first=not new)
        return new

    async def put_here(self, stream: AsyncIterable[bytes], digest: str) -> bool:
        """Stores the bytes on this master alone; returns whether they were new. Errors: BadBlob, OSError."""
        if self.use(digest):
            await _drain(stream, self.limit_bytes)
            return False
        await self.store.put(stream, digest, self.limit_bytes)
        self.use(digest)
        return True

    async def put_bytes(self, data: bytes) -> str:
        """Stores `data` on a majority of masters; returns its digest. Errors: NoMajority, OSError."""
        digest = await self.store.digest_of(data)
        await self.put(_once(data), digest)
        return digest

    async def ensure_majority(self, digest: str) -> None:
        """Returns when a majority of masters has the blob on disk. Errors: UnknownBlob, NoMajority."""
        if not is_digest(digest):
            raise BadBlob(f"{digest!r} is not a SHA-256 (64 lower-case hexadecimal digits)")
        await self._ensure(digest, ask_first=True)

    async def _ensure(self, digest: str, *, ask_first: bool) -> None:
        if self.use(digest) and self._count(digest) >= self._majority:
            return
        if ask_first:  # not after an upload of something new: nobody else can have it yet
            await self._until_majority(digest, self._ask_head, self._peers.keys() - self._fresh(digest))
        if not self.has(digest):
            if not self._fresh(digest):
                raise UnknownBlob(digest)
            await self.fetch(digest)
        await self._until_majority(digest, self._send, self._peers.keys() - self._fresh(digest))
        # Sending may have taken longer than the others are believed.
        await self._until_majority(digest, self._ask_head, self._peers.keys() - self._fresh(digest))
        if self._count(digest) < self._majority:
            raise NoMajority(f"{self._count(digest)} of {len(self._peers) + 1} masters have blob {digest}")

    def _count(self, digest: str) -> int:
        return len(self._fresh(digest)) + self.has(digest)

    def _fresh(self, digest: str) -> set[str]:
        """Returns the peers that had the blob a moment ago: each of them keeps it for its grace from then on."""
        since = time.monotonic() - TRUST_S
        return {peer for peer, at in self._holders.get(digest, {}).items() if at >= since and peer in self._peers}

    def _note_holder(self, digest: str, peer: str) -> None:
        self._holders.setdefault(digest, {})[peer] = time.monotonic()
        self._holders.move_to_end(digest)
        if len(self._holders) > KNOWN_DIGESTS:
            self._holders.popitem(last=False)

    async def _until_majority(
        self, digest: str, act: Callable[[str, str], Awaitable[bool]], peers: Collection[str]
    ) -> None:
        """Acts on all peers at once and returns when enough hold the blob; the others go on behind."""

        async def one(peer: str) -> bool:
            held = await act(peer, digest)
            if held:
                self._note_holder(digest, peer)
            return held

        if self._count(digest) >= self._majority:
            return
        pending = {asyncio.create_task(one(peer)) for peer in peers}
        for task in pending:
            self._background.add(task)
            task.add_done_callback(self._background.discard)
        while pending and self._count(digest) < self._majority:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)

    async def _ask_head(self, peer: str, digest: str) -> bool:
        try:
            async with self._head(peer, digest) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _head(self, peer: str, digest: str) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._http().head(self._url(peer, digest), timeout=_HEAD_TIMEOUT, ssl=verifying(self._trust))

    async def version_of(self, peer: str) -> int | None:
        """Returns the version of a peer's state now; None if it does not answer."""
        if peer not in self._peers:
            return None
        try:
            async with self._head(peer, "0" * 64) as answer:
                return int(answer.headers.get("Depalma-Index", ""))
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    def peers(self) -> Collection[str]:
        """Returns the ids of the other masters."""
        return self._peers.keys()

    async def ask_peer(self, peer: str, path: str, body: bytes) -> bytes | None:
        """Returns the answer of another master to a POST of msgpack; None if it gives none, or a refusal."""
        if peer not in self._peers:
            return None
        headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
        url, tls = self._peers[peer] + path, verifying(self._trust)
        try:
            async with self._http().post(url, data=body, headers=headers, ssl=tls) as answer:
                if answer.status == 200:
                    return await answer.read()
                log.info("master %s refused %s: %s %s", peer, path, answer.status, await _start_of(answer))
        except (aiohttp.ClientError, TimeoutError) as error:
            log.info("master %s does not answer %s: %s", peer, path, error or type(error).__name__)
        return None

    async def _send(self, peer: str, digest: str) -> bool:
        size = self.store.size(digest)
        try:
            async with self._http().put(
                self._url(peer, digest),
                data=self.store.chunks(digest),
                headers={"Content-Length": str(size)},
                ssl=verifying(self._trust),
            ) as answer:
                if answer.status in (200, 201):
                    return True
                log.warning("master %s refused blob %s: %s %s", peer, digest, answer.status, await _start_of(answer))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.info("blob %s could not be copied to master %s: %s", digest, peer, error or type(error).__name__)
        return False

    # ------------------------------------------------------------ reading

    async def fetch(self, digest: str) -> Path:
        """Returns the path of the blob's file, after copying it from a peer if it is not here. Errors: UnknownBlob."""
        if not is_digest(digest):
            raise UnknownBlob(digest)
        if self.has(digest):
            return self.path(digest)
        task = self._fetching.get(digest)
        if task is None:
            task = self._fetching[digest] = asyncio.create_task(self._fetch(digest))
            task.add_done_callback(lambda _: self._fetching.pop(digest, None))
        return await asyncio.shield(task)

    async def _fetch(self, digest: str) -> Path:
        known = self._holders.get(digest, {})
        for peer in sorted(self._peers, key=lambda peer: peer not in known):
            try:
                async with self._http().get(self._url(peer, digest), ssl=verifying(self._trust)) as answer:
                    if answer.status == 200:
                        await self.store.put(answer.content.iter_any(), digest, self.limit_bytes)
                        self._note_holder(digest, peer)
                        self.use(digest)
                        return self.path(digest)
            except (aiohttp.ClientError, TimeoutError, BadBlob) as error:
                log.warning("blob %s from master %s: %s", digest, peer, error or type(error).__name__)
        raise UnknownBlob(digest)

    async def read(self, digest: str) -> bytes:
        """Returns the bytes, checked against the digest. Errors: UnknownBlob, OSError."""
        data = self._cache.get(digest)
        if data is not None:
            self._cache.move_to_end(digest)
            return data
        await self.fetch(digest)
        try:
            data = await self.store.read(digest)
        except BadBlob as error:  # the disk changed it; it has been moved aside
            log.error("%s; taking it from another master", error)
            await self.fetch(digest)
            data = await self.store.read(digest)
        if len(data) <= CACHE_ENTRY_BYTES and digest not in self._cache:
            self._cache[digest] = data
            self._cache_bytes += len(data)
            while self._cache_bytes > CACHE_BYTES:
                self._cache_bytes -= len(self._cache.popitem(last=False)[1])
        return data

    async def check(self, digest: str) -> None:
        """Reads the blob; one that the disk has changed is taken from another master. Errors: UnknownBlob."""
        try:
            if self.has(digest):
                await self.store.check(digest)
        except BadBlob as error:
            log.error("%s; taking it from another master", error)
            self._forget(digest)
        await self.fetch(digest)

    def _forget(self, digest: str) -> None:
        """Drops what memory holds of a blob."""
        data = self._cache.pop(digest, None)
        self._cache_bytes -= len(data or b"")
        self._mapped.pop(digest, None)

    async def item(self, digest: str, position: int) -> bytes:
        """Returns item `position` of a blob of packed items. Errors: UnknownBlob, items.BadItems, IndexError."""
        return items.read(await self._map(digest), position)

    async def items_count(self, digest: str) -> int:
        """Returns how many items a blob of packed items has. Errors: UnknownBlob, items.BadItems."""
        return items.count(await self._map(digest))

    async def check_items(self, digest: str) -> None:
        """Returns if each item of a blob can be read. Errors: UnknownBlob, items.BadItems."""
        await asyncio.to_thread(items.check, await self._map(digest))

    async def _map(self, digest: str) -> memoryview:
        view = self._mapped.get(digest)
        if view is not None:
            self._mapped.move_to_end(digest)
            return view
        path = await self.fetch(digest)
        if path.stat().st_size <= CACHE_ENTRY_BYTES:
            view = memoryview(await self.read(digest))
        else:
            await self.check(digest)
            with path.open("rb") as file:
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._mapped[digest] = view
        if len(self._mapped) > MAPPED_FILES:
            self._mapped.popitem(last=False)
        return view

    # ------------------------------------------------------------ peers

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=_TIMEOUT, auto_decompress=False)
        return self._session

    def _url(self, peer: str, digest: str) -> str:
        return f"{self._peers[peer]}/internal/blobs/{digest}"


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _drain(stream: AsyncIterable[bytes], limit_bytes: int) -> None:
    """Reads what is not needed: a sender that gets its answer too early would see a broken pipe."""
    async for chunk in stream:
        limit_bytes -= len(chunk)
        if limit_bytes < 0:
            raise BadBlob("more bytes than a blob may have", code="too_large")


async def _start_of(answer: aiohttp.ClientResponse) -> str:
    return (await answer.content.read(300)).decode("utf-8", "replace")
