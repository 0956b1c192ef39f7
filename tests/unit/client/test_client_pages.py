"""Lists that come page by page: a page may be short, or empty, and not the last."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import msgspec

from depalma.client import accounting_verbs, verbs
from depalma.client.transport import Answer, Request
from depalma.model import JobView, TaskCounts

T = TypeVar("T")


def job(number: int) -> JobView:
    return JobView(
        id=number, name="", user="", kind="command", state="succeeded", priority=0, tags=(), group="", submitted_at=1.0,
        started_at=1.0, finished_at=2.0, code_index=0, tasks=TaskCounts(total=1, succeeded=1), archived=True,
    )  # fmt: skip


def played(verb: Generator[Request, Answer, T], pages: list[dict[str, Any]]) -> tuple[T, list[dict[str, list[str]]]]:
    """Returns what the verb returns, and the queries that it made, when the master answers with these pages."""
    asked = []
    request = next(verb)
    for page in pages:
        asked.append(parse_qs(urlsplit(request.path).query))
        try:
            request = verb.send(Answer(200, {}, msgspec.json.encode(page)))
        except StopIteration as done:
            return done.value, asked
    raise AssertionError(f"it asks for more: {request.path}")


def test_jobs_are_gathered_until_there_are_enough() -> None:
    pages = [
        {"jobs": [job(9)], "more": True, "next": 9},
        {"jobs": [], "more": True, "next": 5},
        {"jobs": [job(4), job(3)], "more": True, "next": 3},
    ]
    found, asked = played(verbs.jobs({"all": True, "limit": 3}), pages)
    assert [view.id for view in found] == [9, 4, 3]
    assert [query.get("before") for query in asked] == [None, ["9"], ["5"]]
    assert [query["limit"] for query in asked] == [["3"], ["2"], ["2"]]
    assert all(query["all"] == ["1"] for query in asked)


def test_jobs_end_with_the_last_page() -> None:
    found, asked = played(verbs.jobs({}), [{"jobs": [job(2), job(1)], "more": False, "next": None, "notes": ["x"]}])
    assert [view.id for view in found] == [2, 1]
    assert asked == [{"limit": ["100"]}]


def test_masters_of_an_earlier_release_do_not_say_where_to_go_on() -> None:
    found, _ = played(verbs.jobs({}), [{"jobs": [], "more": False}])
    assert found == []


def test_a_page_of_accounting() -> None:
    page = {"rows": [], "next": 7, "notes": [], "master": "m2"}
    found, asked = played(accounting_verbs.page({"user": "ann", "unfinished": None, "before": 8}), [page])
    assert (found.next, found.master) == (7, "m2")
    assert asked == [{"user": ["ann"], "before": ["8"]}]
