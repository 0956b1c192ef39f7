"""Changing the masters over HTTP: what is refused by name, and what a retry gets. The change itself: tests/system."""

from __future__ import annotations

from typing import Any

import pytest

from depalma.consensus import TransferFailed


async def test_a_master_is_added_once_however_often_it_is_asked_for(bench: Any) -> None:
    wanted = {"id": "m4", "host": "10.0.0.4", "port": 7170, "raft_port": 7171}
    first = await bench.post("/v1/masters", wanted, 201)
    again = await bench.post("/v1/masters", wanted, 201)

    assert first == again
    assert first["masters"][-1] == {"id": "m4", "url": "http://10.0.0.4:7170", "raft": "10.0.0.4:7171"}
    assert [[member.id for member in change] for change in bench.master.replica.changes] == [["m1", "m4"]]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"id": "-x", "host": "a"}, "id: '-x' given; allowed: letters"),
        ({"id": "m4", "host": ""}, "host: '' given; allowed: a name or an address"),
        ({"id": "m4", "host": "a b"}, "host: 'a b' given; allowed: a name or an address"),
        ({"id": "m4", "host": "a..b"}, "host: 'a..b' given; allowed: a name or an address"),
        ({"id": "m4", "host": "a" * 64}, "a' given; allowed: a name or an address"),
        ({"id": "m4", "host": "a/b"}, "host: 'a/b' given; allowed: a name or an address"),
        ({"id": "m4", "host": "a", "port": 0}, "port: 0 given; allowed: 1 to 65535"),
        ({"id": "m4", "host": "a", "port": 70_000}, "port: 70000 given; allowed: 1 to 65535"),
        ({"id": "m4", "host": "a", "raft_port": 7070}, "raft_port: 7070 given; allowed: another port than `port`"),
        ({"id": "m4", "host": "a", "wait_s": 11}, "wait_s: 11.0 given; allowed: 0 to 10"),
        ({"id": "m4", "host": "a", "colour": 1}, "object contains unknown field `colour`; allowed: id, host"),
        ({"id": "m4"}, "missing required field `host`"),
    ],
)
async def test_bad_input_is_named_and_changes_nothing(bench: Any, body: dict[str, Any], says: str) -> None:
    problem = await bench.post("/v1/masters", body, 400)

    assert says in problem["detail"]
    assert bench.master.replica.changes == []


async def test_a_name_that_is_taken_is_refused(bench: Any) -> None:
    problem = await bench.post("/v1/masters", {"id": "m1", "host": "10.0.0.9"}, 409)

    assert problem["code"] == "name_taken"


async def test_a_master_moves(bench: Any) -> None:
    await bench.post("/v1/masters", {"id": "m4", "host": "10.0.0.4"}, 201)
    moved = await bench.call("PATCH", "/v1/masters/m4", 200, json={"host": "10.0.0.5", "raft_port": 9})
    same = await bench.call("PATCH", "/v1/masters/m4", 200, json={"host": "10.0.0.5"})

    assert moved == same
    assert moved["masters"][-1] == {"id": "m4", "url": "http://10.0.0.5:7070", "raft": "10.0.0.5:9"}
    assert len(bench.master.replica.changes) == 2


async def test_who_is_unknown_is_named_with_those_that_there_are(bench: Any) -> None:
    for method, path in (
        ("DELETE", "/v1/masters/m9"),
        ("PATCH", "/v1/masters/m9"),
        ("POST", "/v1/masters/m9/transfer"),
    ):
        problem = await bench.call(method, path, 404, json={} if method == "PATCH" else None)
        assert (problem["code"], problem["detail"]) == ("unknown_master", "there is no master 'm9'; there are: m1")


async def test_a_removal_that_is_asked_for_again_is_done_already(bench: Any) -> None:
    await bench.post("/v1/masters", {"id": "m4", "host": "10.0.0.4"}, 201)
    key = {"Idempotency-Key": "one"}
    first = await bench.call("DELETE", "/v1/masters/m4", 200, headers=key)
    again = await bench.call("DELETE", "/v1/masters/m4", 200, headers=key)

    assert first == again
    assert (await bench.call("DELETE", "/v1/masters/m4", 404))["code"] == "unknown_master"


async def test_the_last_master_stays(bench: Any) -> None:
    assert (await bench.call("DELETE", "/v1/masters/m1", 409))["code"] == "last_master"


async def test_a_leader_hands_over_before_it_is_removed(bench: Any) -> None:
    await bench.post("/v1/masters", {"id": "m4", "host": "10.0.0.4"}, 201)
    problem = await bench.call("DELETE", "/v1/masters/m1", 503)

    assert problem["code"] == "no_leader"
    assert "m1 has handed over to m4" in problem["detail"]
    assert bench.master.replica.leader_id == "m4"


async def test_leadership_goes_to_whom_it_is_given(bench: Any) -> None:
    assert await bench.post("/v1/masters/m1/transfer") == {"leader": "m1"}  # it leads already
    await bench.post("/v1/masters", {"id": "m4", "host": "10.0.0.4"}, 201)
    assert await bench.post("/v1/masters/m4/transfer") == {"leader": "m4"}


async def test_a_hand_over_that_fails_is_told(bench: Any) -> None:
    await bench.post("/v1/masters", {"id": "m4", "host": "10.0.0.4"}, 201)
    bench.master.replica.fails = TransferFailed("m4 did not take over in time; m1 goes on leading")
    problem = await bench.post("/v1/masters/m4/transfer", status=409)

    assert (problem["code"], problem["detail"]) == (
        "transfer_failed",
        "m4 did not take over in time; m1 goes on leading",
    )


async def test_answers_name_all_masters(bench: Any) -> None:
    await bench.post("/v1/masters", {"id": "m4", "host": "10.0.0.4"}, 201)
    async with bench.http.get(bench.url + "/healthz") as answer:
        assert answer.headers["Depalma-Masters"] == f"{bench.url},http://10.0.0.4:7070"
