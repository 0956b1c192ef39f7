"""Three real masters, whole, in one process: what a client sees of the one it happened to ask."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from depalma import items
from depalma.client.wire import FrameReader
from depalma.config import ClusterConfig, MasterConfig, load_secrets
from depalma.local.folder import free_ports
from depalma.master import Master
from depalma.testing.certificates import throwaway_secrets

BODY = {"kind": "command", "argv": ["true"]}


class Cluster:
    """The masters, and a client that asks one of them."""

    def __init__(self, masters: dict[str, Master], http: aiohttp.ClientSession) -> None:
        self.masters = masters
        self.http = http

    def leader(self) -> Master | None:
        return next((master for master in self.masters.values() if master.leading), None)

    def formed(self) -> bool:
        """Whether all have applied what the leader began with, and can help to elect another."""
        replicas = [master.replica for master in self.masters.values()]
        return all(replica.has_joined and replica.applied_index for replica in replicas)

    async def elected(self) -> Master:
        await eventually(lambda: self.leader() and all(master.replica.leader_id for master in self.masters.values()))
        leader = self.leader()
        assert leader is not None
        return leader

    async def followers(self) -> list[Master]:
        leader = await self.elected()
        return [master for master in self.masters.values() if master is not leader]

    async def stop(self, master: Master) -> None:
        del self.masters[master.master_id]
        await master.stop()

    async def ask(self, master: Master, method: str, path: str, **kwargs: Any) -> tuple[int, Any, Any]:
        async with self.http.request(method, url_of(master) + path, **kwargs) as answer:
            data = await answer.read()
            is_json = answer.content_type.endswith("json")
            return answer.status, msgspec.json.decode(data) if is_json else data, answer.headers


def url_of(master: Master) -> str:
    return master.config.url(master.config.master(master.master_id))


async def eventually(ready: Callable[[], Any], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not (seen := ready()):
        assert time.monotonic() < deadline, f"last seen: {seen!r}"
        await asyncio.sleep(0.01)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    ports = free_ports(6)
    config = ClusterConfig(
        masters=tuple(
            MasterConfig(
                id=f"m{n}", host="127.0.0.1", port=ports[2 * n], raft_port=ports[2 * n + 1], dir=str(tmp_path / f"m{n}")
            )
            for n in range(3)
        )
    )
    folder = throwaway_secrets(tmp_path / "secrets", [master.id for master in config.masters], cluster=config.cluster)
    secrets = load_secrets(folder, config.masters[0].id)
    masters = {master.id: Master(config, secrets, master.id) for master in config.masters}
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {secrets.token}"}) as http:
        for master in masters.values():
            await master.start()
        cluster = Cluster(masters, http)
        await cluster.elected()
        await eventually(cluster.formed)
        yield cluster
    for master in list(cluster.masters.values()):
        assert not master.failed.done(), master.failed.result()
        await cluster.stop(master)


async def test_any_master_takes_writes_and_gives_fresh_reads(cluster: Cluster) -> None:
    leader = await cluster.elected()
    for number, master in enumerate(cluster.masters.values(), 1):
        status, created, headers = await cluster.ask(master, "POST", "/v1/jobs", json=BODY)
        assert (status, created) == (201, {"id": number})
        assert headers["Depalma-Master"] == leader.master_id
        assert headers["Depalma-Leader"] == url_of(leader)
        for other in cluster.masters.values():  # linearizable: whoever is asked has it
            status, job, _ = await cluster.ask(other, "GET", "/v1/jobs/last")
            assert (status, job["id"]) == (200, number)


async def test_one_key_is_one_job_whichever_master_is_asked(cluster: Cluster) -> None:
    headers = {"Idempotency-Key": "one"}
    answers = await asyncio.gather(
        *(cluster.ask(master, "POST", "/v1/jobs", json=BODY, headers=headers) for master in cluster.masters.values())
    )
    assert [(status, body) for status, body, _ in answers] == [(201, {"id": 1})] * 3


async def test_a_stale_read_is_answered_by_the_one_that_was_asked(cluster: Cluster) -> None:
    (follower, _) = await cluster.followers()
    before = follower.replica.applied_index
    await cluster.ask(follower, "POST", "/v1/jobs", json=BODY)
    path = f"/v1/jobs/1?consistency=stale&wait=10s&index={before}"
    status, job, headers = await cluster.ask(follower, "GET", path)
    assert (status, job["id"], headers["Depalma-Master"]) == (200, 1, follower.master_id)


async def test_a_blob_given_to_one_can_be_used_and_read_through_the_others(cluster: Cluster) -> None:
    leader = await cluster.elected()
    one, two = await cluster.followers()
    packed = items.pack([b"%d" % n for n in range(5000)])
    digest = hashlib.sha256(packed).hexdigest()
    status, _, _ = await cluster.ask(one, "PUT", f"/v1/blobs/{digest}", data=packed)
    assert status == 201
    assert sum(master.blobs.has(digest) for master in cluster.masters.values()) >= 2
    body = {**BODY, "count": 5000, "arguments": {"digest": digest}}
    status, created, _ = await cluster.ask(two, "POST", "/v1/jobs", json=body)
    assert status == 201, created
    assert leader.blobs.has(digest)
    for master in cluster.masters.values():
        status, data, _ = await cluster.ask(master, "GET", f"/v1/blobs/{digest}")
        assert (status, data) == (200, packed)


async def test_followers_name_the_leader_for_streams(cluster: Cluster) -> None:
    leader = await cluster.elected()
    (follower, _) = await cluster.followers()
    status, problem, headers = await cluster.ask(follower, "POST", "/v1/results", json={"cursors": {}})
    assert (status, problem["code"], headers["Depalma-Leader"]) == (421, "not_leader", url_of(leader))


async def test_masters_see_each_other(cluster: Cluster) -> None:
    leader = await cluster.elected()
    (follower, other) = await cluster.followers()
    _, answer, _ = await cluster.ask(follower, "GET", "/v1/masters")
    roles = {master["id"]: master["role"] for master in answer["masters"]}
    assert roles == {leader.master_id: "leader", follower.master_id: "follower", other.master_id: "follower"}
    assert {master["state_hash"] for master in answer["masters"]} == {leader.machine.state_hash}
    await cluster.stop(other)
    _, answer, _ = await cluster.ask(follower, "GET", "/v1/masters")
    roles = {master["id"]: master["role"] for master in answer["masters"]}
    assert roles[other.master_id] == "unreachable"


async def test_a_wait_through_a_follower_ends_when_the_leader_goes(cluster: Cluster) -> None:
    leader = await cluster.elected()
    (follower, other) = await cluster.followers()
    await cluster.ask(follower, "POST", "/v1/jobs", json=BODY)
    waiting = asyncio.create_task(cluster.ask(follower, "GET", "/v1/jobs/1?wait=60s&until=final"))
    await cluster.ask(follower, "GET", "/v1/jobs/1")
    await cluster.stop(leader)
    async with asyncio.timeout(30):  # and not after the 60 s for which it would wait
        status, problem, _ = await waiting
    assert (status, problem["code"]) == (503, "no_leader")
    await cluster.elected()
    status, job, _ = await cluster.ask(other, "GET", "/v1/jobs/1")
    assert (status, job["id"]) == (200, 1)


async def test_writes_through_followers_survive_the_leader_exactly_once(cluster: Cluster) -> None:
    leader = await cluster.elected()
    followers = await cluster.followers()
    created: dict[str, int] = {}

    async def submit(number: int) -> None:
        key = f"key-{number}"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            master = followers[number % 2]
            headers = {"Idempotency-Key": key}
            status, body, _ = await cluster.ask(master, "POST", "/v1/jobs", json={**BODY, "name": key}, headers=headers)
            if status == 201:
                created[key] = body["id"]
                return
            assert (status, body["code"]) in [(503, "no_leader"), (503, "outcome_unknown")], body
            await asyncio.sleep(0.02)

    async def all_of_them() -> None:
        for start in range(0, 200, 10):
            await asyncio.gather(*(submit(number) for number in range(start, start + 10)))

    submitting = asyncio.create_task(all_of_them())
    await eventually(lambda: len(created) >= 50)
    await cluster.stop(leader)
    await submitting
    assert len(created) == 200
    _, listing, _ = await cluster.ask(followers[0], "GET", "/v1/jobs?all=1&limit=1000")
    assert sorted((job["name"], job["id"]) for job in listing["jobs"]) == sorted(created.items())


async def test_a_stream_ends_with_its_leader_and_goes_on_at_the_next(cluster: Cluster) -> None:
    leader = await cluster.elected()
    (follower, _) = await cluster.followers()
    await cluster.ask(follower, "POST", "/v1/jobs", json={**BODY, "count": 3})
    async with cluster.http.post(f"{url_of(leader)}/v1/results", json={"cursors": {"1": 0}}) as answer:
        reader = FrameReader()
        (batch,) = reader.feed(await answer.content.readany())
        assert (batch.job, batch.state) == (1, "queued")
        await cluster.stop(leader)
        # A broken connection is an end as good as an orderly one: the cursor says where to go on.
        with contextlib.suppress(aiohttp.ClientError):
            assert reader.feed(await answer.content.read()) == []
    leader = await cluster.elected()
    await cluster.ask(follower, "POST", "/v1/jobs/cancel", json={"jobs": [1]})
    body = {"cursors": {"1": batch.cursor}, "follow": False}
    async with cluster.http.post(f"{url_of(leader)}/v1/results", json=body) as answer:
        (batch,) = FrameReader().feed(await answer.read())
    assert (batch.cursor, batch.final, batch.state) == (3, True, "cancelled")


async def test_without_a_majority_writes_are_not_acknowledged(cluster: Cluster) -> None:
    (one, two) = await cluster.followers()
    leader = await cluster.elected()
    await cluster.stop(one)
    await cluster.stop(two)
    status, problem, _ = await cluster.ask(leader, "POST", "/v1/jobs", json=BODY)
    assert status == 503
    assert problem["code"] in ("no_leader", "outcome_unknown")
    status, problem, _ = await cluster.ask(leader, "GET", "/v1/jobs")
    assert (status, problem["code"]) == (503, "no_leader")
    digest = hashlib.sha256(b"x").hexdigest()
    status, problem, _ = await cluster.ask(leader, "PUT", f"/v1/blobs/{digest}", data=b"x")
    assert (status, problem["code"]) == (503, "no_majority")
    status, _, _ = await cluster.ask(leader, "GET", "/healthz")
    assert status == 200
