"""Blobs over three masters' HTTP interfaces: a majority has them, anyone can get them."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import web

from depalma import items
from depalma.blobs import TRUST_S, BadBlob, Blobs, BlobStore, NoMajority, UnknownBlob
from depalma.local.folder import free_ports

TOKEN = "m" * 64
DATA = b"some bytes" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


class Node:
    """One master's blobs and the two routes that its peers use."""

    def __init__(self, name: str, directory: Path, port: int, peers: dict[str, str]) -> None:
        self.name = name
        self.port = port
        self.blobs = Blobs(BlobStore(directory / name), peers, TOKEN)
        self.requests: list[str] = []
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/internal/blobs/{digest}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def close(self) -> None:
        await self.stop()
        await self.blobs.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.method)
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        digest = request.match_info["digest"]
        if request.method == "PUT":
            new = await self.blobs.put_here(request.content.iter_any(), digest)
            return web.Response(status=201 if new else 200)
        if not self.blobs.has(digest):
            return web.Response(status=404)
        return web.FileResponse(self.blobs.path(digest))


@pytest.fixture
async def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Node]]:
    patient = aiohttp.ClientTimeout(total=60)  # this process may stand still for longer than a master is waited for
    monkeypatch.setattr("depalma.blobs._TIMEOUT", patient)
    monkeypatch.setattr("depalma.blobs._HEAD_TIMEOUT", patient)
    ports = free_ports(3)
    urls = {f"m{n}": f"http://127.0.0.1:{port}" for n, port in enumerate(ports, 1)}
    nodes = [
        Node(name, tmp_path, ports[n], {peer: url for peer, url in urls.items() if peer != name})
        for n, name in enumerate(urls)
    ]
    for node in nodes:
        await node.start()
    yield nodes
    for node in nodes:
        await node.close()


def holders(nodes: list[Node]) -> int:
    return sum(node.blobs.has(DIGEST) for node in nodes)


async def test_put_returns_when_a_majority_has_it(nodes: list[Node]) -> None:
    assert await nodes[0].blobs.put(once(DATA), DIGEST)
    assert holders(nodes) >= 2
    assert not await nodes[0].blobs.put(once(DATA), DIGEST)


async def test_put_works_with_a_minority_down(nodes: list[Node]) -> None:
    await nodes[2].stop()
    await nodes[0].blobs.put(once(DATA), DIGEST)
    assert [node.blobs.has(DIGEST) for node in nodes] == [True, True, False]


async def test_put_without_a_majority_says_so_and_works_later(nodes: list[Node]) -> None:
    await nodes[1].stop()
    await nodes[2].stop()
    with pytest.raises(NoMajority, match="1 of 3 masters"):
        await nodes[0].blobs.put(once(DATA), DIGEST)
    await nodes[1].start()
    await nodes[0].blobs.ensure_majority(DIGEST)
    assert nodes[1].blobs.has(DIGEST)


async def test_a_wrong_digest_reaches_nobody(nodes: list[Node]) -> None:
    with pytest.raises(BadBlob):
        await nodes[0].blobs.put(once(b"other"), DIGEST)
    assert holders(nodes) == 0
    with pytest.raises(BadBlob, match="is not a SHA-256"):
        await nodes[0].blobs.ensure_majority("../../etc/passwd")


async def test_ensure_finds_what_another_master_took(nodes: list[Node]) -> None:
    await nodes[1].blobs.put(once(DATA), DIGEST)
    await nodes[0].blobs.ensure_majority(DIGEST)
    assert nodes[0].blobs.has(DIGEST)
    with pytest.raises(UnknownBlob, match="upload it first"):
        await nodes[0].blobs.ensure_majority("0" * 64)


async def test_ensure_copies_a_blob_that_only_one_other_has(nodes: list[Node]) -> None:
    await nodes[2].blobs.put_here(once(DATA), DIGEST)
    await nodes[0].blobs.ensure_majority(DIGEST)
    assert nodes[0].blobs.has(DIGEST)
    assert holders(nodes) >= 2


