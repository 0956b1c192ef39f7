"""Blob files of one master: whole or not there."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from depalma import blobstore
from depalma.blobstore import BadBlob, BlobStore, is_digest

LIMIT = 10 * 2**20


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def stream(*chunks: bytes, fails: BaseException | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if fails is not None:
        raise fails


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlobStore]:
    store = BlobStore(tmp_path / "blobs")
    yield store
    store.close()


def leftovers(store: BlobStore) -> list[str]:
    return [path.name for path in (store.path("0" * 64).parents[1] / "tmp").iterdir()]


@pytest.mark.parametrize("size", [0, 1, 1000, 3 * 2**20 + 17])
async def test_what_is_put_is_read(store: BlobStore, size: int) -> None:
    data = os.urandom(size)
    digest = digest_of(data)
    assert store.size(digest) is None
    await store.put(stream(data[: size // 3], data[size // 3 :]), digest, LIMIT)
    assert store.size(digest) == size
    assert await store.read(digest) == data
    assert b"".join([chunk async for chunk in store.chunks(digest)]) == data
    assert store.path(digest).stat().st_mode & 0o077 == 0 or store.path(digest).parent.stat().st_mode & 0o077 == 0
    assert leftovers(store) == []


async def test_wrong_bytes_leave_nothing(store: BlobStore) -> None:
    with pytest.raises(BadBlob, match="have SHA-256") as raised:
        await store.put(stream(b"other"), digest_of(b"data"), LIMIT)
    assert raised.value.code == "bad_digest"
    assert store.size(digest_of(b"data")) is None
    assert leftovers(store) == []


async def test_too_many_bytes_leave_nothing(store: BlobStore) -> None:
    data = b"x" * 1001
    with pytest.raises(BadBlob, match="more than 1000 bytes") as raised:
        await store.put(stream(data), digest_of(data), 1000)
    assert raised.value.code == "too_large"
    assert leftovers(store) == []


async def test_a_broken_upload_leaves_nothing(store: BlobStore) -> None:
    data = os.urandom(2 * 2**20)
    with pytest.raises(ConnectionResetError):
        await store.put(stream(data, fails=ConnectionResetError()), digest_of(data), LIMIT)
    assert leftovers(store) == []


async def test_a_cancelled_upload_leaves_nothing(store: BlobStore) -> None:
    started = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            started.set()
            yield b"x" * 2**20
            await asyncio.sleep(0)

    putting = asyncio.create_task(store.put(endless(), "0" * 64, 2**40))
    await started.wait()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert leftovers(store) == []


async def test_the_same_blob_twice_at_once(store: BlobStore) -> None:
    data = os.urandom(2**20)
    digest = digest_of(data)
    await asyncio.gather(*(store.put(stream(data), digest, LIMIT) for _ in range(5)))
    assert await store.read(digest) == data
    assert leftovers(store) == []


async def test_a_blob_is_not_said_to_be_here_before_its_name_is_durable(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = digest_of(b"data")
    sync: Callable[[Path], None] = blobstore._sync_directory
    seen: list[tuple[bool, int | None]] = []

    def spy(path: Path) -> None:
        seen.append((store.path(digest).exists(), store.size(digest)))
        sync(path)

    monkeypatch.setattr(blobstore, "_sync_directory", spy)
    await store.put(stream(b"data"), digest, LIMIT)
    assert seen == [(True, None)]
    assert store.size(digest) == 4


async def test_a_damaged_blob_is_moved_aside(store: BlobStore) -> None:
    digest = digest_of(b"data")
    for look in (store.read, store.check):
        await store.put(stream(b"data"), digest, LIMIT)
        store.path(digest).write_bytes(b"dat4")
        with pytest.raises(BadBlob, match="damaged on disk"):
            await look(digest)
        assert store.size(digest) is None


async def test_leftovers_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    first = BlobStore(tmp_path)
    await first.put(stream(b"data"), digest_of(b"data"), LIMIT)
    (tmp_path / "tmp" / "half.1").write_bytes(b"da")
    first.close()
    second = BlobStore(tmp_path)
    assert leftovers(second) == []
    assert await second.read(digest_of(b"data")) == b"data"
    second.close()


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "A" * 64, "../" + "0" * 61, "0" * 63 + "\n"])
def test_only_digests_become_paths(store: BlobStore, text: str) -> None:
    assert not is_digest(text)
    assert store.size(text) is None
    with pytest.raises(ValueError, match="is not a SHA-256"):
        store.path(text)
