"""Webhooks over HTTP: made, changed, shown, replayed, removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from depalma.model import WebhookView

if TYPE_CHECKING:
    from conftest import Bench  # type: ignore[import-not-found]

URL = "http://127.0.0.1:9/hook"


async def call(bench: Bench, method: str, path: str, body: Any = None, status: int = 200, **more: Any) -> Any:
    return await bench.call(method, path, status, json=body, **more)


async def test_a_webhook_from_its_making_to_its_removal(bench: Bench) -> None:
    saved = await bench.post("/v1/webhooks", {"name": "w", "url": URL, "users": ["ann"], "by": "ann"}, 201)
    view = msgspec.convert(saved["webhook"], WebhookView)
    assert (view.kinds, view.users, view.keep, view.by) == (("job.finished",), ("ann",), 50_000, "ann")
    assert (view.last, view.delivered, view.oldest, view.waiting, view.missing) == (0, 0, 1, 0, 0)
    assert len(saved["secret"]) >= 40
    changed = await call(bench, "PATCH", "/v1/webhooks/w", {"kinds": ["job.*"], "keep": 2})
    assert changed["secret"] == ""
    assert (changed["webhook"]["kinds"], changed["webhook"]["users"]) == (["job.*"], ["ann"])
    renewed = await call(bench, "PATCH", "/v1/webhooks/w", {"new_secret": True})
    assert renewed["secret"] not in ("", saved["secret"])
    for _ in range(5):
        bench.submit(user="ann")
    bench.submit(user="ben")
    assert await bench.post("/v1/webhooks/w/test?by=ann") == {"id": 6}
    shown = await bench.get("/v1/webhooks/w")
    assert (shown["last"], shown["oldest"], shown["waiting"], shown["missing"]) == (6, 5, 2, 4)
    async with bench.http.get(f"{bench.url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    assert 'depalma_webhook_waiting{webhook="w"} 2' in lines
    assert 'depalma_webhook_failing{webhook="w"} 0' in lines
    replayed = await bench.post("/v1/webhooks/w/replay", {"from": 6, "skip": True})
    assert (replayed["delivered"], replayed["waiting"], replayed["missing"]) == (5, 1, 0)
    assert await bench.get("/v1/webhooks") == {"webhooks": [replayed]}
    assert await call(bench, "DELETE", "/v1/webhooks/w?by=ann") == {}
    assert await bench.get("/v1/webhooks") == {"webhooks": []}


async def test_a_secret_is_shown_to_who_made_it_and_to_nobody_else(bench: Bench) -> None:
    """A repeated request is answered with the same one: its first answer may have been lost."""
    key = {"Idempotency-Key": "k"}
    first = await bench.post("/v1/webhooks", {"name": "w", "url": URL}, 201, headers=key)
    assert await bench.post("/v1/webhooks", {"name": "w", "url": URL}, 201, headers=key) == first
    renewed = [await call(bench, "PATCH", "/v1/webhooks/w", {"new_secret": True}, headers=key) for _ in range(2)]
    assert renewed[0] == renewed[1]
    for path in ("/v1/webhooks", "/v1/webhooks/w", "/v1/events", "/v1/overview", "/metrics"):
        async with bench.http.get(bench.url + path) as answer:
            text = await answer.text()
        assert first["secret"] not in text
        assert renewed[0]["secret"] not in text


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "", {"name": "v"}, 400, "missing required field `url`"),
        ("POST", "", {"name": "w", "url": URL}, 409, "there is a webhook w already"),
        ("POST", "", {"name": "a b", "url": URL}, 400, "name: 'a b' given"),
        ("POST", "", {"name": "v", "url": "ftp://a"}, 400, "url: 'ftp://a' given; allowed: http://HOST"),
        ("POST", "", {"name": "v", "url": URL, "kinds": ["job.ended"]}, 400, "kinds: 'job.ended' given; allowed: *"),
        ("POST", "", {"name": "v", "url": URL, "kinds": ["webhook.*"]}, 400, "kinds: 'webhook.*' given"),
        ("POST", "", {"name": "v", "url": URL, "kinds": []}, 400, "kinds: [] given"),
        ("POST", "", {"name": "v", "url": URL, "secret": "x" * 40}, 400, "unknown field `secret`"),
        ("POST", "", {"name": "v", "url": URL, "jobs": ["1"]}, 400, "jobs.0: expected `int`"),
        ("POST", "", {"name": "v", "url": URL, "keep": 0}, 400, "keep: 0 given"),
        ("PATCH", "/nosuch", {"url": URL}, 404, "there is no webhook nosuch"),
        ("PATCH", "/w", {"name": "v"}, 400, "unknown field `name`"),
        ("GET", "/nosuch", None, 404, "there is no webhook 'nosuch'; there are: w"),
        ("DELETE", "/nosuch", None, 404, "there is no webhook nosuch"),
        ("POST", "/nosuch/test", None, 404, "there is no webhook nosuch"),
        ("POST", "/w/replay", {}, 400, "missing required field `from`"),
        ("POST", "/w/replay", {"from": 2}, 400, "from: 2 given; allowed: 1 to 1"),
        ("POST", "/nosuch/replay", {"from": 2}, 404, "there is no webhook nosuch"),
    ],
)
async def test_each_refusal_names_what_is_wrong(
    bench: Bench, method: str, path: str, body: Any, status: int, said: str
) -> None:
    await bench.post("/v1/webhooks", {"name": "w", "url": URL}, 201)
    before = bench.master.state.events.next_index
    problem = await call(bench, method, f"/v1/webhooks{path}", body, status)
    assert said in problem["detail"], problem["detail"]
    assert bench.master.state.events.next_index == before, "refused, yet something happened"
