"""Every field of every body and every parameter of every query: what is wrong is refused by name; nothing is done."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec import inspect

from depalma.api.app import ROUTES
from depalma.api.route import Route
from depalma.model import JobSpec
from depalma.state.commands import AddCode, AddWebhook
from depalma.state.job_commands import AddSchedule
from depalma.state.machine import digest_of

if TYPE_CHECKING:
    from conftest import Bench  # type: ignore[import-not-found]

#: What the paths name; it is there.
PLACES = {
    "job": "1", "task": "1.0", "digest": "0" * 64, "index": "1", "host": "h1", "group": "g", "master": "m1",
    "webhook": "w", "schedule": "s", "kind": "tag", "name": "t", "user": "ann", "visit": "k",
}  # fmt: skip
#: Parameters that any text fits.
FREE_TEXT = frozenset({"tag", "name", "user", "by", "host", "group", "hosts"})


def good(type_: Any) -> Any:
    """Returns a value of the type, with the fields that must be there."""
    match type_:
        case inspect.StructType():
            return {field.encode_name: good(field.type) for field in type_.fields if field.required}
        case inspect.UnionType():
            return good(type_.types[0])
        case inspect.LiteralType():
            return type_.values[0]
        case inspect.StrType():
            return "x"
        case inspect.IntType() | inspect.FloatType():
            return 1
        case inspect.BoolType():
            return True
        case inspect.VarTupleType() | inspect.ListType():
            return [good(type_.item_type)]
        case inspect.DictType():
            return {"slots": good(type_.value_type)}
    return None


def wrong(type_: Any) -> Any:
    """Returns a value that is of no type like this one."""
    kinds = type_.types if isinstance(type_, inspect.UnionType) else (type_,)
    takes_object = any(isinstance(kind, inspect.StructType | inspect.DictType) for kind in kinds)
    return [[]] if takes_object else {"a": 1}


@pytest.fixture
def stage(bench: Bench) -> Bench:
    bench.submit()
    bench.host_up(groups=("g",))
    now = time.time()
    for command in (
        AddWebhook("", "w", "http://a", ("*",), (), (), (), "s" * 32, 9, now),
        AddSchedule("", "s", JobSpec(kind="command", argv=("true",)), "@daily", "UTC", now + 60, now),
        AddCode("", "pkg", "folder", "a" * 64, 10, "ann", now),
    ):
        bench.master.apply(command)
    return bench


async def refusal(bench: Bench, route: Route, body: Any = None, **query: str) -> str:
    """Returns the detail of the refusal of a request whose path names what cannot be wrong."""
    path = route.path
    for name, text in PLACES.items():
        path = path.replace(f"{{{name}}}", text)
    assert "{" not in path, f"{path}: say in PLACES what there is (or what fits) there"
    token = {"agent": "a" * 40}.get(next(iter(route.access), ""), "u" * 40)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    before = digest_of(bench.master.state)
    data = body if isinstance(body, bytes) else msgspec.json.encode(body) if body is not None else None
    problem = await bench.call(route.method, path, 400, data=data, params=query, headers=headers)
    assert digest_of(bench.master.state) == before
    assert problem["code"] in ("bad_field", "bad_json")
    detail: str = problem["detail"]
    return detail


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


#: Without what needs TLS, which this bench does not speak, and what masters say to each other.
BODIES = [
    route
    for route in ROUTES
    if route.body is not None and route.path != "/v1/agent/certificate" and not route.path.startswith("/internal/")
]


@pytest.mark.parametrize("route", BODIES, ids=name_of)
async def test_bodies(stage: Bench, route: Route) -> None:
    """Fields of the wrong type, one that there is not, and what is no object at all."""
    assert route.body is not None
    type_ = inspect.type_info(route.body.type)
    assert isinstance(type_, inspect.StructType)
    for field in type_.fields:
        name = field.encode_name
        detail = await refusal(stage, route, {**good(type_), name: wrong(field.type)})
        assert detail.startswith((f"{name}: ", f"{name}.")), detail
        assert "expected" in detail or "allowed: " in detail, detail
    detail = await refusal(stage, route, {**good(type_), "coulor": 1})
    assert "coulor" in detail
    assert "allowed: " in detail
    for body in (b"", b"nul", b"[]", b"1", b"\xff", b"[" * 10_000, b'{"jobs": NaN}', b'{"a":1}x'):
        if body or not route.path.endswith("/drain"):  # which needs none
            assert (await refusal(stage, route, body)).startswith("body: ")


@pytest.mark.parametrize("route", [route for route in ROUTES if route.query], ids=name_of)
async def test_parameters(stage: Bench, route: Route) -> None:
    """Those that say nothing, and one that there is not."""
    body = {} if route.body else None
    for name in sorted(route.query - FREE_TEXT):
        for text in ("", "é", "nan", "1e999"):
            detail = await refusal(stage, route, body, **{name: text})
            assert detail.startswith(f"{name}: "), detail
            assert "allowed: " in detail, detail
    detail = await refusal(stage, route, body, coulor="1")
    assert "coulor" in detail
    assert "allowed: " in detail
