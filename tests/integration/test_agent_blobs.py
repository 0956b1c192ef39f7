"""Blobs between an agent and masters that are wrong, dead or forgetful."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from depalma.agent.blobs import Blobs, BlobUnavailable
from depalma.testing.fake_leader import FakeLeader, wait_until

DEAD = "http://127.0.0.1:9"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def blobs(tmp_path: Path, http: aiohttp.ClientSession, *masters: str, limit_bytes: int = 10_000) -> Blobs:
    (tmp_path / "blobs/out").mkdir(parents=True, exist_ok=True)
    return Blobs(tmp_path, http, lambda: list(masters), limit_bytes)


async def test_a_blob_comes_from_whoever_has_it(
    leader: FakeLeader, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with FakeLeader() as empty:
        digest = leader.put(b"data" * 1000)
        store = blobs(tmp_path, http, DEAD, empty.url, leader.url)

        path = await store.have(digest, 5.0)

        assert path.read_bytes() == b"data" * 1000
        leader.blobs.clear()
        assert await store.have(digest, 0.0) == path


async def test_a_blob_goes_on_where_it_broke_off(
    leader: FakeLeader, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Also at another master, and after the agent was started anew."""
    async with FakeLeader() as other:
        data = os.urandom(300_000)
        digest = other.put(data)
        leader.put(data)
        leader.cut_after_bytes = 100_000
        with pytest.raises(BlobUnavailable):
            await blobs(tmp_path, http, leader.url).fetch(digest, tmp_path / "blob", 0.0)
        assert not (tmp_path / "blob").exists()

        await blobs(tmp_path, http, other.url).fetch(digest, tmp_path / "blob", 5.0)

        assert (tmp_path / "blob").read_bytes() == data
        begin = int(other.ranges[0].rstrip("-"))
        assert 0 < begin <= 100_000, other.ranges


async def test_what_came_wrong_is_asked_for_with_doubts(
    leader: FakeLeader, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """And from the beginning: the master reads its own copy before it gives it again."""
    digest = hashlib.sha256(b"right").hexdigest()
    leader.blobs[digest] = b"wrong"
    store = blobs(tmp_path, http, leader.url)
    fetching = asyncio.create_task(store.have(digest, 10.0))
    await wait_until(lambda: "0-check" in leader.ranges, "a request with doubts")
    leader.blobs[digest] = b"right"

    assert (await fetching).read_bytes() == b"right"
    assert leader.ranges[0] == "0-"


async def test_what_is_not_what_it_should_be_is_refused(
    leader: FakeLeader, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    digest = hashlib.sha256(b"right").hexdigest()
    leader.blobs[digest] = b"wrong"
    store = blobs(tmp_path, http, leader.url)

    with pytest.raises(BlobUnavailable, match="another SHA-256"):
        await store.have(digest, 0.2)

    assert list((tmp_path / "blobs/cache").iterdir()) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "0" * 63])
async def test_only_digests_are_asked_for(http: aiohttp.ClientSession, tmp_path: Path, name: str) -> None:
    with pytest.raises(BlobUnavailable, match="not a SHA-256"):
        await blobs(tmp_path, http, DEAD).have(name, 5.0)


async def test_it_gives_up_in_time_and_says_why(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    with pytest.raises(BlobUnavailable, match=r"cannot be fetched: http://127\.0\.0\.1:9"):
        await blobs(tmp_path, http, DEAD).have("0" * 64, 0.2)


async def test_the_longest_unused_go_first_but_not_those_in_use(
    leader: FakeLeader, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    store = blobs(tmp_path, http, leader.url)
    digests = [leader.put(bytes([number]) * 4000) for number in range(5)]
    for age_s, digest in enumerate(reversed(digests)):
        path = await store.have(digest, 5.0)
        os.utime(path, (1_000_000 - age_s, 1_000_000 - age_s))

    assert store.evict(lambda digest: digest == digests[0]) == digests[1:4]
    assert store.evict(lambda digest: False) == []


async def test_an_upload_waits_for_a_master_and_is_done_once(
    leader: FakeLeader, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    masters = [DEAD]
    (tmp_path / "blobs/out").mkdir(parents=True)
    store = Blobs(tmp_path, http, lambda: list(masters), 10_000)
    data = os.urandom(600_000)
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / "blobs/out" / digest).write_bytes(data)
    both = [asyncio.create_task(store.upload(digest)) for _ in range(2)]
    await asyncio.wait(both, timeout=0.1)
    masters.append(leader.url)

    await asyncio.gather(*both)

    assert leader.blobs == {digest: data}
    assert list((tmp_path / "blobs/out").iterdir()) == []
    await store.upload(digest)  # an equal result that was written before the file was removed
    with pytest.raises(BlobUnavailable, match="not on this disk"):
        await store.upload("0" * 64)


async def test_an_upload_follows_to_the_leader(leader: FakeLeader, http: aiohttp.ClientSession, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    store = blobs(tmp_path, http, leader.url)
    (tmp_path / "blobs/out" / digest).write_bytes(b"x")

    await store.upload(digest)

    await wait_until(lambda: leader.blobs == {digest: b"x"}, "blob")
