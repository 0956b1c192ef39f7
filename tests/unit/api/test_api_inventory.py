"""Hosts and groups that are added, changed, drained and removed over HTTP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from depalma import protocol
from depalma.model import HostView
from depalma.protocol import Hello, Refused, Welcome

if TYPE_CHECKING:
    from conftest import Agent, Bench  # type: ignore[import-not-found]


async def call(bench: Bench, method: str, path: str, body: Any = None, status: int = 200, **more: Any) -> Any:
    return await bench.call(method, path, status, json=body, **more)


async def test_a_host_from_its_addition_to_its_removal(bench: Bench) -> None:
    wanted = {"name": "h9", "groups": ["render"], "labels": {"os": "debian"}, "priority": 5, "slots": 3, "gpus": 1}
    view = msgspec.convert(await bench.post("/v1/hosts", wanted, 201), HostView)
    assert (view.name, view.state, view.slots, view.groups, view.labels, view.priority, view.gpus) == (
        "h9", "down", 3, ("render",), {"os": "debian"}, 5, 1,
    )  # fmt: skip
    assert view.since > 0
    change = {"slots": 8, "labels": {"os": None, "disk": "ssd"}}
    changed = await call(bench, "PATCH", "/v1/hosts/h9", change)
    assert (changed["slots"], changed["labels"], changed["groups"]) == (8, {"disk": "ssd"}, ["render"])
    drained = await bench.post("/v1/hosts/h9/drain", {"deadline_s": 60, "reason": "new disk", "by": "ann"})
    assert drained["reason"] == "its agent has not connected yet; new disk (by ann)"
    assert drained["deadline_at"] == pytest.approx(drained["since"] + 60, abs=30)
    assert (await bench.post("/v1/hosts/h9/undrain"))["deadline_at"] is None
    assert await call(bench, "DELETE", "/v1/hosts/h9?by=ann") == {"removed": True, "waits_for": 0}
    problem = await bench.get("/v1/hosts/h9", 404)
    assert problem["code"] == "unknown_host"


async def test_a_drain_without_a_body(bench: Bench) -> None:
    bench.host_up()
    assert (await bench.post("/v1/hosts/h1/drain"))["state"] == "drained"
    assert 'depalma_hosts{state="drained"} 1' in await (await bench.http.get(f"{bench.url}/metrics")).text()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "hosts", {}, 400, "missing required field `name`"),
        ("POST", "hosts", {"name": "a b"}, 400, "name: 'a b' given"),
        ("POST", "hosts", {"name": "h1"}, 409, "there is a host h1 already"),
        ("POST", "hosts", {"name": "h9", "slots": -1}, 400, "slots: -1 given; allowed: 0 to 100000"),
        ("POST", "hosts", {"name": "h9", "slots": "many"}, 400, "slots: expected `int`"),
        ("POST", "hosts", {"name": "h9", "group": "g"}, 400, "unknown field `group`; allowed: name, groups, labels"),
        ("POST", "hosts", {"name": "h9", "labels": {"a=b": "c"}}, 400, "labels: 'a=b' given"),
        ("POST", "hosts", {"name": "h9", "groups": ["a b"]}, 400, "groups: 'a b' given"),
        ("PATCH", "hosts/h7", {"slots": 1}, 404, "there is no host h7"),
        ("PATCH", "hosts/h1", {"priority": 10**7}, 400, "priority: 10000000 given"),
        ("PATCH", "hosts/h1", {"name": "h2"}, 400, "unknown field `name`"),
        ("POST", "hosts/h7/drain", {}, 404, "there is no host h7"),
        ("POST", "hosts/h1/drain", {"deadline_s": -1}, 400, "deadline_s: -1.0 given; allowed: 0 to"),
        ("POST", "hosts/h1/drain", {"reason": "x" * 501}, 400, "reason: "),
        ("POST", "hosts/h7/undrain", None, 404, "there is no host h7"),
        ("DELETE", "hosts/h7", None, 404, "there is no host h7"),
        ("DELETE", "hosts/h1", None, 409, "host h1 has 1 task; drain it first, or force"),
        ("DELETE", "hosts/h1?force=maybe", None, 400, "force: 'maybe' given"),
        ("PUT", "groups/g", {"hosts": ["h7"]}, 404, "there is no host h7"),
        ("PUT", "groups/g", {"hosts": []}, 400, "hosts: [] given; allowed: at least one"),
        ("PUT", "groups/a%20b", {"hosts": ["h1"]}, 400, "group: 'a b' given"),
        ("POST", "groups/g/hosts", {"host": "h1"}, 400, "unknown field `host`"),
        ("DELETE", "groups/nosuch", None, 404, "there is no group nosuch"),
        ("DELETE", "groups/render", None, 409, "no host would be left in group render, which queued jobs name: 1"),
        ("DELETE", "groups/render?hosts=h2", None, 409, "host h2 is not in group render"),
    ],
)
async def test_each_refusal_names_what_is_wrong(
    bench: Bench, method: str, path: str, body: Any, status: int, said: str
) -> None:
    bench.host_up("h1", ("render",))
    bench.host_up("h2")
    bench.assign(bench.submit(count=3, group="render"), 0)
    before = bench.master.state.events.next_index
    problem = await call(bench, method, f"/v1/{path}", body, status)
    assert said in problem["detail"], problem["detail"]
    assert bench.master.state.events.next_index == before, "refused, yet something happened"


async def test_writes_happen_once(bench: Bench) -> None:
    bench.host_up()
    key = {"Idempotency-Key": "k"}
    for _ in range(2):
        assert (await bench.post("/v1/hosts", {"name": "h9"}, 201, headers=key))["name"] == "h9"
        assert await call(bench, "PUT", "/v1/groups/g", {"hosts": ["h9"]}, headers=key) == {
            "hosts": ["h9"], "changed": 1,
        }  # fmt: skip
        assert (await call(bench, "DELETE", "/v1/hosts/h1", headers=key))["removed"]


async def test_groups_over_http(bench: Bench) -> None:
    bench.host_up("h1")
    bench.host_up("h2")
    assert (await call(bench, "PUT", "/v1/groups/g", {"hosts": ["h1"]}))["hosts"] == ["h1"]
    assert (await bench.post("/v1/groups/g/hosts", {"hosts": ["h2"]}))["hosts"] == ["h1", "h2"]
    await bench.post("/v1/hosts/h2/drain")
    assert await bench.get("/v1/groups/g") == {"name": "g", "hosts": ["h1", "h2"], "slots": 8, "free_slots": 4}
    assert (await call(bench, "DELETE", "/v1/groups/g?hosts=h1"))["hosts"] == ["h2"]
    assert await call(bench, "DELETE", "/v1/groups/g?force=1") == {"hosts": [], "changed": 1}
    assert (await bench.get("/v1/groups/g", 404))["detail"] == "there is no group 'g'; there are: none"


async def test_one_waits_until_a_host_is_drained(bench: Bench) -> None:
    bench.host_up()
    job = bench.submit()
    bench.assign(job, 0)
    await bench.post("/v1/hosts/h1/drain", {"reason": "reboot"})
    waiting = asyncio.create_task(bench.get("/v1/hosts/h1?wait=20s&until=drained"))
    await bench.get("/v1/hosts")
    assert not waiting.done()
    bench.finish(job, 0)
    view = await waiting
    assert (view["state"], view["reason"]) == ("drained", "reboot")


async def test_an_agent_of_a_host_that_is_removed_is_not_admitted(bench: Bench, agent: Agent) -> None:
    headers = {"Authorization": "Bearer " + "a" * 40, protocol.HOST_HEADER: "h1"}

    facts = bench.master.state.hosts["h1"].facts
    assert facts is not None

    async def hello() -> Welcome | Refused:
        async with bench.http.ws_connect(f"{bench.url}/v1/agent", headers=headers) as websocket:
            said = Hello(protocol.PROTOCOL_VERSION, "h1", "h1-1", facts, 0, (), ())
            await websocket.send_bytes(protocol.encode(said))
            answer = protocol.decode_to_agent((await websocket.receive()).data)
            assert isinstance(answer, Welcome | Refused)
            return answer

    bench.assign(bench.submit(), 0)
    assert (await call(bench, "DELETE", "/v1/hosts/h1?force=1"))["waits_for"] == 1
    going = await hello()
    assert isinstance(going, Refused)
    assert going.stop
    assert going.reason == "host h1 is being removed from the cluster"
    bench.finish(1, 0)
    gone = await hello()
    assert isinstance(gone, Refused)
    assert gone.stop
    assert gone.reason == "host 'h1' is not in the cluster; add it with: depalmactl host add h1"