async def test_ensuring_again_asks_nobody(nodes: list[Node]) -> None:
    await nodes[0].blobs.put(once(DATA), DIGEST)
    before = [list(node.requests) for node in nodes]
    for _ in range(10):
        await nodes[0].blobs.ensure_majority(DIGEST)
    assert [node.requests[: len(seen)] for node, seen in zip(nodes, before, strict=True)] == before
    assert sum(len(node.requests) for node in nodes) <= 2  # the copy to the slower one may have come meanwhile


async def test_a_missing_blob_is_fetched_once(nodes: list[Node]) -> None:
    await nodes[1].blobs.put_here(once(DATA), DIGEST)
    found = await asyncio.gather(*(nodes[0].blobs.read(DIGEST) for _ in range(20)))
    assert set(found) == {DATA}
    assert nodes[1].requests.count("GET") == 1
    with pytest.raises(UnknownBlob):
        await nodes[0].blobs.read("0" * 64)


async def test_a_body_without_end_for_a_blob_that_is_here(tmp_path: Path) -> None:
    blobs = Blobs(BlobStore(tmp_path), {}, TOKEN, limit_bytes=len(DATA))
    await blobs.put(once(DATA), DIGEST)
    with pytest.raises(BadBlob) as raised:
        await blobs.put(once(DATA + b"x"), DIGEST)
    assert raised.value.code == "too_large"
    await blobs.close()


async def test_damage_is_healed_from_a_peer(nodes: list[Node]) -> None:
    await nodes[0].blobs.put(once(DATA), DIGEST)
    for node in nodes[1:]:
        await node.blobs.fetch(DIGEST)
    nodes[0].blobs.path(DIGEST).write_bytes(b"rotten")
    assert await nodes[0].blobs.read(DIGEST) == DATA
    assert nodes[0].blobs.path(DIGEST).read_bytes() == DATA


@pytest.mark.parametrize("size", [10, 200_000])
async def test_items_are_read_one_by_one(nodes: list[Node], size: int) -> None:
    packed = items.pack([bytes([n]) * size for n in range(100)])  # small: from memory; large: mapped
    digest = await nodes[0].blobs.put_bytes(packed)
    assert await nodes[0].blobs.items_count(digest) == 100
    assert await nodes[2].blobs.item(digest, 99) == b"\x63" * size
    with pytest.raises(IndexError):
        await nodes[0].blobs.item(digest, 100)


async def test_one_master_alone_is_its_own_majority(tmp_path: Path) -> None:
    blobs = Blobs(BlobStore(tmp_path), {}, TOKEN)
    digest = await blobs.put_bytes(b"")
    assert await blobs.read(digest) == b""
    with pytest.raises(items.BadItems):
        await blobs.items_count(digest)
    await blobs.close()


async def test_who_has_a_blob_is_asked_again_after_a_while(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody counts on copies that may have been collected since."""
    await nodes[0].blobs.put(once(DATA), DIGEST)
    await nodes[1].blobs.fetch(DIGEST)
    await nodes[2].blobs.fetch(DIGEST)
    await asyncio.gather(*nodes[0].blobs._background)  # the copy to the slower one is known, too
    for node in nodes[1:]:
        node.blobs.drop(DIGEST)
    await nodes[0].blobs.ensure_majority(DIGEST)
    assert holders(nodes) == 1  # believed, as it was so a moment ago

    begin_s = time.monotonic()
    later = SimpleNamespace(monotonic=lambda: begin_s + TRUST_S + 1)
    monkeypatch.setattr("depalma.blobs.time", later)
    await nodes[0].blobs.ensure_majority(DIGEST)
    assert holders(nodes) >= 2


async def test_a_doubted_blob_is_read_and_healed(nodes: list[Node]) -> None:
    """It is enough that somebody asks for it with doubts."""
    await nodes[0].blobs.put(once(DATA), DIGEST)
    await nodes[1].blobs.fetch(DIGEST)
    rotten = bytearray(DATA)
    rotten[77] ^= 1
    nodes[0].blobs.path(DIGEST).write_bytes(rotten)

    await nodes[0].blobs.check(DIGEST)

    assert nodes[0].blobs.path(DIGEST).read_bytes() == DATA
