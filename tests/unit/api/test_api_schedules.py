"""Schedules over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Bench  # type: ignore[import-not-found]

JOB = {"kind": "command", "argv": ["make", "all"]}


async def test_added_shown_listed_and_removed(bench: Bench) -> None:
    body = {"name": "nightly", "cron": "0 3 * * *", "zone": "Europe/Berlin", "job": JOB, "by": "ann"}
    headers = {"Idempotency-Key": "k"}
    made = await bench.post("/v1/schedules", body, 201, headers=headers)
    assert (made["name"], made["command"], made["runs"], made["last_job"]) == ("nightly", "make all", 0, None)
    assert made["next_at"] > bench.master.wall()
    assert await bench.post("/v1/schedules", body, 201, headers=headers) == made
    assert (await bench.post("/v1/schedules", body, 409))["code"] == "name_taken"
    assert await bench.get("/v1/schedules") == {"schedules": [made]}
    assert await bench.get("/v1/schedules/nightly") == made
    await bench.call("DELETE", "/v1/schedules/nightly", 200)
    assert (await bench.call("GET", "/v1/schedules/nightly", 404))["code"] == "unknown_schedule"
    assert (await bench.call("DELETE", "/v1/schedules/nightly", 404))["code"] == "unknown_schedule"


async def test_what_can_never_tick_is_refused(bench: Bench) -> None:
    for changes, said in (
        ({"cron": "0 25 * * *"}, "cron: hour: '25' given; allowed: 0 to 23"),
        ({"cron": "0 0 31 2 *"}, "cron: '0 0 31 2 *' given; allowed: a day that some time comes"),
        ({"zone": "Mars/North"}, "zone: 'Mars/North' given; allowed: UTC, or a time zone such as Europe/Berlin"),
        ({"zone": "../../etc/passwd"}, "zone: '../../etc/passwd' given"),
        ({"job": {"kind": "command"}}, "argv: [] given"),
        ({"catch_up": "some"}, "catch_up: 'some' given"),
        ({"every": "day"}, "object contains unknown field `every`"),
    ):
        body = {"name": "n", "cron": "@daily", "job": JOB, **changes}
        problem = await bench.post("/v1/schedules", body, 400)
        assert said in problem["detail"]
    assert not bench.master.state.schedules
