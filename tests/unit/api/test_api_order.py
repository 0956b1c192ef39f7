"""Limits, shares, ageing and trials over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

SPEC: dict[str, Any] = {"kind": "command", "argv": ["true"], "user": "ann"}


async def test_the_order_is_shown_and_changed(bench: Any) -> None:
    """Each write takes effect, and says nothing when it is repeated with the same key."""
    await bench.call("PUT", "/v1/limits/tag/db", 200, json={"limit": 4})
    await bench.call("PUT", "/v1/limits/user/*", 200, json={"limit": 9}, headers={"Idempotency-Key": "k"})
    await bench.call("PUT", "/v1/limits/user/*", 200, json={"limit": 8}, headers={"Idempotency-Key": "k"})
    await bench.call("PUT", "/v1/shares/ann", 200, json={"weight": 2.5})
    await bench.call("PATCH", "/v1/order", 200, json={"half_life_s": 3600, "age_s": 0})
    await bench.call("POST", "/v1/jobs", 201, json={**SPEC, "tags": ["db"], "count": 3})

    view = await bench.get("/v1/order")
    assert (view["half_life_s"], view["age_s"]) == (3600, 0)
    assert view["limits"] == [
        {"kind": "tag", "name": "db", "limit": 4, "tasks": 0},
        {"kind": "user", "name": "*", "limit": 9, "tasks": 0},
    ]
    assert view["users"] == [
        {"user": "ann", "weight": 2.5, "usage_s": 0.0, "slots": 0, "tasks": 0, "waiting": 1},
    ]
    await bench.call("PUT", "/v1/quotas/user/*", 200, json={"most": {"slots": 2.5, "gpus": 1}})
    quota = {"kind": "user", "name": "*", "most": {"gpus": 1, "slots": 2.5}, "used": {}}
    assert (await bench.get("/v1/order"))["quotas"] == [quota]
    await bench.call("DELETE", "/v1/quotas/user/*", 200)
    assert (await bench.get("/v1/order"))["quotas"] == []
    await bench.call("DELETE", "/v1/limits/tag/db", 200)
    assert [each["kind"] for each in (await bench.get("/v1/order"))["limits"]] == ["user"]


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("PUT", "/v1/limits/host/h1", {"limit": 1}, "kind: 'host' given; allowed: tag, user, group"),
        ("PUT", "/v1/limits/tag/db", {"limit": -1}, "limit: -1 given; allowed: 0 to"),
        ("PUT", "/v1/limits/tag/db", {"limits": 1}, "limits"),
        ("PUT", "/v1/quotas/host/h1", {"most": {"slots": 1}}, "kind: 'host' given; allowed: tag, user, group"),
        ("PUT", "/v1/quotas/user/ann", {"most": {"gpus": -1}}, "quota.gpus: -1.0 given; allowed: 0 to"),
        ("PUT", "/v1/quotas/user/ann", {"slots": 1}, "slots"),
        ("PUT", "/v1/shares/ann", {"weight": 0}, "weight: 0.0 given; allowed: 0.001 to"),
        ("PATCH", "/v1/order", {"age_s": 0.5}, "age_s: 0.5 given; allowed: 1 to"),
        ("PATCH", "/v1/order", {"half_life_s": 1}, "half_life_s: 1.0 given; allowed: 60 to"),
        ("POST", "/v1/trials", {**SPEC, "gpus": -1}, "gpus: -1 given; allowed: a whole number up to"),
        (
            "POST",
            "/v1/jobs",
            {**SPEC, "alternatives": [{"cpus": 0}]},
            "alternatives.0.cpus: 0.0 given; allowed: ",
        ),
        ("POST", "/v1/jobs", {**SPEC, "alternatives": [{"cpu": 2}]}, "alternatives"),
        ("POST", "/v1/jobs", {**SPEC, "alternatives": [{}], "gang": -1}, "none in a gang, whose tasks are all alike"),
        ("POST", "/v1/jobs", {**SPEC, "gpus": 1.5}, "gpus: 1.5 given; allowed: a whole number up to"),
        ("POST", "/v1/jobs", {**SPEC, "gpus": 0.125}, "or a part of one GPU in hundredths: 0.01 to 0.99"),
        ("POST", "/v1/jobs", {**SPEC, "gpus": "0.5"}, "gpus"),
        ("POST", "/v1/trials", {**SPEC, "code_index": 9}, "code_index: 9 given; allowed: -1"),
        ("POST", "/v1/jobs", {**SPEC, "limits": {"db": 0}}, "limits.db: 0 given; allowed: 1 to"),
    ],
)
async def test_refusals(bench: Any, method: str, path: str, body: dict[str, Any], words: str) -> None:
    """By field, value and what is allowed."""
    answer = await bench.call(method, path, 400, json=body)
    assert words in answer["detail"]


async def test_a_trial_submits_nothing(bench: Any) -> None:
    """There is no agent: all of it would wait, and it says why, host by host."""
    await bench.call("POST", "/v1/hosts", 201, json={"name": "h1", "slots": 2})
    view = await bench.call("POST", "/v1/trials", 200, json={**SPEC, "count": 3, "user": "nobody yet"})

    assert (view["tasks"], view["starting"], view["waiting"], view["starts_by"]) == (3, {}, 3, None)
    assert "first in the queue" in view["lines"]
    assert "h1: down: its agent has not connected yet" in view["lines"]
    assert (await bench.get("/v1/jobs"))["jobs"] == []
    assert (await bench.get("/v1/order"))["users"] == []
